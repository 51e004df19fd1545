"""The further scores against torchmetrics, scikit-learn and MMSegmentation's formulas; images."""

from __future__ import annotations

import json
import math
import warnings

import monai.metrics as mm
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import sklearn.metrics as sk
import torch
import torchmetrics.functional.classification as tm
import torchmetrics.functional.segmentation as tms
from scipy import stats

from transferseg.errors import DataError, SpecError
from transferseg.metrics import SegmentationCounts, distribution

K = 4
NAMES = ("background", "lung", "heart", "line")


def batch(seed, images=5, classes=K):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (images, 7, 6), generator=generator)
    wrong = torch.rand(target.shape, generator=generator) < 0.3
    other = torch.randint(0, classes, target.shape, generator=generator)
    return torch.where(wrong, other, target), target


def counted(prediction, target, mode="multiclass", names=NAMES):
    counts = SegmentationCounts(names, mode=mode)
    counts.update_masks(prediction, target)
    return counts


def mmseg(prediction, target, classes, ignore_index=255):
    """MMSegmentation 1.x, IoUMetric: intersect_and_union, total_area_to_metrics, with numpy."""
    keep = target != ignore_index
    prediction, target = prediction[keep].float(), target[keep].float()
    histogram = {"bins": classes, "min": 0, "max": classes - 1}
    intersect = torch.histc(prediction[prediction == target], **histogram).numpy()
    said = torch.histc(prediction, **histogram).numpy()
    label = torch.histc(target, **histogram).numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "aAcc": intersect.sum() / label.sum(),
            "IoU": intersect / (said + label - intersect),
            "Acc": intersect / label,
            "Dice": 2 * intersect / (said + label),
            "Precision": intersect / said,
            "Recall": intersect / label,
        }


@pytest.mark.parametrize("seed", range(3))
def test_mmsegmentations_formulas(seed):
    prediction, target = batch(seed)
    target[:, 0] = 255
    scores, theirs = counted(prediction, target).scores(), mmseg(prediction, target, K)
    pairs = {"IoU": "iou", "Acc": "recall", "Dice": "dice", "Precision": "precision"}
    for name, ours in pairs.items():
        np.testing.assert_allclose(list(getattr(scores, ours).values()), theirs[name], rtol=1e-6)
    assert scores.accuracy == pytest.approx(theirs["aAcc"])
    assert scores.mean_accuracy == scores.mean_recall == pytest.approx(theirs["Acc"].mean())
    assert scores.mean_iou == pytest.approx(theirs["IoU"].mean())


def test_mmsegmentation_averages_an_absent_class_that_is_predicted():
    """Disagreement: its IoU is 0 there and in mIoU, since only 0 / 0 is left out; here "zero"."""
    prediction, target = torch.tensor([[[0, 1, 2]]]), torch.tensor([[[0, 1, 1]]])
    theirs = mmseg(prediction, target, K)
    assert np.nanmean(theirs["IoU"]) == pytest.approx((1 + 0.5 + 0) / 3)
    counts = counted(prediction, target)
    assert counts.scores().mean_iou == pytest.approx((1 + 0.5) / 2)
    without = counts.scores(classes=NAMES[:3], empty="zero")
    assert without.mean_iou == pytest.approx(np.nanmean(theirs["IoU"]))


@pytest.mark.parametrize("seed", range(3))
def test_specificity_kappa_and_weighted_iou_equal_the_oracles(seed):
    prediction, target = batch(seed)
    scores, flat = counted(prediction, target).scores(), (target.flatten(), prediction.flatten())
    theirs = tm.multiclass_specificity(prediction, target, num_classes=K, average="none")
    np.testing.assert_allclose(list(scores.specificity.values()), theirs.numpy(), rtol=1e-6)
    assert scores.mean_specificity == pytest.approx(theirs.mean().item())
    assert scores.overall_kappa == pytest.approx(sk.cohen_kappa_score(*flat))
    alone = [sk.cohen_kappa_score(flat[0] == k, flat[1] == k) for k in range(K)]
    assert list(scores.kappa.values()) == pytest.approx(alone)
    assert scores.mean_kappa == pytest.approx(np.mean(alone))
    weighted = tm.multiclass_jaccard_index(prediction, target, num_classes=K, average="weighted")
    assert scores.frequency_weighted_iou == pytest.approx(weighted.item())
    some = counted(prediction, target).scores(classes=NAMES[1:])
    part = [(target == k).sum().item() for k in range(1, K)]
    expected = np.average([scores.iou[name] for name in NAMES[1:]], weights=part)
    assert some.frequency_weighted_iou == pytest.approx(expected)
    assert some.overall_kappa == scores.overall_kappa


