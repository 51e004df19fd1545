"""Scores of exclusive classes against scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
import torch.nn.functional as F

from transferseg.errors import DataError, SpecError
from transferseg.metrics import MulticlassCounts, MultilabelCounts

NAMES = ("normal", "bacterial", "viral", "other")
K = len(NAMES)
NAN = torch.nan


def batch(seed=0, missing=0.2, images=40, classes=K):
    """Logits, label rows and class indices; a missing row is all NaN, or has one NaN."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, classes, (images,), generator=generator)
    label = F.one_hot(index, K).float()
    logits = torch.randn(images, K, generator=generator) + label
    lost = torch.rand(images, generator=generator) < missing
    label[lost] = NAN
    label[lost & (index == 1), 0] = 1.0
    return logits, label, index


def counted(logits, label):
    counts = MulticlassCounts(NAMES)
    counts.update(logits, label)
    return counts


@pytest.mark.parametrize("seed", range(4))
def test_equals_scikit_learn_on_the_known_labels(seed):
    logits, label, index = batch(seed)
    known = ~label.isnan().any(1)
    true, predicted = index[known].numpy(), logits[known].numpy().argmax(1)
    scores = counted(logits, label).scores()
    assert scores.accuracy == pytest.approx(sk.accuracy_score(true, predicted))
    assert scores.mean_recall == pytest.approx(sk.balanced_accuracy_score(true, predicted))
    theirs = sk.confusion_matrix(true, predicted, labels=range(K))
    assert np.array_equal(scores.confusion, theirs)
    options = {"labels": range(K), "average": None, "zero_division": np.nan}
    for name, score in (("recall", sk.recall_score), ("precision", sk.precision_score)):
        expected = score(true, predicted, **options)
        assert list(getattr(scores, name).values()) == pytest.approx(list(expected), nan_ok=True)
    assert list(scores.positives.values()) == theirs.sum(1).tolist()
    assert list(scores.predicted.values()) == theirs.sum(0).tolist()
    assert (scores.images, scores.unlabelled_images) == (40, 40 - known.sum())


def test_a_class_without_ground_truth_is_in_no_mean():
    logits, label, index = batch(missing=0, classes=K - 1)
    logits[index == 2, 2] = -9.0  # the third class is never predicted
    logits[index != 2, 2] = -9.0
    logits[0, 3] = 9.0
    scores = counted(logits, label).scores()
    assert math.isnan(scores.recall["other"])
    assert scores.precision["other"] == 0
    assert scores.recall["viral"] == 0
    assert math.isnan(scores.precision["viral"])
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        theirs = sk.balanced_accuracy_score(index, logits.argmax(1))
    assert scores.mean_recall == pytest.approx(theirs)


@pytest.mark.parametrize("index", [[2], [0], [3, 3, 3], [0, 1, 2, 3]])
def test_a_model_that_says_one_class_equals_scikit_learn(index):
    """Of one image, of one class alone, of every class once."""
    label = F.one_hot(torch.tensor(index), K).float()
    scores = counted(torch.tensor([0.0, 1.0, 9.0, 2.0]).expand_as(label), label).scores()
    said = [2] * len(index)
    assert scores.accuracy == pytest.approx(sk.accuracy_score(index, said))
    assert np.array_equal(scores.confusion, sk.confusion_matrix(index, said, labels=range(K)))
    options = {"labels": range(K), "average": None, "zero_division": np.nan}
    for name, score in (("recall", sk.recall_score), ("precision", sk.precision_score)):
        expected = list(score(index, said, **options))
        assert list(getattr(scores, name).values()) == pytest.approx(expected, nan_ok=True)


