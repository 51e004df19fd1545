"""Statistics for papers: paired tests of two models, correction for many tests."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from transferseg.errors import DataError, SpecError, unknown_name
from transferseg.metrics.bootstrap import DRAWN, check_groups, check_scores
from transferseg.metrics.tables import mean

PairedTestName: TypeAlias = Literal["wilcoxon", "permutation"]
Alternative: TypeAlias = Literal["two-sided", "greater", "less"]

#: up to so many pairs, ties and zeros cost no exactness: every sign is tried, as in scipy
_TRIED = 13


@dataclass(frozen=True)
class PairedTest:
    """Whether two models differ on the same images.

    Attributes:
        test: "wilcoxon" or "permutation".
        p_value: of no difference, against the alternative.
        difference: mean of the first minus the second model's scores.
        n: pairs that were compared: images, or groups.
        undefined: images that were left out because one of the scores is NaN.
        alternative: "two-sided", "greater" (the first model is better) or "less".

    Example:
        >>> print(PairedTest("wilcoxon", 0.03, 0.02, 40, 1, "two-sided"))
        wilcoxon: difference 0.0200, p = 0.0300 (two-sided, 40 pairs, 1 image undefined)
    """

    test: PairedTestName
    p_value: float
    difference: float
    n: int
    undefined: int
    alternative: Alternative

    def __str__(self) -> str:
        images = f"{self.undefined} image{'' if self.undefined == 1 else 's'} undefined"
        p_value = "p < 0.0001" if self.p_value < 0.0001 else f"p = {self.p_value:.4f}"
        numbers = f"difference {self.difference:.4f}, {p_value}"
        return f"{self.test}: {numbers} ({self.alternative}, {self.n} pairs, {images})"


def paired_test(
    first: Sequence[float] | NDArray[np.float64],
    second: Sequence[float] | NDArray[np.float64],
    *,
    test: PairedTestName = "wilcoxon",
    groups: Sequence[Hashable] | None = None,
    alternative: Alternative = "two-sided",
    resamples: int = 9999,
    seed: int = 0,
) -> PairedTest:
    """Compare two models on the same images.

    Differences that are equal to 12 digits of the largest score count as equal.

    Args:
        first: scores of one model, one an image; NaN where undefined.
        second: of the other model, of the same images in the same order.
        test: "wilcoxon": the signed-rank test (exact up to 50 pairs, with ties or zeros up to 13);
            "permutation": signs of the differences flipped, their mean compared; every flip where
            there are at most `resamples` of them, else so many drawn.
        groups: the patient of each image: the means of each patient are compared then, since
            images of one patient are no independent pairs.
        alternative: "two-sided", "greater" (the first is larger) or "less".
        resamples: of the permutation test.
        seed: of its draws.

    Raises:
        DataError: lengths that differ, an infinite score, missing groups, fewer than two pairs of
            defined scores.
        SpecError: an unknown test or alternative, fewer than one resample.

    Source: Wilcoxon 1945; scipy.stats.wilcoxon and scipy.stats.permutation_test.

    Example:
        >>> a, b = [0.9, 0.8, 0.7, 0.85, 0.6], [0.8, 0.75, 0.66, 0.82, 0.58]
        >>> print(paired_test(a, b, test="permutation"))
        permutation: difference 0.0480, p = 0.0625 (two-sided, 5 pairs, 0 images undefined)
    """
    if test not in get_args(PairedTestName):
        raise SpecError(unknown_name("test", str(test), get_args(PairedTestName)))
    if alternative not in get_args(Alternative):
        raise SpecError(unknown_name("alternative", str(alternative), get_args(Alternative)))
    if resamples < 1 or resamples != int(resamples):
        raise SpecError(f"resamples must be a whole number from 1, got {resamples!r}.")
    differences, undefined = _differences(first, second, groups)
    if len(differences) < 2:
        what = "images" if groups is None else "groups"
        raise DataError(
            f"two or more {what} with defined scores of both models are needed to compare "
            f"them, got {len(differences)}."
        )
    if not differences.any():
        p_value = 1.0  # not one pair differs
    elif test == "wilcoxon":
        p_value = _wilcoxon(differences, alternative)
    else:
        p_value = _permutation(differences, alternative, resamples, seed)
    return PairedTest(
        test=test,
        p_value=p_value,
        difference=mean(differences),
        n=len(differences),
        undefined=undefined,
        alternative=alternative,
    )


def _differences(
    first: Sequence[float] | NDArray[np.float64],
    second: Sequence[float] | NDArray[np.float64],
    groups: Sequence[Hashable] | None,
) -> tuple[NDArray[np.float64], int]:
    """First minus second of each image, or the mean of each group; and how many are undefined."""
    a, b = check_scores(first), check_scores(second)
    if a.shape != b.shape:
        raise DataError(f"both models need scores of the same images, got {a.shape} and {b.shape}.")
    check_groups(groups, len(a))
    differences, kept = a - b, ~np.isnan(a - b)
    scores = np.concatenate([a[kept], b[kept]])
    undefined = int((~kept).sum())
    if groups is None:
        return _rounded(differences[kept], scores), undefined
    means: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, differences, strict=True):
        if not math.isnan(value):
            means.setdefault(group, []).append(value)
    return _rounded(np.array([mean(each) for each in means.values()]), scores), undefined


def _rounded(differences: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without what rounding adds: 0.9 - 0.8 and 0.8 - 0.7 tie, as do they with their negatives.

    In whole steps of 2^-40 of the largest score, about 12 digits.
    """
    step = 2.0 ** (math.frexp(np.abs(scores).max(initial=1e-200))[1] - 40)
    rounded: NDArray[np.float64] = np.round(differences / step) * step
    return rounded


def _wilcoxon(differences: NDArray[np.float64], alternative: Alternative) -> float:
    """The p-value of the signed ranks; every sign is tried where there are ties or zeros."""
    some = np.abs(differences[differences != 0])
    plain = len(np.unique(some)) == len(differences)
    if plain or len(differences) > _TRIED:
        return float(stats.wilcoxon(differences, alternative=alternative).pvalue)
    signed = np.sign(differences)
    signed[signed != 0] *= stats.rankdata(some)
    return _permutation(signed, alternative, 2**_TRIED, 0)


def _permutation(
    values: NDArray[np.float64], alternative: Alternative, resamples: int, seed: int
) -> float:
    """The p-value of the mean among those with other signs."""
    result = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", vectorized=True,
        n_resamples=resamples, alternative=alternative, batch=max(DRAWN // len(values), 1),
        random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values of several tests, by Holm's step-down method.

    An adjusted p-value below 0.05 means: significant, with a chance of at most 0.05 that any of the
    tests is so by mistake.

    Args:
        p_values: by name of the test, each in 0..1.

    Returns:
        By name in the given order, 0..1.

    Raises:
        SpecError: a p-value outside 0..1 or NaN.

    Source: Holm 1979.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    for name, value in p_values.items():
        if not 0 <= value <= 1:
            raise SpecError(f"p-values must lie in 0..1, got {value!r} for {name!r}.")
    adjusted, largest = {}, 0.0
    rising = sorted(p_values, key=p_values.__getitem__)
    for place, name in enumerate(rising):
        largest = max(largest, min(1.0, (len(rising) - place) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
