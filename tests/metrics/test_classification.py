"""Multi-label classification scores against scikit-learn and torchmetrics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.errors import DataError, SpecError
from transferseg.metrics import MultilabelCounts
from transferseg.metrics.classification import average_precision

NAMES = ("edema", "nodule", "mass")
NAN = torch.nan


def batch(seed=0, missing=0.3, images=20, levels=None):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 3, generator=generator)
    if levels is not None:
        logits = (logits * levels).round() / levels  # ties
    label = torch.randint(0, 2, (images, 3), generator=generator).float()
    label[torch.rand(images, 3, generator=generator) < missing] = NAN
    return logits, label


def counted(logits, label, **options):
    counts = MultilabelCounts(NAMES, **options)
    counts.update(logits, label)
    return counts


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [None, 2])
def test_equals_scikit_learn_on_the_known_labels(seed, levels):
    logits, label = batch(seed, levels=levels)
    scores = counted(logits, label).scores()
    for k, name in enumerate(NAMES):
        known = ~label[:, k].isnan()
        truth, score = label[known, k], logits[known, k]
        assert scores.auroc[name] == pytest.approx(sk.roc_auc_score(truth, score))
        precision = sk.average_precision_score(truth, score)
        assert scores.average_precision[name] == pytest.approx(precision)
        assert scores.accuracy[name] == pytest.approx(sk.accuracy_score(truth, score > 0))
        assert scores.known[name] == known.sum()
        assert scores.positives[name] == truth.sum()
    assert scores.mean_auroc == pytest.approx(np.mean(list(scores.auroc.values())))
    expected = np.mean(list(scores.average_precision.values()))
    assert scores.mean_average_precision == pytest.approx(expected)
    assert scores.to_dict()["mean_average_precision"] == scores.mean_average_precision
    assert scores.to_dict()["average_precision"] == scores.average_precision


@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    pairs=st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30),
    shuffle=st.randoms(use_true_random=False),
)
def test_average_precision_takes_ties_at_once(pairs, shuffle):
    score, positive = (np.array(column) for column in zip(*pairs, strict=True))
    ours = average_precision(score.astype(float), positive)
    shuffle.shuffle(pairs)
    again, truth = (np.array(column) for column in zip(*pairs, strict=True))
    same = average_precision(again.astype(float), truth)
    assert np.array_equal(ours, same, equal_nan=True)  # to the last bit
    if positive.any():
        assert ours == pytest.approx(sk.average_precision_score(positive, score))
    else:
        assert math.isnan(ours)


def test_average_precision_by_hand():
    positive = np.array([True, False, True, False])
    falling = np.array([math.inf, 2.0, 1.0, -math.inf])
    assert average_precision(falling, positive) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(-falling, positive) == pytest.approx((1 / 2 + 2 / 4) / 2)
    tied = np.array([math.inf, math.inf, math.inf, 0.0])
    assert average_precision(tied, positive) == pytest.approx(2 / 3)


def test_exact_match_equals_scikit_learn_when_nothing_is_missing():
    logits, label = batch(missing=0)
    expected = sk.accuracy_score(label.numpy(), (logits > 0).numpy())
    assert counted(logits, label).scores().exact_match == pytest.approx(expected)


def test_exact_match_with_missing_labels_equals_torchmetrics():
    logits, label = batch()
    label[0] = torch.tensor([1.0, NAN, NAN])
    some = ~label.isnan().all(1)
    theirs = tm.multilabel_exact_match(
        logits[some].sigmoid(), label[some].nan_to_num(-1).long(), num_labels=3, ignore_index=-1
    )
    assert counted(logits, label).scores().exact_match == pytest.approx(theirs.item())


def test_an_image_without_labels_counts_nowhere():
    """Disagreement: in torchmetrics' exact match, an image without a known label is a match."""
    logits, label = batch(missing=0, images=4)
    label[0] = NAN
    scores = counted(logits, label).scores()
    without = counted(logits[1:], label[1:]).scores()
    assert scores.exact_match == without.exact_match
    assert (scores.images, scores.unlabelled_images) == (4, 1)


def test_one_class_only_is_undefined():
    """Disagreement: torchmetrics warns and gives 0; scikit-learn warns and gives NaN."""
    logits = torch.tensor([[1.0, 1.0, 1.0], [2.0, -1.0, 0.0]])
    label = torch.tensor([[1.0, 1.0, NAN], [1.0, 0.0, NAN]])
    scores = counted(logits, label).scores()
    assert math.isnan(scores.auroc["edema"])
    assert scores.auroc["nodule"] == 1
    assert math.isnan(scores.auroc["mass"])
    assert scores.average_precision["edema"] == 1  # positives alone are enough
    assert math.isnan(scores.average_precision["mass"])
    assert scores.mean_average_precision == 1
    assert math.isnan(scores.accuracy["mass"])
    assert scores.mean_auroc == 1
    with pytest.warns(UserWarning, match="No negative samples"):
        assert tm.binary_auroc(logits[:, 0], label[:, 0].long()).item() == 0


