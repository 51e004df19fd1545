"""Scores image by image: the values themselves, and how they are distributed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transferseg.errors import DataError, SpecError, unknown_name
from transferseg.metrics.tables import json_number, mean

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Distribution:
    """How values are spread; undefined ones (NaN) are counted and left out.

    Attributes:
        n: how many values are defined.
        undefined: how many are not.
        mean: their mean, NaN without one.
        std: their standard deviation with n - 1, NaN below two.
        quantiles: level (0..1) -> value, interpolated linearly; 0 is the least, 1 the largest.

    Example:
        >>> print(distribution([0.5, 0.7, 0.9, float("nan")]))
        0.7000 ± 0.2000 (n=3, 1 undefined); 0%: 0.5000, 25%: 0.6000, 50%: 0.7000, 75%: 0.8000,
        100%: 0.9000
    """

    n: int
    undefined: int
    mean: float
    std: float
    quantiles: Mapping[float, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; None where undefined."""
        return {
            "n": self.n,
            "undefined": self.undefined,
            "mean": json_number(self.mean),
            "std": json_number(self.std),
            "quantiles": {str(level): json_number(v) for level, v in self.quantiles.items()},
        }

    def __str__(self) -> str:
        levels = ", ".join(f"{100 * at:g}%: {value:.4f}" for at, value in self.quantiles.items())
        counted = f"n={self.n}, {self.undefined} undefined"
        return f"{self.mean:.4f} ± {self.std:.4f} ({counted}); {levels}"


def distribution(
    values: Iterable[float], *, quantiles: Sequence[float] = _QUANTILES
) -> Distribution:
    """The distribution of values, one an image.

    Args:
        values: any number of them; NaN for undefined.
        quantiles: levels in 0..1.

    Raises:
        SpecError: a level outside 0..1.
        DataError: more than one value an image.

    Example:
        >>> distribution([1.0, 3.0], quantiles=[0.5])
        Distribution(n=2, undefined=0, mean=2.0, std=1.4142135623730951, quantiles={0.5: 2.0})
    """
    if not all(0 <= level <= 1 for level in quantiles):
        raise SpecError(f"quantiles must lie in 0..1, got {list(quantiles)}.")
    array = np.asarray(list(values), dtype=np.float64)
    if array.ndim != 1:
        raise DataError(
            f"one value an image is needed, got an array of shape {array.shape}; take one class "
            "with `ImageScores.of`, or `ImageScores.macro`."
        )
    defined = np.sort(array[~np.isnan(array)])
    n = len(defined)
    with np.errstate(invalid="ignore"):  # infinite distances have no spread
        found = _levels(defined, quantiles) if n else [np.nan] * len(quantiles)
        std = float(defined.std(ddof=1)) if n > 1 else float("nan")
    return Distribution(
        n=n,
        undefined=len(array) - n,
        mean=mean(defined),
        std=std,
        quantiles={level: float(value) for level, value in zip(quantiles, found, strict=True)},
    )


def _levels(values: NDArray[np.float64], levels: Sequence[float]) -> NDArray[np.float64]:
    """Quantiles, interpolated linearly; between a number and infinity that is infinity."""
    low, high = (np.quantile(values, levels, method=way) for way in ("lower", "higher"))
    between: NDArray[np.float64] = np.where(np.isinf(high), high, np.quantile(values, levels))
    return np.where(low == high, low, between)


@dataclass(frozen=True)
class ImageScores:
    """One score of every image and class: what distributions, intervals and paired tests read.

    Attributes:
        score: which: see `image_scores` of `SegmentationCounts` and `SurfaceCounts`.
        empty: the policy for a class without ground truth in an image (of surfaces: in one mask).
        classes: the classes that were asked for, in order; of an overall score its own name.
        values: (images, classes), NaN where undefined; images in the order of counting.

    Example:
        >>> scores = ImageScores("dice", "exclude", ("a", "b"), np.array([[0.5, np.nan], [1, 0]]))
        >>> scores.macro
        array([0.5, 0.5])
        >>> scores.distribution("a").mean
        0.75
    """

    score: str
    empty: str
    classes: tuple[str, ...]
    values: NDArray[np.float64]

    def of(self, name: str) -> NDArray[np.float64]:
        """The values of one class, (images,).

        Raises:
            SpecError: an unknown class.
        """
        if name not in self.classes:
            raise SpecError(unknown_name("class", name, self.classes))
        return self.values[:, self.classes.index(name)]

    @property
    def macro(self) -> NDArray[np.float64]:
        """Of each image the mean over the classes where it is defined, (images,).

        Its mean over images is not the mean of `SegmentationScores`, which averages the images
        of each class first: where classes are missing in some images, the two weigh differently.
        """
        return np.array([mean(image) for image in self.values])

    def distribution(
        self, name: str | None = None, *, quantiles: Sequence[float] = _QUANTILES
    ) -> Distribution:
        """Of one class, or of `macro`.

        Raises:
            SpecError: an unknown class, or a level outside 0..1.
        """
        return distribution(self.macro if name is None else self.of(name), quantiles=quantiles)
