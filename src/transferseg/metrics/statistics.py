"""Statistics for papers: confidence intervals, paired tests, correction for many tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from transferseg.errors import DataError, SpecError, unknown_name
from transferseg.metrics.tables import mean

Bootstrap: TypeAlias = Literal["percentile", "basic", "bca"]
PairedTestName: TypeAlias = Literal["wilcoxon", "permutation"]
Alternative: TypeAlias = Literal["two-sided", "greater", "less"]


@dataclass(frozen=True)
class Interval:
    """A statistic and its confidence interval.

    Attributes:
        value: of the whole sample.
        low: lower limit.
        high: upper limit.
        confidence: part of such intervals that cover the true value, if the model holds.
        n: images in the sample; with the default statistic those with a defined score.
        groups: patients that were drawn; None where images were.

    Example:
        >>> print(Interval(0.8, 0.75, 0.84, 0.95, 40, 12))
        0.8000 (95% CI 0.7500 to 0.8400; 40 images of 12 groups)
    """

    value: float
    low: float
    high: float
    confidence: float
    n: int
    groups: int | None

    def __str__(self) -> str:
        drawn = "" if self.groups is None else f" of {self.groups} groups"
        limits = f"{100 * self.confidence:g}% CI {self.low:.4f} to {self.high:.4f}"
        return f"{self.value:.4f} ({limits}; {self.n} images{drawn})"


def bootstrap_interval(
    sample: Sequence[float] | NDArray[Any],
    *,
    groups: Sequence[Hashable] | None = None,
    statistic: Callable[[NDArray[Any]], float] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    method: Bootstrap = "percentile",
    seed: int = 0,
) -> Interval:
    """A confidence interval from resampling images, or whole patients.

    Images of one patient are alike: an interval that draws them one by one is too narrow. With
    `groups`, patients are drawn, each with all of its images (the cluster bootstrap).

    Args:
        sample: one entry an image along the first axis: scores (n,), of which NaN counts nowhere,
            or for a statistic of your own anything, such as `SegmentationCounts.rows` (n, K, 4).
        groups: the patient of each image, in the order of the sample.
        statistic: sample -> number; by default the mean of the defined scores.
        confidence: 0..1.
        resamples: how many samples are drawn.
        method: "percentile", "basic" or "bca" (bias-corrected and accelerated).
        seed: of the draws.

    Raises:
        DataError: fewer than two images or patients, or groups of another length.
        SpecError: an unknown method, a confidence outside 0..1, fewer than one resample.

    Source: Efron and Tibshirani 1993; scipy.stats.bootstrap.

    Example:
        >>> dice = [0.80, 0.82, 0.40, 0.42, 0.90, 0.92]
        >>> patients = ["a", "a", "b", "b", "c", "c"]
        >>> print(bootstrap_interval(dice, groups=patients, seed=1))
        0.7100 (95% CI 0.4100 to 0.9100; 6 images of 3 groups)
    """
    if method not in get_args(Bootstrap):
        raise SpecError(unknown_name("method", str(method), get_args(Bootstrap)))
    if not 0 < confidence < 1 or resamples < 1:
        raise SpecError(
            "confidence must lie between 0 and 1 and resamples be 1 or more, got "
            f"{confidence!r} and {resamples!r}."
        )
    array = np.asarray(sample)
    if groups is not None and len(groups) != len(array):
        raise DataError(f"there are {len(array)} images, but groups of {len(groups)}.")
    if statistic is None:  # a draw of undefined scores alone would have no mean
        kept = ~np.isnan(array)
        groups = None if groups is None else [g for g, k in zip(groups, kept, strict=True) if k]
        array = array[kept]
    members = _members(len(array), groups)
    measure = statistic or mean

    def drawn(units: NDArray[np.int64]) -> float:
        return float(measure(array[np.concatenate([members[unit] for unit in units])]))

    result = stats.bootstrap(
        (np.arange(len(members)),),
        drawn,
        vectorized=False,
        n_resamples=resamples,
        confidence_level=confidence,
        method="BCa" if method == "bca" else method,
        random_state=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(
        value=float(measure(array)),
        low=float(low),
        high=float(high),
        confidence=confidence,
        n=len(array),
        groups=None if groups is None else len(members),
    )


def _members(images: int, groups: Sequence[Hashable] | None) -> list[NDArray[np.int64]]:
    """The images of each unit that is drawn."""
    places: dict[Hashable, list[int]] = {}
    for place, key in enumerate(range(images) if groups is None else groups):
        places.setdefault(key, []).append(place)
    if len(places) < 2:
        what = "images" if groups is None else "groups"
        raise DataError(f"two or more {what} are needed to see how they differ, got {len(places)}.")
    return [np.array(some) for some in places.values()]


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
        numbers = f"difference {self.difference:.4f}, p = {self.p_value:.4f}"
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

    Args:
        first: scores of one model, one an image; NaN where undefined.
        second: of the other model, of the same images in the same order.
        test: "wilcoxon": the signed-rank test (exact for few pairs without ties and zeros);
            "permutation": signs of the differences flipped, their mean compared; every flip where
            there are at most `resamples` of them, else so many drawn.
        groups: the patient of each image: the means of each patient are compared then, since
            images of one patient are no independent pairs.
        alternative: "two-sided", "greater" (the first is larger) or "less".
        resamples: of the permutation test.
        seed: of its draws.

    Raises:
        DataError: lengths that differ, or no pair of defined scores.
        SpecError: an unknown test or alternative.

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
    differences, undefined = _differences(first, second, groups)
    if not differences.any():
        p_value = 1.0  # not one pair differs
    elif test == "wilcoxon":
        p_value = float(stats.wilcoxon(differences, alternative=alternative).pvalue)
    else:
        result = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", vectorized=True,
            n_resamples=resamples, alternative=alternative,
            random_state=np.random.default_rng(seed),
        )  # fmt: skip
        p_value = float(result.pvalue)
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
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise DataError(f"both models need scores of the same images, got {a.shape} and {b.shape}.")
    if groups is not None and len(groups) != len(a):
        raise DataError(f"there are {len(a)} images, but groups of {len(groups)}.")
    differences, kept = a - b, ~np.isnan(a - b)
    if not kept.any():
        raise DataError("no image has a defined score of both models; there is nothing to compare.")
    undefined = int((~kept).sum())
    if groups is None:
        return differences[kept], undefined
    means: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, differences, strict=True):
        if not math.isnan(value):
            means.setdefault(group, []).append(value)
    return np.array([mean(values) for values in means.values()]), undefined


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