def test_all_missing():
    scores = counted(torch.zeros(2, 3), torch.full((2, 3), NAN)).scores()
    assert math.isnan(scores.exact_match)
    assert math.isnan(scores.mean_accuracy)
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False))["exact_match"] is None


@pytest.mark.parametrize("score", [-2.0, 0.0, 3.0, math.inf, -math.inf])
@pytest.mark.parametrize("truth", [[1.0, 0.0, 0.0, 1.0, 0.0], [1.0], [0.0]])
def test_scores_that_are_all_alike_equal_scikit_learn(score, truth):
    """A model that says one thing of every image, and a single image."""
    label = torch.tensor(truth)[:, None].repeat(1, 3)
    scores = counted(torch.full_like(label, score), label).scores()
    finite = np.full(len(truth), np.clip(score, -9, 9))  # scikit-learn ranks no infinity
    accuracy = sk.accuracy_score(truth, finite > 0)
    for name in NAMES:
        if len(set(truth)) == 2:
            assert scores.auroc[name] == sk.roc_auc_score(truth, finite) == 0.5
        else:
            assert math.isnan(scores.auroc[name])
        if any(truth):
            assert scores.average_precision[name] == pytest.approx(
                sk.average_precision_score(truth, finite)
            )
        else:
            assert math.isnan(scores.average_precision[name])
        assert scores.accuracy[name] == pytest.approx(accuracy)
    assert scores.exact_match == pytest.approx(accuracy)


def test_a_nan_logit_is_not_ranked_and_never_right():
    logits, label = batch(missing=0)
    whole = counted(logits, label).scores()
    logits[0, 0], label[0, 0] = NAN, 0
    label[:, 1] = 1  # no negative: without AUROC, whatever the logits are
    scores = counted(logits, label).scores()
    assert math.isnan(scores.average_precision["edema"])
    assert math.isnan(scores.auroc["edema"])
    assert not math.isnan(scores.auroc["mass"])
    assert math.isnan(scores.mean_auroc)
    assert math.isnan(scores.mean_average_precision)
    right = (logits[1:, 0] > 0) == label[1:, 0].bool()
    assert scores.accuracy["edema"] == pytest.approx(right.sum().item() / 20)
    assert scores.to_dict()["mean_auroc"] is None
    assert "mean" in str(scores)
    assert not math.isnan(whole.mean_auroc)


def test_logits_that_are_all_nan_match_nothing():
    scores = counted(torch.full((4, 3), NAN), torch.zeros(4, 3)).scores()
    assert scores.exact_match == 0
    assert scores.mean_accuracy == 0
    assert math.isnan(scores.mean_auroc)


def test_a_nan_logit_where_no_label_is_known_counts_nowhere():
    logits, label = batch(missing=0)
    label[0, 0] = NAN
    expected = counted(logits, label).scores()
    logits[0, 0] = NAN
    assert counted(logits, label).scores() == expected


@pytest.mark.parametrize("cut", [0, 1, 13])
def test_uneven_parts_and_order(cut):
    logits, label = batch()
    whole = counted(logits, label)
    both = counted(logits[cut:], label[cut:]) + counted(logits[:cut], label[:cut])
    assert both.scores().to_dict() == whole.scores().to_dict()
    again = MultilabelCounts.from_rows(whole.rows, like=MultilabelCounts(NAMES))
    assert again.scores().to_dict() == whole.scores().to_dict()


def test_threshold():
    logits = torch.tensor([[0.5, 1.5, 0.0]])  # probabilities 0.62, 0.82, 0.5
    scores = counted(logits, torch.ones(1, 3), threshold=0.7).scores()
    assert scores.accuracy == {"edema": 0.0, "nodule": 1.0, "mass": 0.0}
    with pytest.raises(SpecError, match="they differ in threshold"):
        counted(logits, torch.ones(1, 3)) + counted(logits, torch.ones(1, 3), threshold=0.7)


@pytest.mark.parametrize("shape", [(2, 4), (2,), (3, 3), (2, 3, 1)])
def test_wrong_shapes_name_both(shape):
    with pytest.raises(SpecError) as error:
        MultilabelCounts(NAMES).update(torch.zeros(2, 3), torch.zeros(shape))
    assert "(2, 3)" in str(error.value)
    assert str(shape) in str(error.value)


def test_wrong_use():
    with pytest.raises(SpecError, match="floating"):
        MultilabelCounts(NAMES).update(torch.zeros(2, 3).long(), torch.zeros(2, 3))
    with pytest.raises(SpecError, match="distinct"):
        MultilabelCounts(["a", "a"])
    with pytest.raises(DataError, match="no image has been counted"):
        MultilabelCounts(NAMES).scores()


def test_text():
    scores = counted(*batch()).scores()
    assert str(scores).startswith("20 images, ")
    assert "predicted above probability 0.5" in str(scores)
    auroc, precision = scores.auroc["edema"], scores.average_precision["edema"]
    assert f"| edema | {auroc:.4f} | {precision:.4f} |" in scores.to_markdown()
