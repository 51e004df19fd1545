"""Surface distances against MONAI and by brute force; each disagreement is named where it is."""

from __future__ import annotations

import json
import math
import warnings

import monai.metrics as mm
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.errors import DataError, SpecError
from transferseg.metrics import SurfaceCounts, bootstrap_interval, surface_distances

# an argument that MONAI 1.6 passes to itself
pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")

SHAPES = {(16, 20): (0.5, 2.0), (8, 10, 12): (3.0, 0.7, 1.1)}


def blobs(seed, shape):
    """Two smooth masks that overlap, some of them at the border."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    centre = np.array(shape) * rng.uniform(0.2, 0.8, len(shape))
    masks = []
    for _ in "pt":
        centre = centre + rng.normal(0, 1, len(shape))
        masks.append(((grid - centre) ** 2).sum(-1) < rng.uniform(6, 30))
    return masks


def brute(prediction, truth, spacing):
    """The directed distances from every pair of surface pixels, neighbours looked up by hand."""

    def surface(mask):
        padded = np.pad(mask, 1)
        inner = np.ones_like(mask)
        for axis in range(mask.ndim):
            for step in (0, 2):
                window = [slice(1, -1)] * mask.ndim
                window[axis] = slice(step, step + mask.shape[axis])
                inner &= padded[tuple(window)]
        return np.argwhere(mask & ~inner) * np.array(spacing)

    said, real = surface(prediction), surface(truth)
    apart = np.sqrt(((said[:, None] - real[None]) ** 2).sum(-1))
    return apart.min(1), apart.min(0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_equals_monai(shape, spaced, seed):
    prediction, truth = blobs(seed, shape)
    spacing = SHAPES[shape] if spaced else None
    found = surface_distances(prediction, truth, spacing=spacing)
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    options = {"include_background": True, "spacing": spacing}
    theirs = {
        percentile: mm.compute_hausdorff_distance(*pair, percentile=percentile, **options).item()
        for percentile in (50, 95, 100)
    }
    for percentile, expected in theirs.items():
        assert found.hausdorff(percentile) == pytest.approx(expected, rel=1e-5)
    assd = mm.compute_average_surface_distance(*pair, symmetric=True, **options).item()
    assert found.assd == pytest.approx(assd, rel=1e-5)
    for tolerance in (0.0, 0.8, 2.5):
        expected = mm.compute_surface_dice(*pair, class_thresholds=[tolerance], **options).item()
        assert found.surface_dice(tolerance) == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 9999), shape=st.sampled_from([(5, 6), (3, 4, 4)]))
def test_equals_every_pair_of_surface_pixels(seed, shape):
    rng = np.random.default_rng(seed)
    prediction, truth = (rng.random(shape) < 0.6 for _ in "pt")
    spacing = rng.uniform(0.3, 3, len(shape))
    found = surface_distances(prediction, truth, spacing=spacing)
    first, second = brute(prediction, truth, spacing)
    np.testing.assert_allclose(np.sort(found.from_prediction), np.sort(first))
    np.testing.assert_allclose(np.sort(found.from_truth), np.sort(second))
    swapped = surface_distances(truth, prediction, spacing=spacing)
    assert swapped.hausdorff(95) == found.hausdorff(95)
    assert swapped.assd == pytest.approx(found.assd)
    larger = surface_distances(prediction, truth, spacing=2 * spacing)
    assert larger.assd == pytest.approx(2 * found.assd)


def test_hd95_is_the_larger_of_two_percentiles():
    """Disagreement: some take one percentile of both directions' distances together (medpy)."""
    found = surface_distances(np.eye(1, 40), np.r_[np.ones(21), np.zeros(19)][None])
    assert found.hausdorff(95) == pytest.approx(19)
    together = np.percentile(np.concatenate([found.from_prediction, found.from_truth]), 95)
    assert together < 19


def test_empty_masks():
    empty, full = np.zeros((4, 4)), np.ones((4, 4))
    both = surface_distances(empty, empty)
    assert both.both_empty
    for value in (both.hausdorff(), both.hausdorff(95), both.assd, both.surface_dice(1)):
        assert math.isnan(value)
    for one in (surface_distances(empty, full), surface_distances(full, empty)):
        assert one.hausdorff() == one.hausdorff(95) == one.assd == math.inf
        assert one.surface_dice(1) == 0
    # MONAI agrees but for its HD95, which is NaN with one empty mask: a percentile interpolated
    # between infinities
    pairs = [(empty, full), (full, empty), (empty, empty)]
    for pair in ([torch.from_numpy(mask)[None, None] for mask in two] for two in pairs):
        ours = surface_distances(*(mask.numpy()[0, 0] for mask in pair))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hd = mm.compute_hausdorff_distance(*pair, include_background=True)
            hd95 = mm.compute_hausdorff_distance(*pair, percentile=95, include_background=True)
            assd = mm.compute_average_surface_distance(
                *pair, symmetric=True, include_background=True
            )
            dice = mm.compute_surface_dice(*pair, class_thresholds=[1.0], include_background=True)
        theirs = [hd.item(), assd.item(), dice.item()]
        assert [ours.hausdorff(), ours.assd, ours.surface_dice(1)] == pytest.approx(
            theirs, nan_ok=True
        )
        assert math.isnan(hd95.item())


