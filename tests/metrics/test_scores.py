"""Scores against torchmetrics and scikit-learn; each disagreement is named where it is."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
import torchmetrics.functional.classification as tm
import torchmetrics.functional.segmentation as tms

from transferseg.errors import DataError, SpecError
from transferseg.metrics import SegmentationCounts, SegmentationScores

K = 3
NAMES = ("background", "lung", "heart")
SCORES = ("iou", "dice", "precision", "recall")


def random_masks(seed, classes=K, images=4):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, classes, (images, 6, 5), generator=generator) for _ in "pt")


def multiclass(prediction, target, **options):
    counts = SegmentationCounts(NAMES, mode="multiclass", **options)
    counts.update_masks(prediction, target)
    return counts


def binary(prediction, target):
    counts = SegmentationCounts(["polyp"], mode="binary")
    counts.update_masks(prediction.unsqueeze(1), target.unsqueeze(1))
    return counts


def values(scores, name):
    return np.array(list(getattr(scores, name).values()))


def sklearn_scores(prediction, target, *, labels, zero_division):
    common = {"labels": labels, "average": None, "zero_division": zero_division}
    precision, recall, f1, _ = sk.precision_recall_fscore_support(target, prediction, **common)
    return {
        "iou": sk.jaccard_score(target, prediction, **common),
        "dice": f1,
        "precision": precision,
        "recall": recall,
    }


def torchmetrics_scores(prediction, target, **options):
    common = {"num_classes": K, "average": "none"} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "iou": tm.multiclass_jaccard_index(prediction, target, **common).numpy(),
            "dice": tm.multiclass_f1_score(prediction, target, **common).numpy(),
            "precision": tm.multiclass_precision(prediction, target, **common).numpy(),
            "recall": tm.multiclass_recall(prediction, target, **common).numpy(),
        }


@pytest.mark.parametrize("seed", range(3))
def test_pooled_multiclass_equals_both_oracles(seed):
    prediction, target = random_masks(seed)
    scores = multiclass(prediction, target).scores()
    theirs = sklearn_scores(
        prediction.flatten(), target.flatten(), labels=range(K), zero_division=0
    )
    others = torchmetrics_scores(prediction, target)
    for name in SCORES:
        np.testing.assert_allclose(values(scores, name), theirs[name])
        np.testing.assert_allclose(values(scores, name), others[name], rtol=1e-5)
    assert scores.mean_iou == pytest.approx(theirs["iou"].mean())
    assert scores.mean_dice == pytest.approx(theirs["dice"].mean())
    assert scores.accuracy == pytest.approx(
        sk.accuracy_score(target.flatten(), prediction.flatten())
    )


def test_pooled_multiclass_with_ignored_pixels():
    prediction, target = random_masks(3)
    target[:, :2] = 255
    scores = multiclass(prediction, target).scores()
    others = torchmetrics_scores(prediction, target, ignore_index=255)
    for name in SCORES:
        np.testing.assert_allclose(values(scores, name), others[name], rtol=1e-5)
    keep = target != 255
    assert scores.accuracy == pytest.approx(sk.accuracy_score(target[keep], prediction[keep]))


@pytest.mark.parametrize("seed", range(3))
def test_per_image_equals_each_image_alone(seed):
    prediction, target = random_masks(seed)
    scores = multiclass(prediction, target).scores("per_image")
    alone = [
        sklearn_scores(p.flatten(), t.flatten(), labels=range(K), zero_division=0)
        for p, t in zip(prediction, target, strict=True)
    ]
    for name in SCORES:
        expected = np.mean([image[name] for image in alone], axis=0)
        np.testing.assert_allclose(values(scores, name), expected)
    theirs = tms.mean_iou(prediction, target, num_classes=K, per_class=True, input_format="index")
    np.testing.assert_allclose(values(scores, "iou"), theirs.mean(0).numpy(), rtol=1e-5)
    theirs = tms.dice_score(
        prediction, target, num_classes=K, average="none", input_format="index",
        aggregation_level="samplewise",
    )  # fmt: skip
    np.testing.assert_allclose(values(scores, "dice"), theirs.mean(0).numpy(), rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_binary_and_multilabel_equal_both_oracles(seed):
    prediction, target = random_masks(seed, classes=2)
    scores = binary(prediction, target).scores()
    p, t = prediction.flatten(), target.flatten()
    assert scores.mean_iou == pytest.approx(sk.jaccard_score(t, p))
    assert scores.mean_dice == pytest.approx(sk.f1_score(t, p))
    assert scores.mean_iou == pytest.approx(tm.binary_jaccard_index(p, t).item())
    assert scores.mean_precision == pytest.approx(tm.binary_precision(p, t).item())
    assert scores.mean_recall == pytest.approx(tm.binary_recall(p, t).item())
    assert scores.accuracy == pytest.approx(tm.binary_accuracy(p, t).item())

    generator = torch.Generator().manual_seed(seed)
    prediction, target = (torch.randint(0, 2, (2, K, 4, 4), generator=generator) for _ in "pt")
    counts = SegmentationCounts(NAMES, mode="multilabel")
    counts.update_masks(prediction, target)
    options = {"num_labels": K, "average": "none"}
    theirs = {
        "iou": tm.multilabel_jaccard_index(prediction, target, **options),
        "dice": tm.multilabel_f1_score(prediction, target, **options),
        "precision": tm.multilabel_precision(prediction, target, **options),
        "recall": tm.multilabel_recall(prediction, target, **options),
    }
    for name in SCORES:
        np.testing.assert_allclose(values(counts.scores(), name), theirs[name].numpy(), rtol=1e-5)
    assert counts.scores().accuracy == pytest.approx(
        tm.multilabel_accuracy(prediction, target, num_labels=K, average="micro").item()
    )


def test_absent_class_without_false_alarms():
    prediction, target = random_masks(0, classes=2)
    counts = multiclass(prediction, target)
    scores = counts.scores()
    assert math.isnan(scores.iou["heart"])
    assert (scores.present, scores.absent) == (("background", "lung"), ("heart",))
    theirs = torchmetrics_scores(prediction, target)
    assert scores.mean_iou == pytest.approx(theirs["iou"][:2].mean())
    # Disagreement: torchmetrics' classification metrics give an absent class 0 when unreduced ...
    assert theirs["iou"][2] == 0
    # ... and its segmentation metric -1; both leave it out of the macro mean, as we do.
    per_class = tms.mean_iou(
        prediction, target, num_classes=K, per_class=True, input_format="index"
    )
    assert (per_class[:, 2] == -1).all()
    macro = tm.multiclass_jaccard_index(prediction, target, num_classes=K, average="macro")
    assert scores.mean_iou == pytest.approx(macro.item())
    # scikit-learn's zero_division is our policy here
    for empty, zero_division in (("one", 1), ("zero", 0)):
        theirs = sklearn_scores(
            prediction.flatten(), target.flatten(), labels=range(K), zero_division=zero_division
        )
        for name in SCORES:
            ours = values(counts.scores(empty=empty), name)
            np.testing.assert_allclose(ours, theirs[name])


def test_absent_class_with_false_alarms():
    prediction, target = torch.tensor([[[0, 2, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]])
    counts = multiclass(prediction, target)
    excluded = counts.scores()
    # Disagreement: in both oracles an absent class with false alarms has IoU 0 and is averaged;
    # here it is out of the mean over present classes, and the false alarm is reported.
    assert math.isnan(excluded.iou["heart"])
    assert excluded.mean_iou == pytest.approx((0.5 + 1) / 2)
    assert excluded.false_alarm_images == {"background": 0, "lung": 0, "heart": 1}
    macro = tm.multiclass_jaccard_index(prediction, target, num_classes=K, average="macro")
    assert macro.item() == pytest.approx((0.5 + 1 + 0) / 3)
    assert counts.scores(empty="one").mean_iou == pytest.approx(macro.item())
    assert counts.scores(empty="zero").mean_iou == pytest.approx(macro.item())
    # Disagreement: scikit-learn's recall of an empty truth is zero_division, whatever is predicted;
    # here a false alarm scores 0 in all four.
    theirs = sklearn_scores(
        prediction.flatten(), target.flatten(), labels=range(K), zero_division=1
    )
    assert theirs["recall"][2] == 1
    assert counts.scores(empty="one").recall["heart"] == 0
    for name in ("iou", "dice", "precision"):
        np.testing.assert_allclose(values(counts.scores(empty="one"), name), theirs[name])


@pytest.mark.parametrize("empty", ["exclude", "one", "zero"])
def test_empty_prediction(empty):
    target = torch.tensor([[[0, 1, 1]]])
    scores = binary(torch.zeros_like(target), target).scores(empty=empty)
    assert (scores.mean_iou, scores.mean_dice, scores.mean_recall) == (0, 0, 0)
    # Disagreement: torchmetrics' precision is 0, scikit-learn's is zero_division; it is undefined.
    assert math.isnan(scores.mean_precision)
    assert tm.binary_precision(torch.zeros_like(target), target).item() == 0


def test_empty_ground_truth():
    """Disagreement: torchmetrics' binary IoU of two empty masks is 0, the "zero" policy here."""
    empty = torch.zeros(1, 2, 2, dtype=torch.long)
    counts = binary(empty, empty)
    assert math.isnan(counts.scores().mean_iou)
    assert counts.scores(empty="one").mean_iou == 1
    assert counts.scores(empty="zero").mean_iou == 0
    assert tm.binary_jaccard_index(empty, empty).item() == 0
    assert counts.scores().empty_images == {"polyp": 1}
    assert counts.scores().accuracy == 1


