"""Lesions against a flood fill; what is counted, by size and image."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.errors import DataError, SpecError
from transferseg.metrics import (
    LesionCounts,
    SegmentationCounts,
    label_lesions,
    match_lesions,
)


def flood(mask, connectivity):
    """Lesions as sets of places, one after the other, without a library."""
    steps = [
        step
        for step in np.ndindex(*[3] * mask.ndim)
        if 0 < np.abs(np.array(step) - 1).sum() <= connectivity
    ]
    left, lesions = set(map(tuple, np.argwhere(mask))), []
    while left:
        edge = [min(left)]
        left.discard(edge[0])
        lesion = set(edge)
        while edge:
            place = edge.pop()
            for step in steps:
                other = tuple(int(p + s - 1) for p, s in zip(place, step, strict=True))
                if other in left:
                    left.discard(other)
                    lesion.add(other)
                    edge.append(other)
        lesions.append(lesion)
    return lesions


def masks(seed, shape, density=0.35):
    rng = np.random.default_rng(seed)
    return tuple(rng.random(shape) < density for _ in "pt")


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 9999),
    shape=st.sampled_from([(6, 7), (1, 9), (3, 4, 4)]),
    connectivity=st.integers(1, 3),
    above=st.sampled_from([0.0, 0.2, 0.5, 0.8]),
    min_size=st.integers(1, 3),
)
def test_overlap_equals_sets_of_places(seed, shape, connectivity, above, min_size):
    connectivity = min(connectivity, len(shape))
    prediction, truth = masks(seed, shape)
    found = match_lesions(
        prediction, truth, above=above, connectivity=connectivity, min_size=min_size
    )
    said, real = (
        [lesion for lesion in flood(mask, connectivity) if len(lesion) >= min_size]
        for mask in (prediction, truth)
    )
    all_said, all_real = set().union(*said), set().union(*real)
    assert sorted(found.sizes) == sorted(map(len, real))
    assert sorted(zip(found.sizes, found.found, strict=True)) == sorted(
        (len(lesion), len(lesion & all_said) > above * len(lesion)) for lesion in real
    )
    assert sorted(zip(found.predicted_sizes, found.true, strict=True)) == sorted(
        (len(lesion), len(lesion & all_real) > above * len(lesion)) for lesion in said
    )


def test_one_prediction_over_two_lesions():
    truth, prediction = np.array([[1, 1, 0, 1, 1]]), np.ones((1, 5))
    assert match_lesions(prediction, truth).found.tolist() == [True, True]
    by_pairs = match_lesions(prediction, truth, criterion="iou", above=0.3)
    assert by_pairs.found.sum() == by_pairs.true.sum() == 1


def test_a_lesion_in_three_slices_is_one_in_the_volume():
    volume = torch.zeros(1, 1, 4, 5, 5, dtype=torch.uint8)
    volume[:, :, 1:, 1:3, 1:3] = 1
    whole, slices = (LesionCounts(["lesion"], mode="binary") for _ in "vs")
    whole.update_masks(volume, volume)
    slices.update_masks(volume[0].movedim(1, 0), volume[0].movedim(1, 0))
    assert whole.scores().lesions == {"lesion": 1}
    assert slices.scores().lesions == {"lesion": 3}
    assert slices.scores().empty_images == {"lesion": 1}


def test_scores_by_hand():
    """Three images: one of two lesions found, a false alarm in an empty one, nothing in nothing."""
    truth, prediction = (torch.zeros(3, 1, 8, 8, dtype=torch.uint8) for _ in "tp")
    truth[0, 0, :2, :2], truth[0, 0, 4:, 4:] = 1, 1
    prediction[0, 0, 5:, 5:], prediction[1, 0, 0, 0] = 1, 1
    counts = LesionCounts(["lesion"], mode="binary", size_limits=(10, 100))
    counts.update_masks(prediction, truth)
    scores = counts.scores()
    assert scores.sensitivity == {"lesion": 0.5}
    assert scores.precision == {"lesion": 0.5}
    assert scores.f1 == {"lesion": 0.5}
    assert scores.false_positives_per_image == {"lesion": pytest.approx(1 / 3)}
    assert scores.lesions_by_size == {"lesion": {"1-9": 1, "10-99": 1, "100 and more": 0}}
    by_size = scores.sensitivity_by_size["lesion"]
    assert (by_size["1-9"], by_size["10-99"]) == (0, 1)
    assert math.isnan(by_size["100 and more"])
    assert scores.empty_images == {"lesion": 2}
    assert scores.false_alarm_images == {"lesion": 1}
    restored = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert restored["sensitivity_by_size"]["lesion"]["100 and more"] is None
    assert "found: overlap above 0\n" in str(scores)


def test_nothing_found_and_nothing_there():
    truth = torch.ones(1, 1, 4, 4)
    missed = LesionCounts(1, mode="binary")
    missed.update_masks(torch.zeros(1, 1, 4, 4).bool(), truth)
    scores = missed.scores()
    assert (scores.mean_f1, scores.mean_sensitivity) == (0, 0)
    assert math.isnan(scores.precision[missed.classes[0]])
    clean = LesionCounts(1, mode="binary")
    clean.update_masks(torch.zeros(1, 1, 4, 4).bool(), 0 * truth)
    assert math.isnan(clean.scores().mean_f1)
    assert list(clean.scores().false_positives_per_image.values()) == [0]


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_logits_masks_and_ignored_pixels(mode):
    """The masks are those that `SegmentationCounts` counts, without the ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    classes = {"binary": 1, "multiclass": 3, "multilabel": 2}[mode]
    logits = torch.randn(2, classes, 9, 9, generator=generator)
    shape = (2, 9, 9) if mode == "multiclass" else logits.shape
    target = torch.randint(0, 2, shape, generator=generator)
    target[:, ..., :2] = 255
    options = {"mode": mode, "threshold": 0.6}
    counts, pixels = LesionCounts(classes, **options), SegmentationCounts(classes, **options)
    counts.update(logits, target)
    pixels.update(logits, target)
    tp, fp, fn, _ = pixels.rows.movedim(-1, 0)
    sized = LesionCounts(classes, **options, connectivity=1, size_limits=range(2, 64))
    sized.update(logits, target)
    sizes = torch.arange(1, 64).reshape(1, 1, -1)
    assert torch.equal((sized.rows[..., 0] * sizes).sum(-1), tp + fn)
    assert torch.equal((sized.rows[..., 2] * sizes).sum(-1), tp + fp)
    hard = logits.argmax(1) if mode == "multiclass" else (logits.sigmoid() > 0.6).long()
    again = LesionCounts(classes, **options)
    again.update_masks(hard, target)
    assert torch.equal(again.rows, counts.rows)