def test_per_image_is_each_image_alone():
    prediction, target = batch(1)
    scores = counted(prediction, target).scores("per_image")
    flat = zip(target.flatten(1), prediction.flatten(1), strict=True)
    kappas = [sk.cohen_kappa_score(t, p) for t, p in flat]
    assert scores.overall_kappa == pytest.approx(np.mean(kappas))
    weighted = [
        tm.multiclass_jaccard_index(p, t, num_classes=K, average="weighted").item()
        for p, t in zip(prediction, target, strict=True)
    ]
    assert scores.frequency_weighted_iou == pytest.approx(np.mean(weighted))


def test_kappa_of_independent_classes():
    prediction, target = (mask % 2 for mask in batch(2, classes=2))
    pair = [torch.stack([mask, mask.flip(0)], dim=1) for mask in (prediction, target)]
    scores = counted(*pair, mode="multilabel", names=("a", "b")).scores()
    theirs = [sk.cohen_kappa_score(*(m[:, k].flatten() for m in pair)) for k in (0, 1)]
    assert list(scores.kappa.values()) == pytest.approx(theirs)
    assert scores.overall_kappa == pytest.approx(np.mean(theirs))


def test_large_counts_do_not_overflow():
    """Ten thousand images of a million pixels: products of counts are beyond 64 bits."""
    rows = torch.tensor([[[4 * 10**9, 10**9, 2 * 10**9, 3 * 10**9]]])
    like = SegmentationCounts(["a"], mode="binary")
    scores = SegmentationCounts.from_rows(rows, like=like).scores()
    small = SegmentationCounts.from_rows(rows // 10**9, like=like).scores()
    assert scores.overall_kappa == pytest.approx(small.overall_kappa)
    assert scores.overall_kappa == pytest.approx(2 * (4 * 3 - 2) / (5 * 4 + 6 * 5))


def test_volume_differences_by_hand():
    """Half too much in one image, all missed in the next, nothing to find in the last."""
    target = torch.tensor([[[1, 1, 0, 0]], [[1, 1, 0, 0]], [[0, 0, 0, 0]]]).unsqueeze(1)
    prediction = torch.tensor([[[1, 1, 1, 0]], [[0, 0, 0, 0]], [[0, 0, 0, 1]]]).unsqueeze(1)
    counts = counted(prediction, target, mode="binary", names=("a",))
    per_image = counts.scores("per_image")
    assert per_image.volume_difference == {"a": (0.5 - 1) / 2}
    assert per_image.absolute_volume_difference == {"a": (0.5 + 1) / 2}
    assert counts.scores().volume_difference == {"a": 0.0}  # one pixel each way too many, one less
    values = counts.image_scores("volume_difference").of("a")
    np.testing.assert_array_equal(values, [0.5, -1, math.nan])


def test_three_masks_and_the_dice_of_four_libraries():
    """A polyp found exactly, one of 25 pixels missed, an image without one: the page's example."""
    target, prediction = torch.zeros(3, 1, 64, 64).long(), torch.zeros(3, 1, 64, 64).long()
    target[0, :, :40, :40] = prediction[0, :, :40, :40] = 1
    target[1, :, 9:14, 9:14] = 1
    theirs = mmseg(prediction[:, 0], target[:, 0], 2)["Dice"]
    assert round(float(theirs.mean()), 4) == 0.9955
    stats_of = smp.metrics.get_stats(prediction, target, mode="binary")
    assert round(smp.metrics.f1_score(*stats_of, reduction="micro").item(), 4) == 0.9922
    monai = mm.DiceMetric()
    monai(prediction.float(), target.float())
    assert monai.aggregate().item() == 0.5
    each = tms.dice_score(
        prediction, target, num_classes=1, average="none", input_format="one-hot",
        aggregation_level="samplewise",
    )  # fmt: skip
    assert each.nanmean().item() == 0.5

    polyp = counted(prediction, target, mode="binary", names=("polyp",))
    both = counted(prediction[:, 0], target[:, 0], names=("background", "polyp"))
    assert round(both.scores().mean_dice, 4) == 0.9955  # mmseg
    assert round(polyp.scores().mean_dice, 4) == 0.9922  # smp
    assert polyp.scores("per_image").mean_dice == 0.5  # MONAI and torchmetrics
    assert round(polyp.scores("per_image", empty="one").mean_dice, 4) == 0.6667
    assert round(polyp.scores("per_image", empty="zero").mean_dice, 4) == 0.3333
    assert polyp.scores("per_image").empty_images == {"polyp": 1}


def test_image_scores_and_their_distribution():
    prediction, target = batch(0)
    counts = counted(prediction, target)
    scores = counts.image_scores("dice", classes=["lung", "heart"])
    for image, (p, t) in enumerate(zip(prediction, target, strict=True)):
        alone = sk.f1_score(t.flatten(), p.flatten(), labels=[1, 2], average=None)
        np.testing.assert_allclose(scores.values[image], alone)
    np.testing.assert_allclose(scores.macro, scores.values.mean(1))
    assert scores.distribution("lung").mean == pytest.approx(
        counts.scores("per_image").dice["lung"]
    )
    whole = scores.distribution(quantiles=[0.1, 0.5])
    assert whole.std == pytest.approx(stats.tstd(scores.macro))
    assert whole.quantiles == pytest.approx(
        {level: np.quantile(scores.macro, level) for level in (0.1, 0.5)}
    )
    with pytest.raises(SpecError, match="Did you mean 'dice'"):
        counts.image_scores("dic")
    with pytest.raises(SpecError, match="Did you mean 'lung'"):
        scores.of("lungs")


def test_distributions_of_few_and_of_undefined_values():
    some = distribution([0.5, math.nan])
    assert (some.n, some.undefined, some.mean) == (1, 1, 0.5)
    assert math.isnan(some.std)
    assert set(some.quantiles.values()) == {0.5}
    none = distribution([math.nan])
    assert json.loads(json.dumps(none.to_dict(), allow_nan=False)) == {
        "n": 0, "undefined": 1, "mean": None, "std": None,
        "quantiles": dict.fromkeys(["0.0", "0.25", "0.5", "0.75", "1.0"]),
    }  # fmt: skip
    with pytest.raises(SpecError, match=r"quantiles must lie in 0\.\.1"):
        distribution([0.5], quantiles=[50])


def test_overall_scores_of_each_image_and_their_distribution():
    prediction, target = batch(3)
    counts = counted(prediction, target)
    pairs = list(zip(prediction, target, strict=True))
    oracles = {
        "accuracy": [sk.accuracy_score(t.flatten(), p.flatten()) for p, t in pairs],
        "overall_kappa": [sk.cohen_kappa_score(t.flatten(), p.flatten()) for p, t in pairs],
        "frequency_weighted_iou": [
            tm.multiclass_jaccard_index(p, t, num_classes=K, average="weighted").item()
            for p, t in pairs
        ],
    }
    for name, expected in oracles.items():
        scores = counts.image_scores(name)
        np.testing.assert_allclose(scores.of(name), expected, rtol=1e-6)
        spread = scores.distribution()
        assert spread.mean == pytest.approx(getattr(counts.scores("per_image"), name))
        assert spread.std == pytest.approx(stats.tstd(expected))
    balanced = [sk.balanced_accuracy_score(t.flatten(), p.flatten()) for p, t in pairs]
    np.testing.assert_allclose(counts.image_scores("recall").macro, balanced)
    some = counts.image_scores("frequency_weighted_iou", classes=["lung"])
    np.testing.assert_allclose(some.macro, counts.image_scores("iou").of("lung"))
    with pytest.raises(SpecError, match="accuracy is of all classes together: leave classes out"):
        counts.image_scores("accuracy", classes=["lung"])


def volumes(prediction, target):
    """(predicted - true) / true of the foreground of each image, NumPy alone."""
    said, true = (mask.reshape(len(mask), -1).astype(float).sum(1) for mask in (prediction, target))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(true > 0, (said - true) / true, np.nan), said.sum() / true.sum() - 1


@pytest.mark.parametrize("seed", range(3))
def test_volume_differences_equal_sums_of_voxels(seed):
    rng = np.random.default_rng(seed)
    prediction, target = (rng.random((6, 1, 5, 4)) < rng.random((6, 1, 1, 1)) for _ in "pt")
    target[0], prediction[1] = False, False
    prediction[2] = target[2] = False
    pair = (torch.from_numpy(mask) for mask in (prediction, target))
    counts = counted(*pair, mode="binary", names=("a",))
    each, pooled = volumes(prediction, target)
    np.testing.assert_allclose(counts.image_scores("volume_difference").of("a"), each)
    np.testing.assert_allclose(
        counts.image_scores("absolute_volume_difference").of("a"), np.abs(each)
    )
    assert counts.scores().volume_difference["a"] == pytest.approx(pooled)
    assert counts.scores("per_image").mean_volume_difference == pytest.approx(np.nanmean(each))


@pytest.mark.parametrize("truth", [0, 1])
@pytest.mark.parametrize("said", [0, 1])
@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (1, 1, 1, 1)])
def test_masks_of_one_value(truth, said, shape):
    """Empty and full masks, all four, and one pixel: who agrees, and who does not."""
    prediction, target = torch.full(shape, said), torch.full(shape, truth)
    scores = counted(prediction, target, mode="binary", names=("a",)).scores()
    p, t = prediction.flatten(), target.flatten()
    assert scores.accuracy == sk.accuracy_score(t, p) == tm.binary_accuracy(p, t).item()
    # Disagreement: without a negative torchmetrics' specificity is 0, here it is undefined.
    theirs = tm.binary_specificity(p, t).item()
    assert theirs == (0 if truth else 1 - said)
    assert scores.specificity["a"] == pytest.approx(math.nan if truth else theirs, nan_ok=True)
    # Agreement by chance alone is certain: no kappa, in all three
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kappas = (sk.cohen_kappa_score(t, p), tm.binary_cohen_kappa(p, t).item())
    assert scores.kappa["a"] == pytest.approx(math.nan if truth == said else 0, nan_ok=True)
    assert kappas == pytest.approx((scores.kappa["a"],) * 2, nan_ok=True)
    # Weights of a ground truth that is not there: undefined
    weighted = scores.frequency_weighted_iou
    assert weighted == pytest.approx(float(said) if truth else math.nan, nan_ok=True)


