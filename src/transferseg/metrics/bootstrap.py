"""Confidence intervals of a statistic, from drawing images or whole patients anew."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from transferseg.errors import DataError, SpecError, unknown_name
from transferseg.metrics.tables import mean

Bootstrap: TypeAlias = Literal["percentile", "basic", "bca"]

#: of the samples drawn, so many entries are in memory at once
DRAWN = 2**22


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
        method: "percentile", "basic" or "bca" (bias-corrected and accelerated; its time grows with
            the square of the images or patients).
        seed: of the draws.

    Raises:
        DataError: fewer than two images or patients; groups of another length, or missing ones;
            more than one score an image, or an infinite one; a statistic that is undefined in a
            sample drawn, or whose "bca" limits are.
        SpecError: an unknown method, a confidence outside 0..1, fewer than two resamples.

    Source: Efron and Tibshirani 1993; scipy.stats.bootstrap.

    Example:
        >>> dice = [0.80, 0.82, 0.40, 0.42, 0.90, 0.92]
        >>> patients = ["a", "a", "b", "b", "c", "c"]
        >>> print(bootstrap_interval(dice, groups=patients, seed=1))
        0.7100 (95% CI 0.4100 to 0.9100; 6 images of 3 groups)
    """
    if method not in get_args(Bootstrap):
        raise SpecError(unknown_name("method", str(method), get_args(Bootstrap)))
    if not 0 < confidence < 1 or resamples < 2 or resamples != int(resamples):
        raise SpecError(
            "confidence must lie between 0 and 1 and resamples be 2 or more, got "
            f"{confidence!r} and {resamples!r}."
        )
    array = np.asarray(sample) if statistic is not None else check_scores(sample)
    if not array.ndim:
        raise DataError(f"a sample has one entry an image, got {sample!r}.")
    check_groups(groups, len(array))
    if statistic is None:  # a draw of undefined scores alone would have no mean
        kept = ~np.isnan(array)
        groups = None if groups is None else [g for g, k in zip(groups, kept, strict=True) if k]
        array = array[kept]
    members = _members(len(array), groups)
    drawn = _mean_of(array, members) if statistic is None else _of(array, members, statistic)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # `_limits` finds it
        result = stats.bootstrap(
            (np.arange(len(members)),),
            drawn,
            vectorized=statistic is None,
            n_resamples=resamples,
            batch=max(DRAWN // len(members), 1),
            confidence_level=confidence,
            method="BCa" if method == "bca" else method,
            random_state=np.random.default_rng(seed),
        )
    low, high = _limits(result, method)
    return Interval(
        value=float((statistic or mean)(array)),
        low=low,
        high=high,
        confidence=confidence,
        n=len(array),
        groups=None if groups is None else len(members),
    )


def check_scores(values: Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
    """Scores of images as an array, NaN where undefined.

    Raises:
        DataError: not one number an image, or an infinite one.

    Example:
        >>> check_scores([0.5, 1])
        array([0.5, 1. ])
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise DataError(
            f"one score an image is needed, got an array of shape {array.shape}; take one class "
            "with `ImageScores.of`, or `ImageScores.macro`."
        )
    if np.isinf(array).any():
        raise DataError(
            f"{int(np.isinf(array).sum())} scores are infinite, the first being number "
            f"{int(np.isinf(array).argmax())}: they have no mean. Leave these images out, or count "
            "distances with one empty mask as the image's diagonal."
        )
    return array


def check_groups(groups: Sequence[Hashable] | None, images: int) -> None:
    """Raise `DataError` unless every image has a group.

    Example:
        >>> check_groups(["a", "b"], 2)
    """
    if groups is None:
        return
    if len(groups) != images:
        raise DataError(f"there are {images} images, but groups of {len(groups)}.")
    lost = [
        place
        for place, group in enumerate(groups)
        if group is None or (isinstance(group, float | np.floating) and math.isnan(group))
    ]
    if lost:
        raise DataError(
            f"{len(lost)} images have no group (None or NaN), the first being number {lost[0]}; "
            "give each its patient, or a name of its own."
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


def _of(
    array: NDArray[Any],
    members: list[NDArray[np.int64]],
    statistic: Callable[[NDArray[Any]], float],
) -> Callable[..., Any]:
    """Units drawn -> the statistic of all their images."""

    def drawn(units: NDArray[np.int64]) -> float:
        return float(statistic(array[np.concatenate([members[unit] for unit in units])]))

    return drawn


def _mean_of(
    array: NDArray[np.float64], members: list[NDArray[np.int64]]
) -> Callable[..., NDArray[np.float64]]:
    """Units drawn -> the mean of all their images, of many samples at once."""
    centre = mean(array)  # scores that are all equal then have exactly their own mean
    sizes = np.array([len(some) for some in members])
    sums = np.array([(array[some] - centre).sum() for some in members])

    def drawn(units: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
        found: NDArray[np.float64] = centre + sums[units].sum(axis) / sizes[units].sum(axis)
        return found

    return drawn


def _limits(result: Any, method: Bootstrap) -> tuple[float, float]:  # noqa: ANN401 - scipy's
    """The limits, once they are known to be numbers."""
    draws = result.bootstrap_distribution
    undefined = int(np.isnan(draws).sum())
    if undefined:
        raise DataError(
            f"the statistic is undefined (NaN) in {undefined} of {len(draws)} samples drawn, so "
            "there are no limits; give images where it is defined, or have it return a number."
        )
    if method == "bca" and (draws == draws[0]).all():
        return float(draws[0]), float(draws[0])  # BCa divides by how far they lie apart
    low, high = map(float, result.confidence_interval)
    if math.isnan(low) or math.isnan(high):
        raise DataError(
            f"the limits of method {method!r} cannot be calculated: the statistic hardly varies or "
            "is infinite in the samples drawn; take method='percentile', or more images."
        )
    return low, high