def series():
    """Found, shifted by one; missed; a false alarm; nothing in both."""
    truth, prediction = (torch.zeros(4, 1, 6, 8, dtype=torch.uint8) for _ in "tp")
    truth[0, :, 1:4, 1:4], prediction[0, :, 1:4, 2:5] = 1, 1
    truth[1, :, 2:4, 2:4], prediction[2, :, 2:4, 2:4] = 1, 1
    counts = SurfaceCounts(["lung"], mode="binary", tolerance=0.4, spacing=(1.0, 0.5))
    counts.update_masks(prediction, truth)
    return counts


def test_policies_and_numbers():
    counts = series()
    diagonal = math.hypot(6, 4)
    scores = {policy: counts.scores(one_empty=policy) for policy in
              ("exclude", "diagonal", "infinite")}  # fmt: skip
    found = scores["exclude"]
    assert (found.both_empty, found.missed, found.false_alarms) == (
        {"lung": 1}, {"lung": 1}, {"lung": 1}
    )  # fmt: skip
    assert found.hd["lung"] == pytest.approx(0.5)
    assert scores["diagonal"].hd["lung"] == pytest.approx((0.5 + 2 * diagonal) / 3)
    assert scores["diagonal"].surface_dice["lung"] == pytest.approx(found.mean_surface_dice / 3)
    assert scores["infinite"].hd95["lung"] == math.inf
    assert scores["infinite"].mean_assd == math.inf
    restored = json.loads(json.dumps(scores["infinite"].to_dict(), allow_nan=False))
    assert (restored["hd"]["lung"], restored["one_empty"]) == (None, "infinite")
    assert "one mask empty: the image's diagonal" in str(scores["diagonal"])
    spread = counts.distribution("hd", "lung", one_empty="diagonal")
    assert (spread.n, spread.undefined) == (3, 1)
    assert spread.quantiles[0.5] == pytest.approx(diagonal)
    assert math.isnan(counts.distribution("hd", "lung", one_empty="infinite").std)


def test_classes_and_volumes_of_logits():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 6, 5, generator=generator)
    target = torch.randint(0, 3, (2, 4, 6, 5), generator=generator)
    target[:, 0] = 255
    counts = SurfaceCounts(3, mode="multiclass", spacing=SHAPES[8, 10, 12])
    counts.update(logits, target)
    keep = (target != 255).numpy()
    for image in range(2):
        for k in range(3):
            said = (logits[image].argmax(0) == k).numpy() & keep[image]
            real = (target[image] == k).numpy()
            alone = surface_distances(said, real, spacing=SHAPES[8, 10, 12])
            row = counts.rows[image, k].tolist()
            assert row[:3] == [alone.hausdorff(), alone.hausdorff(95), alone.assd]
            assert row[3] == alone.surface_dice(1.0)