def test_wrong_use():
    with pytest.raises(SpecError, match="Did you mean 'overlap'"):
        LesionCounts(1, mode="binary", criterion="overlaps")
    with pytest.raises(SpecError, match="1 excluded, got 1"):
        LesionCounts(1, mode="binary", above=1)
    for limits in ((1,), (5, 5), (9, 3)):
        with pytest.raises(SpecError, match="size_limits must rise"):
            LesionCounts(1, mode="binary", size_limits=limits)
    with pytest.raises(SpecError, match=r"connectivity must be 1\.\.2"):
        label_lesions(np.zeros((3, 3)), connectivity=3)
    with pytest.raises(SpecError, match=r"one shape, got \(1, 3\) and \(3, 1\)"):
        match_lesions(np.zeros((1, 3)), np.zeros((3, 1)))
    counts = LesionCounts(2, mode="multilabel")
    with pytest.raises(DataError, match="no image has been counted"):
        counts.scores()
    good = torch.zeros(1, 2, 4, 4)
    for logits, target in (
        (good.long(), good),
        (good[:, :1], good[:, :1]),
        (good, good[:, :1]),
        (good[0], good[0]),
    ):
        with pytest.raises(SpecError, match="got"):
            counts.update(logits, target)
    with pytest.raises(SpecError, match="integer or bool"):
        counts.update_masks(good, good)
    with pytest.raises(SpecError, match="there are 2 classes"):
        counts.update_masks(good[:, :1].long(), good[:, :1])


