"""Distances between the surfaces of two masks, in the units of the spacing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from transferseg.errors import SpecError

_ROUNDING = 1e-9  # far above that of a distance in float64, far below any that was measured


@dataclass(frozen=True)
class SurfaceDistances:
    """From each surface pixel of one mask the distance to the nearest one of the other.

    Where one mask is empty the distances of the other are infinite, so that Hausdorff and mean
    distances are infinite and the surface Dice is 0; where both are, all four are NaN.

    Attributes:
        from_prediction: one a surface pixel of the prediction, unordered.
        from_truth: one a surface pixel of the truth.

    Example:
        >>> truth = np.zeros((5, 9))
        >>> truth[1:4, 1:4] = 1
        >>> distances = surface_distances(np.roll(truth, 2, axis=1), truth, spacing=(1.0, 0.5))
        >>> distances.hausdorff(), distances.hausdorff(95), distances.surface_dice(0.5)
        (1.0, 1.0, 0.625)
    """

    from_prediction: NDArray[np.float64]
    from_truth: NDArray[np.float64]

    @property
    def both_empty(self) -> bool:
        """Whether neither mask has a pixel."""
        return not len(self.from_prediction) and not len(self.from_truth)

    def hausdorff(self, percentile: float = 100) -> float:
        """Hausdorff distance: the larger of the two directed ones.

        Args:
            percentile: of each direction's distances, interpolated linearly; 95 gives HD95, 100
                the largest distance itself.

        Raises:
            SpecError: a percentile outside 0..100.

        Source: Huttenlocher, Klanderman and Rucklidge 1993.
        """
        if not 0 <= percentile <= 100:
            raise SpecError(f"percentile must lie in 0..100, got {percentile!r}.")
        if self.both_empty:
            return math.nan
        return max(_percentile(d, percentile) for d in (self.from_prediction, self.from_truth))

    @property
    def assd(self) -> float:
        """Average symmetric surface distance: the mean of all distances of both directions."""
        distances = self._all
        return float(distances.mean()) if len(distances) else math.nan

    def surface_dice(self, tolerance: float) -> float:
        """Normalised surface Dice: part of both surfaces that lies within the tolerance.

        A surface is a number of pixels here, not an area.

        Args:
            tolerance: largest distance that counts as agreement, in the units of the spacing; what
                exceeds it by rounding (three times 0.1 is more than 0.3) agrees.

        Raises:
            SpecError: a tolerance below 0 or not finite.

        Source: Nikolov et al. 2018.
        """
        check_tolerance(tolerance)
        distances = self._all
        agree = distances <= tolerance * (1 + _ROUNDING)
        return float(agree.mean()) if len(distances) else math.nan

    @property
    def _all(self) -> NDArray[np.float64]:
        return np.concatenate([self.from_prediction, self.from_truth])


def _percentile(distances: NDArray[np.float64], percentile: float) -> float:
    if not len(distances):
        return 0.0  # of the empty mask: the other direction is infinite
    # between two infinities NumPy would interpolate to NaN; then all of them are
    return math.inf if np.isinf(distances[0]) else float(np.percentile(distances, percentile))


def surface_distances(
    prediction: NDArray[Any], truth: NDArray[Any], *, spacing: Sequence[float] | None = None
) -> SurfaceDistances:
    """The distances between the surfaces of two masks, each in both directions.

    The surface are the pixels with a neighbour (4 in two, 6 in three dimensions) outside the mask;
    outside the image nothing is in the mask. Distances are Euclidean, between pixel centres.

    Args:
        prediction: (H, W) or (D, H, W), foreground other than 0.
        truth: of the same shape.
        spacing: size of a pixel along each axis, in millimetres, say; None is 1.

    Raises:
        SpecError: shapes that differ, or a spacing that does not fit or is not above 0.

    Example:
        >>> mask = np.array([[0, 1, 0, 0], [0, 0, 0, 0]])
        >>> surface_distances(mask, np.roll(mask, 1, axis=1), spacing=(1.0, 2.5)).assd
        2.5
    """
    if prediction.shape != truth.shape:
        raise SpecError(f"masks must have one shape, got {prediction.shape} and {truth.shape}.")
    size = check_spacing(spacing, truth.ndim)
    said, real = (_surface(mask != 0) * size for mask in (prediction, truth))
    return SurfaceDistances(from_prediction=_nearest(said, real), from_truth=_nearest(real, said))


def check_spacing(spacing: Sequence[float] | None, dimensions: int) -> NDArray[np.float64]:
    """The spacing as an array, ones for None.

    Raises:
        SpecError: not one number above 0 an axis.

    Example:
        >>> check_spacing(None, 2)
        array([1., 1.])
    """
    size = np.ones(dimensions) if spacing is None else np.asarray(spacing, np.float64)
    if size.shape != (dimensions,) or not (np.isfinite(size) & (size > 0)).all():
        raise SpecError(f"spacing must be {dimensions} numbers above 0, got {spacing!r}.")
    return size


def check_tolerance(tolerance: float) -> None:
    """Raise `SpecError` unless it is a finite number from 0 up.

    Example:
        >>> check_tolerance(2.0)
    """
    if not (tolerance >= 0 and math.isfinite(tolerance)):
        raise SpecError(f"tolerance must be a finite number from 0 up, got {tolerance!r}.")


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Places of the surface pixels, (pixels, dimensions)."""
    places: NDArray[np.int64] = np.argwhere(mask & ~binary_erosion(mask))
    return places


def _nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from each point to the nearest of the others, infinite without one."""
    if not len(points) or not len(others):
        return np.full(len(points), math.inf)
    distances: NDArray[np.float64] = KDTree(others).query(points)[0]
    return distances