@pytest.mark.parametrize("scheme", ["pooled", "per_image"])
@pytest.mark.parametrize("empty", ["exclude", "one", "zero"])
def test_all_ignored_scores_nothing_under_any_policy(scheme, empty):
    target = torch.full((2, 3, 3), 255)
    scores = multiclass(torch.zeros_like(target), target).scores(scheme, empty=empty)
    assert all(math.isnan(value) for name in SCORES for value in getattr(scores, name).values())
    assert math.isnan(scores.mean_iou)
    assert math.isnan(scores.accuracy)
    assert scores.ignored_images == dict.fromkeys(NAMES, 2)
    assert scores.empty_images == dict.fromkeys(NAMES, 0)
    assert scores.present == ()
    assert "undefined" in str(scores)


def test_pooled_differs_from_per_image():
    """A large image of IoU 8/10 and a small one of IoU 0/2: 8/12 pooled, 0.4 per image."""
    large = torch.tensor([[[1] * 8 + [0] * 2]]), torch.ones(1, 1, 10)
    small = torch.tensor([[[1, 0]]]), torch.tensor([[[0, 1]]])
    counts = binary(*large) + binary(*small)
    assert counts.scores("pooled").iou == {"polyp": pytest.approx(8 / 12)}
    assert counts.scores("per_image").iou == {"polyp": pytest.approx(0.4)}
    assert counts.scores("pooled").accuracy == pytest.approx(8 / 12)
    assert counts.scores("per_image").accuracy == pytest.approx(0.4)


