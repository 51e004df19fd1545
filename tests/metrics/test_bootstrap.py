"""Intervals against scipy called by hand and against enumeration; what has no interval."""

from __future__ import annotations

import tracemalloc
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from transferseg.errors import DataError, SpecError
from transferseg.metrics import SegmentationCounts, bootstrap_interval

NAN = float("nan")
DICE = np.random.default_rng(0).beta(8, 2, size=24)
PATIENTS = [f"p{i // 4}" for i in range(24)]
METHODS = ("percentile", "basic", "bca")


@pytest.mark.parametrize("method", METHODS)
def test_per_image_is_scipys_own_bootstrap(method):
    theirs = stats.bootstrap(
        (DICE,), lambda x: float(np.mean(x)), vectorized=False, n_resamples=300,
        method="BCa" if method == "bca" else method, confidence_level=0.9,
        random_state=np.random.default_rng(3),
    )  # fmt: skip
    options = {"confidence": 0.9, "resamples": 300, "method": method, "seed": 3}
    found = bootstrap_interval(DICE, **options)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval))
    assert found.value == pytest.approx(DICE.mean())
    assert (found.n, found.groups) == (24, None)
    assert bootstrap_interval(DICE, **options) == found
    # the mean is computed of many samples at once, a statistic of one's own of each
    own = bootstrap_interval(DICE, statistic=np.mean, **options)
    assert (own.low, own.high) == pytest.approx((found.low, found.high))


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_over_patients_is_that_of_their_images(method):
    uneven = ["a"] * 9 + ["b"] + ["c"] * 3 + [f"p{i}" for i in range(11)]
    options = {"groups": uneven, "resamples": 200, "method": method}
    found = bootstrap_interval(DICE, **options)
    own = bootstrap_interval(DICE, statistic=np.mean, **options)
    assert (found.low, found.high) == pytest.approx((own.low, own.high))
    assert found.groups == 14


def test_patients_are_drawn_with_all_their_images():
    """By hand: every draw of 3 from 3 patients, of 1, 2 and 3 images."""
    values, patients = [0.1, 0.5, 0.7, 0.9, 0.8, 1.0], ["a", "b", "b", "c", "c", "c"]
    of = {"a": [0.1], "b": [0.5, 0.7], "c": [0.9, 0.8, 1.0]}
    every = [np.mean(np.concatenate([of[p] for p in draw])) for draw in product("abc", repeat=3)]
    seen: set[float] = set()

    def record(sample):
        seen.add(round(float(np.mean(sample)), 9))
        return float(np.mean(sample))

    found = bootstrap_interval(values, groups=patients, statistic=record, resamples=2000)
    assert seen == {round(float(value), 9) for value in every}
    limits = np.percentile(every, [2.5, 97.5], method="inverted_cdf")
    assert (found.low, found.high) == pytest.approx(tuple(limits))
    assert found.groups == 3


def test_images_of_a_patient_that_are_alike_make_the_interval_wider():
    alike = np.repeat(DICE[:6], 4)
    by_image = bootstrap_interval(alike, resamples=500)
    by_patient = bootstrap_interval(alike, groups=PATIENTS, resamples=500)
    assert by_patient.high - by_patient.low > 1.5 * (by_image.high - by_image.low)
    # ... as wide as that of the six values themselves
    six = bootstrap_interval(DICE[:6], resamples=500)
    assert (by_patient.low, by_patient.high) == pytest.approx((six.low, six.high))


def test_a_pooled_score_of_counts():
    rows = np.random.default_rng(0).integers(1, 50, size=(12, 1, 4))
    like = SegmentationCounts(["polyp"], mode="binary")

    def pooled(sample):
        tp, fp, fn, _ = sample.sum((0, 1))
        return tp / (tp + fp + fn)

    counts = SegmentationCounts.from_rows(torch.from_numpy(rows), like=like)
    found = bootstrap_interval(rows, statistic=pooled, resamples=200)
    assert found.value == pytest.approx(counts.scores().mean_iou)
    assert found.low < found.value < found.high
    per_image = counts.image_scores("iou").macro
    assert bootstrap_interval(per_image, resamples=50).value == pytest.approx(
        counts.scores("per_image").mean_iou
    )