def test_ties_go_to_the_lowest_index():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], [-1.0, -2.0, -1.0, -2.0]])
    rows = MulticlassCounts(NAMES).count(logits, torch.eye(4)[[1, 1, 2]])
    assert rows.tolist() == [[1, 1], [0, 1], [0, 2]]
    soft = torch.tensor([[0.4, 0.1, 0.4, 0.1]])
    assert MulticlassCounts(NAMES).count(logits[:1], soft).tolist() == [[1, 0]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_label_dtypes(dtype):
    logits, label, index = batch(missing=0)
    rows = MulticlassCounts(NAMES).count(logits.bfloat16(), label.to(dtype))
    assert rows.dtype == torch.int64
    assert torch.equal(rows[:, 1], index)
    assert torch.equal(rows[:, 0], logits.bfloat16().argmax(1))


def test_nan_logits_predict_nothing_and_are_wrong():
    """A diverged model must not look like one that prefers the first class."""
    logits, label, index = batch(missing=0)
    whole = counted(logits, label).scores()
    right = int((logits.argmax(1) == index).nonzero()[0])
    logits[right, 3] = NAN
    scores = counted(logits, label).scores()
    assert scores.accuracy == pytest.approx(whole.accuracy - 1 / 40)
    assert np.sum(scores.confusion) == 39
    assert scores.positives == whole.positives
    assert scores.recall[NAMES[index[right]]] < whole.recall[NAMES[index[right]]]
    lost = counted(torch.full((2, K), NAN), label[:2]).scores()
    assert (lost.accuracy, lost.mean_recall) == (0, 0)


def test_all_missing():
    scores = counted(torch.zeros(2, K), torch.full((2, K), NAN)).scores()
    assert math.isnan(scores.accuracy)
    assert math.isnan(scores.mean_recall)
    assert scores.confusion == ((0,) * K,) * K
    values = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert (values["accuracy"], values["unlabelled_images"]) == (None, 2)


@pytest.mark.parametrize("cut", [0, 1, 23])
def test_uneven_parts_and_order(cut):
    logits, label, _ = batch()
    whole = counted(logits, label)
    both = counted(logits[cut:], label[cut:]) + counted(logits[:cut], label[:cut])
    assert both.scores().to_dict() == whole.scores().to_dict()
    loaded = MulticlassCounts(NAMES)
    loaded.load_state_dict(whole.state_dict())
    assert loaded.scores().to_dict() == whole.scores().to_dict()


def test_rows_of_other_classes_are_refused():
    logits, label, _ = batch()
    few = MulticlassCounts(["a", "b"])
    few.load_state_dict(counted(logits, label).state_dict())
    with pytest.raises(DataError, match="class number 3, but there are 2 classes"):
        few.scores()
    with pytest.raises(SpecError, match="they differ in classes"):
        counted(logits, label) + MulticlassCounts(["a", "b"])
    with pytest.raises(SpecError, match="MulticlassCounts and MultilabelCounts"):
        counted(logits, label) + MultilabelCounts(NAMES)


@pytest.mark.parametrize("shape", [(2, 3), (2,), (3, 4), (2, 4, 1)])
def test_wrong_shapes_name_both(shape):
    with pytest.raises(SpecError) as error:
        MulticlassCounts(NAMES).update(torch.zeros(2, 4), torch.zeros(shape))
    assert "(2, 4)" in str(error.value)
    assert str(shape) in str(error.value)


def test_wrong_use():
    with pytest.raises(SpecError, match="floating"):
        MulticlassCounts(NAMES).update(torch.zeros(2, 4).long(), torch.zeros(2, 4))
    with pytest.raises(SpecError, match="distinct"):
        MulticlassCounts(["a", "a"])
    with pytest.raises(SpecError, match="two or more"):
        MulticlassCounts(1)
    with pytest.raises(DataError, match="no image has been counted"):
        MulticlassCounts(NAMES).scores()


def test_text():
    scores = counted(*batch()[:2]).scores()
    unlabelled = f"40 images, {scores.unlabelled_images} without a known label"
    assert str(scores).startswith(f"{unlabelled}; predicted: the class of the largest logit\n")
    assert str(scores).endswith(f"\naccuracy: {scores.accuracy:.4f}")
    markdown = scores.to_markdown()
    recall, precision = scores.recall["viral"], scores.precision["viral"]
    assert f"| viral | {recall:.4f} | {precision:.4f} |" in markdown
    assert f"| mean | {scores.mean_recall:.4f} |" in markdown
    assert f"| viral | {' | '.join(map(str, scores.confusion[2]))} |" in markdown
    piped = MulticlassCounts(["a|b", "c"])
    piped.update(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    assert r"| true, by predicted | a\|b | c |" in piped.scores().to_markdown()


def test_a_label_row_without_a_class_is_no_first_class():
    logits, label, _ = batch(missing=0)
    label[3] = 0.0
    with pytest.raises(DataError, match=r"1 image\(s\), the first being number 3, has no entry"):
        counted(logits, label).scores()
    label[3] = NAN
    assert counted(logits, label).scores().unlabelled_images == 1