def test_one_class_alone_of_several():
    """A prediction and a truth of background only, among four classes."""
    empty = torch.zeros(2, 4, 4).long()
    scores = counted(empty, empty).scores()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert math.isnan(sk.cohen_kappa_score(empty.flatten(), empty.flatten()))
        weighted = tm.multiclass_jaccard_index(empty, empty, num_classes=K, average="weighted")
    assert math.isnan(scores.overall_kappa)
    assert scores.frequency_weighted_iou == weighted.item() == 1
    assert (scores.accuracy, scores.mean_accuracy, scores.mean_iou) == (1, 1, 1)
    assert scores.absent == NAMES[1:]
    assert math.isnan(scores.specificity["background"])
    assert scores.specificity["lung"] == 1


def test_images_that_were_missed_are_counted():
    """Their precision is in no mean, which would flatter a model that says little."""
    target = torch.tensor([[[1, 1]], [[1, 0]], [[0, 0]], [[255, 255]]]).unsqueeze(1)
    prediction = torch.tensor([[[1, 1]], [[0, 0]], [[0, 1]], [[0, 0]]]).unsqueeze(1)
    counts = counted(prediction, target, mode="binary", names=("a",))
    scores = counts.scores("per_image")
    assert scores.precision == {"a": 1.0}
    assert scores.missed_images == {"a": 1}
    assert (scores.false_alarm_images, scores.ignored_images) == ({"a": 1}, {"a": 1})
    assert scores.to_dict()["missed_images"] == {"a": 1}


def test_distributions_of_infinite_distances_and_of_tables():
    some = distribution([1.0, math.inf, math.inf, 3.0], quantiles=[0, 0.2, 0.5, 0.9, 1])
    assert list(some.quantiles.values()) == [1, pytest.approx(2.2), math.inf, math.inf, math.inf]
    assert some.mean == math.inf
    counts = counted(*batch(0))
    with pytest.raises(DataError, match=r"shape \(5, 4\); take one class"):
        distribution(counts.image_scores("dice").values)
