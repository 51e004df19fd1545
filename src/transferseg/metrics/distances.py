"""Surface distances of each image and class, streaming; empty masks by a stated policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferseg.errors import DataError, SpecError, unknown_name
from transferseg.metrics.distribution import Distribution, ImageScores
from transferseg.metrics.objects import ObjectRows
from transferseg.metrics.scores import chosen_classes
from transferseg.metrics.surface import check_spacing, check_tolerance, surface_distances
from transferseg.metrics.tables import json_number, json_numbers, mean, text_table
from transferseg.types import TargetMode

#: What an image scores where only one of the masks is empty: see `SurfaceScores`.
OneEmpty: TypeAlias = Literal["exclude", "diagonal", "infinite"]

_SCORES = ("hd", "hd95", "assd", "surface_dice")
_ONE_EMPTY = {
    "exclude": "left out",
    "diagonal": "the image's diagonal",
    "infinite": "infinite",
}


@dataclass(frozen=True)
class SurfaceScores:
    """Surface distances by class, each the mean over images.

    Images in which neither mask has the class count nowhere; `both_empty` says how many.

    Attributes:
        hd: Hausdorff distance, in the units of the spacing; 0 is perfect.
        hd95: its 95th percentile: the larger of the two directions' percentiles.
        assd: average symmetric surface distance.
        surface_dice: normalised surface Dice at the tolerance, 0..1.
        tolerance: of the surface Dice, in the units of the spacing.
        spacing: size of a pixel along each axis where an update gave none; None for 1.
        one_empty: what an image scores where only one mask is empty: "exclude": nothing;
            "diagonal": that of the image in all distances, and a surface Dice of 0; "infinite":
            infinite distances, and 0.
        images: how many images were counted.
        both_empty: by class, in how many of them neither mask has it.
        missed: by class, in how many the truth has it and the prediction has not.
        false_alarms: by class, in how many the prediction has it and the truth has not.

    Example:
        >>> counts = SurfaceCounts(["lung"], mode="binary", tolerance=1.0)
        >>> truth = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
        >>> truth[0, :, 2:5, 2:5] = 1
        >>> counts.update_masks(truth.roll(1, dims=2), truth)
        >>> print(counts.scores())
        mean over 2 images; one mask empty: left out; surface Dice at 1
        class      HD    HD95    ASSD  surface Dice  both empty  missed  false alarms
        lung   1.0000  1.0000  0.5000        1.0000           1       0             0
    """

    hd: Mapping[str, float]
    hd95: Mapping[str, float]
    assd: Mapping[str, float]
    surface_dice: Mapping[str, float]
    tolerance: float
    spacing: tuple[float, ...] | None
    one_empty: OneEmpty
    images: int
    both_empty: Mapping[str, int]
    missed: Mapping[str, int]
    false_alarms: Mapping[str, int]

    @property
    def mean_hd(self) -> float:
        """Mean Hausdorff distance over the classes where it is defined."""
        return mean(self.hd.values())

    @property
    def mean_hd95(self) -> float:
        """Mean HD95 over the classes where it is defined."""
        return mean(self.hd95.values())

    @property
    def mean_assd(self) -> float:
        """Mean ASSD over the classes where it is defined."""
        return mean(self.assd.values())

    @property
    def mean_surface_dice(self) -> float:
        """Mean surface Dice over the classes where it is defined."""
        return mean(self.surface_dice.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, the means included; None where undefined or infinite."""
        means = ("mean_hd", "mean_hd95", "mean_assd", "mean_surface_dice")
        numbers = ("both_empty", "missed", "false_alarms")
        return {
            "tolerance": self.tolerance,
            "spacing": None if self.spacing is None else list(self.spacing),
            "one_empty": self.one_empty,
            "images": self.images,
            **{name: json_number(getattr(self, name)) for name in means},
            **{name: json_numbers(getattr(self, name)) for name in _SCORES},
            **{name: dict(getattr(self, name)) for name in numbers},
        }

    def __str__(self) -> str:
        header = ("class", "HD", "HD95", "ASSD", "surface Dice", "both empty", "missed",
                  "false alarms")  # fmt: skip
        columns = (self.hd, self.hd95, self.assd, self.surface_dice)
        numbers = (self.both_empty, self.missed, self.false_alarms)
        lines: list[list[float | int | str]] = [
            [name, *(c[name] for c in columns), *(n[name] for n in numbers)] for name in self.hd
        ]
        images = f"{self.images} image{'' if self.images == 1 else 's'}"
        empty = f"one mask empty: {_ONE_EMPTY[self.one_empty]}"
        head = f"mean over {images}; {empty}; surface Dice at {self.tolerance:g}"
        return f"{head}\n{text_table(header, lines)}"