def test_undefined_scores_are_left_out_before_drawing():
    some = np.concatenate([DICE[:3], [NAN] * 50])
    found, alone = bootstrap_interval(some), bootstrap_interval(DICE[:3])
    assert (found.low, found.high, found.n) == (alone.low, alone.high, 3)
    patients = ["a", "b", "c", *["d"] * 50]
    assert bootstrap_interval(some, groups=patients).groups == 3


@pytest.mark.parametrize("method", METHODS)
def test_scores_that_are_all_equal_have_a_point(method):
    """Disagreement: scipy's BCa divides 0 by 0, warns and gives NaN."""
    found = bootstrap_interval([0.1] * 10, method=method, resamples=50)
    assert (found.value, found.low, found.high) == (0.1, 0.1, 0.1)
    two = bootstrap_interval([0.25, 0.75], method=method, resamples=200)
    assert (two.low, two.high) == (0.25, 0.75)


def test_a_statistic_that_a_sample_leaves_undefined_is_refused():
    rows = np.array([[4, 1], [0, 0], [0, 0]])

    def ratio(sample):
        part, whole = sample.sum(0)
        return part / whole if whole else NAN

    with pytest.raises(DataError, match=r"undefined \(NaN\) in \d+ of 100 samples"):
        bootstrap_interval(rows, statistic=ratio, resamples=100)
    with pytest.raises(DataError, match=r"cannot be calculated.* take method='percentile'"):
        bootstrap_interval(DICE, statistic=lambda x: len(set(x)), method="bca", resamples=50)


def test_memory_does_not_grow_with_the_square_of_the_images():
    """Of 1500 images, all that BCa leaves one out of would be 18 MB, and all samples drawn 24."""
    many = np.random.default_rng(0).random(1500)
    bootstrap_interval(DICE, resamples=2)
    tracemalloc.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("transferseg.metrics.bootstrap.DRAWN", 2**16)
            found = bootstrap_interval(many, method="bca")
        assert tracemalloc.get_traced_memory()[1] < 2**16 * 60
    finally:
        tracemalloc.stop()
    whole = bootstrap_interval(many, method="bca")
    assert (found.low, found.high) == (whole.low, whole.high)  # the draws are the same


def test_wrong_use():
    with pytest.raises(SpecError, match="Did you mean 'percentile'"):
        bootstrap_interval(DICE, method="percentil")
    with pytest.raises(SpecError, match="confidence must lie between 0 and 1"):
        bootstrap_interval(DICE, confidence=95)
    for resamples in (1, 10.5):
        with pytest.raises(SpecError, match="resamples be 2 or more"):
            bootstrap_interval(DICE, resamples=resamples)
    with pytest.raises(DataError, match=r"one entry an image, got 0\.5"):
        bootstrap_interval(0.5, statistic=np.mean)
    with pytest.raises(DataError, match="two or more images"):
        bootstrap_interval([0.5, NAN])
    with pytest.raises(DataError, match="two or more groups"):
        bootstrap_interval(DICE, groups=["a"] * 24)
    with pytest.raises(DataError, match="24 images, but groups of 3"):
        bootstrap_interval(DICE, groups=["a", "b", "c"])
    with pytest.raises(DataError, match=r"shape \(12, 2\); take one class"):
        bootstrap_interval(DICE.reshape(12, 2))  # not 24 images
    with pytest.raises(DataError, match="1 scores are infinite, the first being number 1"):
        bootstrap_interval([1.0, np.inf, 2.0])
    for missing in (None, NAN, np.float32("nan")):
        with pytest.raises(DataError, match=r"1 images have no group .* number 2"):
            bootstrap_interval(DICE[:4], groups=["a", "b", missing, "c"])