def test_every_scan_has_its_own_spacing():
    """As each alone in a metric of that spacing, in one update of logits and one of masks."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 1, 4, 6, 5, generator=generator)
    target = torch.randint(0, 2, logits.shape, generator=generator)
    spacings = [(3.0, 0.7, 1.1), (1.0, 2.0, 0.5), None]
    options = {"mode": "binary", "tolerance": 1.2, "threshold": 0.4, "ignore_index": None}
    together = SurfaceCounts(1, spacing=(2.0, 2.0, 2.0), **options)
    for scan, truth, spacing in zip(logits.split(1), target.split(1), spacings, strict=True):
        together.update(scan, truth, spacing=spacing)
        together.update_masks(scan.sigmoid() > 0.4, truth, spacing=spacing)
        alone = SurfaceCounts(1, spacing=spacing or (2.0, 2.0, 2.0), **options)
        alone.update(scan, truth)
        for row in together.rows[-2:]:
            assert torch.equal(row, alone.rows[0])
    assert len(together.rows) == 6
    assert len(together.rows[:, 0, 0].unique()) == 3
    with pytest.raises(SpecError, match="spacing must be 3 numbers above 0"):
        together.update(logits, target, spacing=(1.0, 1.0))


def test_wrong_use():
    mask = np.ones((3, 3))
    for spacing in ((1.0,), (1.0, 0.0), (1.0, math.nan), (1.0, -1.0)):
        with pytest.raises(SpecError, match="spacing must be 2 numbers above 0"):
            surface_distances(mask, mask, spacing=spacing)
    with pytest.raises(SpecError, match="one shape"):
        surface_distances(mask, mask[:2])
    with pytest.raises(SpecError, match=r"percentile must lie in 0\.\.100"):
        surface_distances(mask, mask).hausdorff(101)
    for tolerance in (-1, math.inf, math.nan):
        with pytest.raises(SpecError, match="tolerance must be a finite number"):
            surface_distances(mask, mask).surface_dice(tolerance)
        with pytest.raises(SpecError, match="tolerance must be a finite number"):
            SurfaceCounts(1, mode="binary", tolerance=tolerance)
    with pytest.raises(SpecError, match="spacing must be 3"):
        SurfaceCounts(1, mode="binary", spacing=(1, 1, 0))
    volume = torch.zeros(1, 1, 2, 4, 4)
    with pytest.raises(SpecError, match="spacing must be 3 numbers"):
        SurfaceCounts(1, mode="binary", spacing=(1, 1)).update(volume, volume)
    counts = series()
    with pytest.raises(SpecError, match="Did you mean 'diagonal'"):
        counts.scores(one_empty="diagonals")
    with pytest.raises(SpecError, match="unknown score 'dice'"):
        counts.distribution("dice", "lung")
    with pytest.raises(SpecError, match="unknown class 'lungs'"):
        counts.distribution("hd", "lungs")
    counts.reset()
    with pytest.raises(DataError, match="no image has been counted"):
        counts.scores()


@pytest.mark.parametrize("spacing", [0.1, 0.7])
def test_a_distance_at_the_tolerance_agrees_wherever_the_masks_lie(spacing):
    """Three times 0.1 is more than 0.3 in binary, at some places."""
    truth = np.zeros((1, 40))
    truth[0, 0] = 1
    found = [
        surface_distances(np.roll(truth, at + 3), np.roll(truth, at), spacing=(1.0, spacing))
        for at in range(30)
    ]
    tolerance = 3 * spacing if spacing != 0.1 else 0.3
    assert len({distances.hausdorff() for distances in found}) > 1  # by the last digit
    assert {distances.surface_dice(tolerance) for distances in found} == {1.0}
    assert {distances.surface_dice(0.999 * tolerance) for distances in found} == {0.0}


def test_background_is_left_out_of_the_mean():
    target = torch.zeros(2, 6, 6).long()
    target[:, 1:3, 1:3] = 1
    counts = SurfaceCounts(["background", "lung"], mode="multiclass")
    counts.update_masks(target.roll(1, dims=2), target)
    whole, some = counts.scores(), counts.scores(classes=["lung"])
    for name in ("hd", "hd95", "assd", "surface_dice"):
        assert getattr(some, name) == {"lung": getattr(whole, name)["lung"]}
        assert getattr(some, f"mean_{name}") == getattr(whole, name)["lung"]
    assert whole.mean_assd != some.mean_assd
    assert some.missed == {"lung": 0}
    assert some.to_dict()["mean_hd"] == some.mean_hd == 1
    with pytest.raises(SpecError, match="Did you mean 'lung'"):
        counts.scores(classes=["lungs"])


def test_one_pixel_and_full_masks_equal_monai():
    """The smallest and the largest surface there is, and one within the other."""
    one, full = np.zeros((5, 7)), np.ones((5, 7))
    one[2, 3] = 1
    for pair in ((one, one), (one, full), (full, one), (full, full)):
        found = surface_distances(*pair)
        theirs = [torch.from_numpy(mask)[None, None] for mask in pair]
        options = {"include_background": True}
        for percentile in (95, 100):
            hd = mm.compute_hausdorff_distance(*theirs, percentile=percentile, **options)
            assert found.hausdorff(percentile) == pytest.approx(hd.item(), rel=1e-6)
        assd = mm.compute_average_surface_distance(*theirs, symmetric=True, **options)
        assert found.assd == pytest.approx(assd.item(), rel=1e-6)
        dice = mm.compute_surface_dice(*theirs, class_thresholds=[1.5], **options)
        assert found.surface_dice(1.5) == pytest.approx(dice.item(), rel=1e-6)


def test_values_of_each_image_go_into_intervals_and_tests():
    counts = series()
    values = counts.image_scores("hd95", one_empty="diagonal")
    assert values.distribution("lung") == counts.distribution("hd95", "lung", one_empty="diagonal")
    assert values.distribution().mean == counts.scores(one_empty="diagonal").hd95["lung"]
    interval = bootstrap_interval(values.of("lung"), resamples=50)
    assert (interval.n, interval.value) == (3, values.distribution().mean)
    infinite = counts.image_scores("hd95", classes=["lung"], one_empty="infinite")
    with pytest.raises(DataError, match=r"2 scores are infinite.* the image's diagonal"):
        bootstrap_interval(infinite.macro)