def test_per_image_policies_by_hand():
    """IoU 1/2 in an image with the class; of two without it, one is clean and one is not."""
    prediction = torch.tensor([[[1, 0]], [[0, 0]], [[1, 0]]])
    target = torch.tensor([[[1, 1]], [[0, 0]], [[0, 0]]])
    counts = binary(prediction, target)
    by_policy = {
        e: counts.scores("per_image", empty=e).mean_iou for e in ("exclude", "one", "zero")
    }
    assert by_policy == pytest.approx({"exclude": 1 / 2, "one": (1 / 2 + 1) / 3, "zero": 1 / 6})
    scores = counts.scores("per_image")
    assert (scores.empty_images, scores.false_alarm_images) == ({"polyp": 2}, {"polyp": 1})
    # pooled, the false alarm is in the union of a class that is present
    assert counts.scores("pooled").mean_iou == pytest.approx(1 / 3)


def test_a_selection_of_classes():
    prediction, target = random_masks(0)
    counts = multiclass(prediction, target)
    every, some = counts.scores(), counts.scores(classes=["heart", "lung"])
    assert some.classes == ("heart", "lung")
    assert some.iou == {"heart": every.iou["heart"], "lung": every.iou["lung"]}
    assert some.mean_iou == pytest.approx((every.iou["heart"] + every.iou["lung"]) / 2)
    assert some.accuracy == every.accuracy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "per-image"}, "Did you mean 'per_image'"),
        ({"empty": "nan"}, "unknown empty policy 'nan'"),
        ({"classes": ["lungs"]}, "Did you mean 'lung'"),
        ({"classes": []}, "one or more distinct names"),
        ({"classes": "lung"}, "one or more distinct names in a list, got 'lung'"),
        ({"classes": ["lung", "lung"]}, "one or more distinct names"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(SpecError, match=message):
        multiclass(*random_masks(0)).scores(**options)


def test_nothing_counted():
    with pytest.raises(DataError, match="no image has been counted"):
        SegmentationCounts(2, mode="multiclass").scores()


def test_labels_outside_the_classes_are_found():
    prediction, target = random_masks(0)
    target[2, 0, 0] = 7
    with pytest.raises(
        DataError, match=r"ground truth of 1 image\(s\).* number 2.* outside 0\.\.2"
    ):
        multiclass(prediction, target).scores()
    prediction, target = random_masks(0)
    prediction[1, 0, 0] = 255
    with pytest.raises(DataError, match=r"prediction of 1 image\(s\)"):
        multiclass(prediction, target).scores()
    target[1, 0, 0] = 255  # under an ignored pixel the prediction does not matter
    multiclass(prediction, target).scores()


def test_text_says_what_it_is():
    prediction, target = random_masks(0, classes=2)
    scores = multiclass(prediction, target).scores("per_image", classes=["lung", "heart"])
    first, second, *_ = str(scores).splitlines()
    assert first == "per image, the mean over 4 images; classes: lung, heart"
    assert second == (
        "mean over classes with ground truth: 1 present, 1 absent (heart); "
        "without ground truth: left out"
    )
    pooled = multiclass(prediction, target).scores(empty="zero")
    assert str(pooled).startswith("pooled over 4 images; classes: background, lung, heart")
    assert "mean over classes: 2 present, 1 absent (heart); without ground truth: 0" in str(pooled)
    markdown = scores.to_markdown()
    assert "per image, the mean over 4 images" in markdown
    assert f"| lung | {scores.iou['lung']:.4f} |" in markdown
    assert "| heart | - |" in markdown


def test_to_dict_is_strict_json():
    scores = multiclass(*random_masks(0, classes=2)).scores()
    restored = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert restored["scheme"] == "pooled"
    assert restored["empty"] == "exclude"
    assert restored["iou"]["heart"] is None
    assert restored["mean_iou"] == scores.mean_iou
    assert restored["absent"] == ["heart"]


def test_result_is_frozen():
    scores = multiclass(*random_masks(0)).scores()
    assert isinstance(scores, SegmentationScores)
    with pytest.raises(AttributeError):
        scores.scheme = "pooled"
