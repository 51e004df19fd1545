"""Paired tests against scipy called by hand and against enumeration; Holm."""

from __future__ import annotations

import tracemalloc
from itertools import product

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from transferseg.errors import DataError, SpecError
from transferseg.metrics import holm, paired_test

NAN = float("nan")
DICE = np.random.default_rng(0).beta(8, 2, size=24)
OTHER = DICE + np.random.default_rng(1).normal(0.02, 0.05, size=24)
PATIENTS = [f"p{i // 4}" for i in range(24)]


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


@pytest.mark.parametrize("test", ["wilcoxon", "permutation"])
def test_one_pair_and_none_compare_nothing(test):
    for first, groups in (([0.5, NAN], None), ([NAN, NAN], None), ([0.5, 0.6], ["a", "a"])):
        with pytest.raises(DataError, match=r"two or more (images|groups) with defined scores"):
            paired_test(first, [0.4, 0.4], test=test, groups=groups)
    two = paired_test([0.5, 0.6], [0.4, 0.4], test=test)
    assert (two.n, two.p_value) == (2, pytest.approx(0.5))


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_wilcoxon_of_ties_and_zeros_is_that_of_every_sign(alternative):
    """Zeros are left out, ties have the mean of their ranks; 13 pairs at most are enumerated."""
    steps = np.array([3, -1, 1, 0, 2, 2, -2, 5])
    found = paired_test(0.5 + steps / 10, np.full(8, 0.5), alternative=alternative)
    some = steps[steps != 0]
    ranks = stats.rankdata(np.abs(some))
    every = np.array([(ranks * (np.array(s) > 0)).sum() for s in product([1, -1], repeat=7)])
    own = (ranks * (some > 0)).sum()
    above, below = (every >= own).mean(), (every <= own).mean()
    expected = {"greater": above, "less": below, "two-sided": min(2 * min(above, below), 1)}
    assert found.p_value == pytest.approx(expected[alternative])
    if tuple(map(int, scipy.__version__.split(".")[:2])) >= (1, 15):  # older ones approximate
        theirs = stats.wilcoxon(steps.astype(float), alternative=alternative)
        assert found.p_value == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("test", ["wilcoxon", "permutation"])
def test_rounding_makes_no_difference_of_equal_ones(test):
    """0.9 - 0.8 is less than 0.8 - 0.7 in binary; they tie, and cancel in a patient's mean."""
    first, second = np.array([0.9, 0.7, 0.3, 0.5, 0.2]), np.array([0.8, 0.8, 0.1, 0.5, 0.3])
    whole = paired_test(10 * first, 10 * second, test=test)
    assert len(set(np.abs(first - second)[[0, 1, 4]])) > 1
    assert paired_test(first, second, test=test).p_value == whole.p_value
    patients = ["a", "a", "b", "c", "c"]
    grouped = paired_test(first, second, test=test, groups=patients)
    exact = paired_test([0.0, 2.0, -0.5], [0.0, 0.0, 0.0], test=test)
    assert grouped.p_value == exact.p_value


def test_large_samples_are_permuted_in_parts(monkeypatch):
    first, second = np.random.default_rng(2).random((2, 200))
    whole = paired_test(first, second, test="permutation", resamples=300)
    monkeypatch.setattr("transferseg.metrics.statistics.DRAWN", 2**12)
    tracemalloc.start()
    try:
        assert paired_test(first, second, test="permutation", resamples=300) == whole
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_small_p_value_is_not_printed_as_none():
    found = paired_test(np.linspace(0.5, 0.9, 40), np.linspace(0.1, 0.4, 40))
    assert 0 < found.p_value < 0.0001
    assert "p < 0.0001" in str(found)


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
    with pytest.raises(DataError, match="24 images, but groups of 1"):
        paired_test(DICE, OTHER, groups=["a"])
    with pytest.raises(DataError, match="of the same images"):
        paired_test(DICE, OTHER[:3])
    with pytest.raises(DataError, match=r"shape \(12, 2\); take one class"):
        paired_test(DICE.reshape(12, 2), OTHER.reshape(12, 2))
    with pytest.raises(DataError, match="2 scores are infinite"):
        paired_test([1.0, np.inf, np.inf], [1.0, np.inf, 2.0])
    with pytest.raises(DataError, match="1 images have no group"):
        paired_test(DICE[:2], OTHER[:2], groups=["a", None])
    with pytest.raises(SpecError, match="resamples must be a whole number from 1, got 0"):
        paired_test(DICE, OTHER, resamples=0)
    with pytest.raises(SpecError, match="unknown test"):
        paired_test(DICE, OTHER, test="t")
    with pytest.raises(SpecError, match="unknown alternative"):
        paired_test(DICE, OTHER, alternative="better")
    with pytest.raises(SpecError, match=r"in 0\.\.1, got nan for 'a'"):
        holm({"a": NAN})
