"""Intervals and tests against scipy called by hand and against enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from transferseg.errors import DataError, SpecError
from transferseg.metrics import SegmentationCounts, bootstrap_interval, holm, paired_test

NAN = float("nan")
DICE = np.random.default_rng(0).beta(8, 2, size=24)
OTHER = DICE + np.random.default_rng(1).normal(0.02, 0.05, size=24)
PATIENTS = [f"p{i // 4}" for i in range(24)]


@pytest.mark.parametrize("method", ["percentile", "basic", "bca"])
def test_per_image_is_scipys_own_bootstrap(method):
    theirs = stats.bootstrap(
        (DICE,), lambda x: float(np.mean(x)), vectorized=False, n_resamples=300,
        method="BCa" if method == "bca" else method, confidence_level=0.9,
        random_state=np.random.default_rng(3),
    )  # fmt: skip
    found = bootstrap_interval(DICE, confidence=0.9, resamples=300, method=method, seed=3)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval))
    assert found.value == pytest.approx(DICE.mean())
    assert (found.n, found.groups) == (24, None)


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


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_paired_tests_are_scipys(alternative):
    found = paired_test(DICE, OTHER, alternative=alternative)
    assert found.p_value == stats.wilcoxon(DICE, OTHER, alternative=alternative).pvalue
    assert found.difference == pytest.approx((DICE - OTHER).mean())
    assert (found.n, found.undefined) == (24, 0)
    few = paired_test(DICE[:8], OTHER[:8], test="permutation", alternative=alternative)
    differences = DICE[:8] - OTHER[:8]
    flipped = [np.mean(differences * signs) for signs in product([1, -1], repeat=8)]
    above = np.mean(np.array(flipped) >= differences.mean() - 1e-12)
    below = np.mean(np.array(flipped) <= differences.mean() + 1e-12)
    expected = {"greater": above, "less": below, "two-sided": 2 * min(above, below)}
    assert few.p_value == pytest.approx(expected[alternative])


def test_drawn_permutations_are_near_the_enumerated_and_repeatable():
    every = paired_test(DICE[:10], OTHER[:10], test="permutation", resamples=2000)
    drawn = paired_test(DICE[:10], OTHER[:10], test="permutation", resamples=1000, seed=5)
    again = paired_test(DICE[:10], OTHER[:10], test="permutation", resamples=1000, seed=5)
    assert drawn == again
    assert drawn.p_value == pytest.approx(every.p_value, abs=0.05)


@pytest.mark.parametrize("test", ["wilcoxon", "permutation"])
def test_patients_are_compared_by_their_means(test):
    found = paired_test(DICE, OTHER, groups=PATIENTS, test=test)
    means = [np.mean(x.reshape(6, 4), axis=1) for x in (DICE, OTHER)]
    assert found.p_value == paired_test(*means, test=test).p_value
    assert found.n == 6


def test_undefined_pairs_and_equal_models():
    first, second = [0.5, NAN, 0.7, 0.9], [0.4, 0.3, NAN, 0.7]
    found = paired_test(first, second, test="permutation")
    assert (found.n, found.undefined) == (2, 2)
    assert found.difference == pytest.approx(0.15)
    grouped = paired_test(first, second, test="permutation", groups=["a", "a", "b", "b"])
    assert (grouped.n, grouped.difference) == (2, pytest.approx(0.15))
    for test in ("wilcoxon", "permutation"):
        assert paired_test(DICE, DICE, test=test).p_value == 1


def test_holm_by_hand():
    """As R's p.adjust(c(0.01, 0.02, 0.03, 0.04), "holm") gives it, in any order."""
    found = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})
    assert list(found) == ["d", "a", "c", "b"]
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, level):
    named = {str(place): value for place, value in enumerate(p_values)}
    rejected = set()
    for place, name in enumerate(sorted(named, key=named.get)):
        if (len(named) - place) * named[name] > level:
            break
        rejected.add(name)
    assert {name for name, value in holm(named).items() if value <= level} == rejected


def test_wrong_use():
    with pytest.raises(SpecError, match="Did you mean 'percentile'"):
        bootstrap_interval(DICE, method="percentil")
    with pytest.raises(SpecError, match="confidence must lie between 0 and 1"):
        bootstrap_interval(DICE, confidence=95)
    with pytest.raises(DataError, match="two or more images"):
        bootstrap_interval([0.5, NAN])
    with pytest.raises(DataError, match="two or more groups"):
        bootstrap_interval(DICE, groups=["a"] * 24)
    with pytest.raises(DataError, match="24 images, but groups of 3"):
        bootstrap_interval(DICE, groups=["a", "b", "c"])
    with pytest.raises(DataError, match="24 images, but groups of 1"):
        paired_test(DICE, OTHER, groups=["a"])
    with pytest.raises(DataError, match="of the same images"):
        paired_test(DICE, OTHER[:3])
    with pytest.raises(DataError, match="nothing to compare"):
        paired_test([NAN], [0.5])
    with pytest.raises(SpecError, match="unknown test"):
        paired_test(DICE, OTHER, test="t")
    with pytest.raises(SpecError, match="unknown alternative"):
        paired_test(DICE, OTHER, alternative="better")
    with pytest.raises(SpecError, match=r"in 0\.\.1, got nan for 'a'"):
        holm({"a": NAN})