@pytest.mark.parametrize("part", [0.07, 0.29, 0.57, 0.58])
def test_a_part_that_is_not_exceeded(part):
    """29 of 100 pixels are not more than 0.29, although 0.29 * 100 is less than 29."""
    truth, prediction = np.ones((1, 100)), np.zeros((1, 100))
    prediction[:, : round(100 * part)] = 1
    assert not match_lesions(prediction, truth, above=part).found.any()
    assert not match_lesions(truth, prediction, above=part).true.any()
    assert match_lesions(prediction, truth, above=part - 0.001).found.all()


def test_background_is_left_out_of_the_mean():
    target = torch.zeros(2, 6, 6).long()
    target[:, 1:3, 1:3] = 1
    prediction = torch.zeros_like(target)
    prediction[0, 1:3, 1:3], prediction[1, 5, 5] = 1, 1
    counts = LesionCounts(["background", "lung"], mode="multiclass", min_size=1, connectivity=2)
    counts.update_masks(prediction, target)
    whole, some = counts.scores(), counts.scores(classes=["lung"])
    assert (some.mean_sensitivity, some.mean_precision, some.mean_f1) == (0.5, 0.5, 0.5)
    assert whole.mean_sensitivity == 0.75
    for name, values in vars(some).items():
        if isinstance(values, dict):
            assert values == {"lung": getattr(whole, name)["lung"]}
    assert (some.connectivity, some.min_size) == (2, 1)
    assert some.to_dict()["mean_precision"] == 0.5
    with pytest.raises(SpecError, match="Did you mean 'lung'"):
        counts.scores(classes=["lungs"])


def test_labels_outside_the_classes_are_found():
    target = torch.zeros(3, 4, 4).long()
    target[2, 0, 0] = 5
    counts = LesionCounts(3, mode="multiclass", ignore_index=5)
    counts.update_masks(torch.zeros_like(target), target)
    counts = LesionCounts(3, mode="multiclass")
    with pytest.raises(DataError, match=r"batch's ground truth .* number 2, .* outside 0\.\.2"):
        counts.update_masks(torch.zeros_like(target), target)
    with pytest.raises(DataError, match=r"batch's prediction of 1 image"):
        counts.update_masks(target, torch.zeros_like(target))
    assert len(counts.rows) == 0
    with pytest.raises(SpecError, match="integer dtype in mode 'multiclass'"):
        counts.update_masks(target, target.float())


def test_logits_in_float64_are_compared_in_float64():
    """As `SegmentationCounts` does: 1e-60 is above 0, in float32 it is 0."""
    logits, target = torch.full((1, 1, 2, 2), 1e-60, dtype=torch.float64), torch.ones(1, 1, 2, 2)
    counts = LesionCounts(1, mode="binary")
    counts.update(logits, target)
    assert counts.scores().mean_sensitivity == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connectivity": 0}, "connectivity must be None, 1, 2 or 3, got 0"),
        ({"connectivity": 4}, "connectivity must be None, 1, 2 or 3, got 4"),
        ({"min_size": 0}, "min_size must be 1 pixel or more, got 0"),
    ],
)
def test_options_that_no_mask_has(options, message):
    with pytest.raises(SpecError, match=message):
        LesionCounts(1, mode="binary", **options)
    with pytest.raises(SpecError, match=message):
        match_lesions(np.ones((2, 2)), np.ones((2, 2)), **options)