class SurfaceCounts(ObjectRows):
    """Hausdorff, mean surface distance and surface Dice of each image and class, streaming.

    Rows are float64, (images, classes, 6): HD, HD95, ASSD, surface Dice, the diagonal of the image,
    and 1 where the truth is empty. Distances are computed on the CPU (scipy), so that each update
    waits for the device: for evaluation, not for every training step. Surfaces in slices are not
    surfaces in volumes: give volumes (B, K, D, H, W) and three spacings where the voxels have one.

    Args:
        classes: names in the order of the logits' channels, or their number.
        mode: "binary", "multiclass" or "multilabel".
        tolerance: of the surface Dice, in the units of the spacing.
        spacing: size of a pixel along each axis, in millimetres, say; None is 1. What
            `update` is given goes before it: for scans that each have their own.
        threshold: binary and multilabel: the probability above which a pixel is foreground.
        ignore_index: pixels with this target value are background in both masks.

    Raises:
        SpecError: an unknown mode, classes that do not fit it, a tolerance below 0.

    Example:
        >>> counts = SurfaceCounts(["lung"], mode="binary", spacing=(0.5, 0.5))
        >>> truth = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        >>> truth[:, :, 2:5, 2:5] = 1
        >>> counts.update_masks(truth.roll(1, dims=2), truth)
        >>> counts.scores().hd
        {'lung': 0.5}
    """

    row_dtype = torch.float64

    def __init__(
        self,
        classes: int | Sequence[str],
        *,
        mode: TargetMode,
        tolerance: float = 1.0,
        spacing: Sequence[float] | None = None,
        threshold: float = 0.5,
        ignore_index: int | None = 255,
    ) -> None:
        super().__init__(classes, mode=mode, threshold=threshold, ignore_index=ignore_index)
        check_tolerance(tolerance)
        self.tolerance = float(tolerance)
        self.spacing = None if spacing is None else tuple(float(size) for size in spacing)
        if self.spacing is not None:
            check_spacing(self.spacing, len(self.spacing))

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(classes, 6)."""
        return (len(self.classes), 6)

    def configuration(self) -> dict[str, object]:
        """Everything that the constructor takes."""
        own = {"tolerance": self.tolerance, "spacing": self.spacing}
        return super().configuration() | own

    def count(
        self, logits: Tensor, target: Tensor, *, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """The rows of one batch, without adding them: see `ObjectRows.count`.

        Args:
            logits: raw scores, (B, K, H, W) or (B, K, D, H, W), any float dtype.
            target: class indices (B, [D,] H, W), or masks in the shape of the logits.
            spacing: of the pixels of this batch; None for the metric's own.

        Raises:
            SpecError: a shape, dtype or spacing that does not fit.
            DataError: labels outside the classes, naming the first image.
        """
        return ObjectRows.count(self._spaced(spacing), logits, target)

    def update(
        self, logits: Tensor, target: Tensor, *, spacing: Sequence[float] | None = None
    ) -> None:
        """Count one batch: see `count`."""
        self.append(self.count(logits, target, spacing=spacing).to(self._device))

    def update_masks(
        self, prediction: Tensor, target: Tensor, *, spacing: Sequence[float] | None = None
    ) -> None:
        """Count one batch of hard masks: see `ObjectRows.update_masks`; `spacing` as in `count`."""
        alone = self._spaced(spacing)
        ObjectRows.update_masks(alone, prediction, target)
        if alone is not self:
            self.append(alone.rows.to(self._device))

    def _spaced(self, spacing: Sequence[float] | None) -> SurfaceCounts:
        """Itself, or an empty one for pixels of another size."""
        if spacing is None:
            return self
        return SurfaceCounts(
            self.classes, mode=self.mode, tolerance=self.tolerance, spacing=spacing,
            threshold=self.threshold, ignore_index=self.ignore_index,
        )  # fmt: skip

    def image_row(
        self, prediction: NDArray[np.bool_], truth: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """(classes, 6) of one image."""
        size = check_spacing(self.spacing, truth.ndim - 1)
        diagonal = float(np.linalg.norm(np.array(truth.shape[1:]) * size))
        rows = np.empty(self.row_shape)
        for row, said, real in zip(rows, prediction, truth, strict=True):
            found = surface_distances(said, real, spacing=self.spacing)
            scores = (found.hausdorff(), found.hausdorff(95), found.assd)
            row[:] = *scores, found.surface_dice(self.tolerance), diagonal, not real.any()
        return rows

    def scores(
        self, *, classes: Sequence[str] | None = None, one_empty: OneEmpty = "exclude"
    ) -> SurfaceScores:
        """Distances of everything counted so far, the mean over images.

        Args:
            classes: names to score, all of them by default; leave the background out here.
            one_empty: what an image scores where only one of the masks is empty: see
                `SurfaceScores`.

        Raises:
            SpecError: an unknown class or policy.
            DataError: nothing counted.
        """
        chosen = chosen_classes(classes, self.classes)
        places = [self.classes.index(name) for name in chosen]
        values = self._values(one_empty)
        rows = self.rows.cpu().numpy()
        neither, one, no_truth = _empty(rows)
        by_score = {
            score: {n: mean(columns[:, p]) for n, p in zip(chosen, places, strict=True)}
            for score, columns in values.items()
        }

        def images(condition: NDArray[np.bool_]) -> dict[str, int]:
            return {n: int(condition[:, p].sum()) for n, p in zip(chosen, places, strict=True)}

        return SurfaceScores(
            **by_score,
            tolerance=self.tolerance,
            spacing=self.spacing,
            one_empty=one_empty,
            images=len(rows),
            both_empty=images(neither),
            missed=images(one & ~no_truth),
            false_alarms=images(one & no_truth),
        )

    def image_scores(
        self, score: str, *, classes: Sequence[str] | None = None, one_empty: OneEmpty = "exclude"
    ) -> ImageScores:
        """One score of each image and class: for intervals and paired tests.

        Args:
            score: "hd", "hd95", "assd" or "surface_dice".
            classes: names to score, all of them by default.
            one_empty: see `scores`; with "infinite" there is no mean to compare.

        Raises:
            SpecError: an unknown score, class or policy.
            DataError: nothing counted.
        """
        if score not in _SCORES:
            raise SpecError(unknown_name("score", score, _SCORES))
        chosen = chosen_classes(classes, self.classes)
        places = [self.classes.index(name) for name in chosen]
        return ImageScores(score, one_empty, chosen, self._values(one_empty)[score][:, places])

    def distribution(
        self, score: str, name: str, *, one_empty: OneEmpty = "exclude"
    ) -> Distribution:
        """How one score of one class is spread over the images.

        Args:
            score: "hd", "hd95", "assd" or "surface_dice".
            name: of the class.
            one_empty: see `scores`.

        Raises:
            SpecError: an unknown score, class or policy.
            DataError: nothing counted.
        """
        return self.image_scores(score, one_empty=one_empty).distribution(name)

    def _values(self, one_empty: OneEmpty) -> dict[str, NDArray[np.float64]]:
        """Each score of every image and class, (images, classes), NaN where it counts nowhere."""
        if one_empty not in get_args(OneEmpty):
            raise SpecError(unknown_name("policy", str(one_empty), get_args(OneEmpty)))
        rows = self.rows.cpu().numpy()
        if not len(rows):
            raise DataError("no image has been counted, so there are no scores; an empty split?")
        _, one, _ = _empty(rows)
        found = {}
        for place, name in enumerate(_SCORES):
            values = rows[..., place].copy()
            if one_empty == "exclude":
                values[one] = math.nan
            elif one_empty == "diagonal" and name != "surface_dice":
                values[one] = rows[..., 4][one]
            found[name] = values
        return found


def _empty(rows: NDArray[np.float64]) -> tuple[NDArray[np.bool_], ...]:
    """Where neither mask, where exactly one, and where no truth is; (images, classes) each."""
    return np.isnan(rows[..., 0]), np.isinf(rows[..., 0]), rows[..., 5] > 0
