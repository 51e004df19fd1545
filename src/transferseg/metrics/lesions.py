"""Lesion-wise detection: how many lesions are found, and how many findings are none; streaming."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from transferseg.errors import DataError, SpecError
from transferseg.metrics.components import Criterion, check_matching, match_lesions
from transferseg.metrics.objects import ObjectRows
from transferseg.metrics.scores import chosen_classes
from transferseg.metrics.tables import json_number, json_numbers, mean, text_table
from transferseg.types import TargetMode

_HEADER = ("class", "sensitivity", "precision", "F1", "FP per image", "lesions", "predicted")


@dataclass(frozen=True)
class LesionScores:
    """Detection scores by class, over the lesions of all images.

    Attributes:
        criterion: when a lesion counts as found: see `match_lesions`.
        above: part of the lesion, or IoU, that had to be exceeded.
        connectivity: of the components: see `label_lesions`.
        min_size: pixels from which on a component was a lesion.
        sensitivity: found lesions over all true ones; NaN without one.
        precision: predicted lesions that are true, over all predicted ones; NaN without one.
        f1: harmonic mean of the two; 0 where one of them is 0, NaN without a true lesion.
        false_positives_per_image: predicted lesions that are not true, over all images.
        lesions: how many true lesions there are.
        predicted: how many predicted ones.
        sensitivity_by_size: by class and size bin ("1-9", "10-99", "100 and more" pixels for
            limits of 10 and 100), the part of the true lesions of that size that is found.
        lesions_by_size: likewise, how many there are.
        images: how many images were counted (volumes, if volumes were).
        empty_images: by class, in how many of them there is no true lesion.
        false_alarm_images: by class, in how many of those one is predicted.

    Example:
        >>> counts = LesionCounts(["lesion"], mode="binary")
        >>> counts.update_masks(torch.tensor([[[[1, 0, 1]]]]), torch.tensor([[[[1, 0, 0]]]]))
        >>> print(counts.scores())
        lesions of 1 image; found: overlap above 0
        class   sensitivity  precision      F1  FP per image  lesions  predicted
        lesion       1.0000     0.5000  0.6667        1.0000        1          2
    """

    criterion: Criterion
    above: float
    connectivity: int | None
    min_size: int
    sensitivity: Mapping[str, float]
    precision: Mapping[str, float]
    f1: Mapping[str, float]
    false_positives_per_image: Mapping[str, float]
    lesions: Mapping[str, int]
    predicted: Mapping[str, int]
    sensitivity_by_size: Mapping[str, Mapping[str, float]]
    lesions_by_size: Mapping[str, Mapping[str, int]]
    images: int
    empty_images: Mapping[str, int]
    false_alarm_images: Mapping[str, int]

    @property
    def mean_sensitivity(self) -> float:
        """Mean sensitivity over the classes with a lesion."""
        return mean(self.sensitivity.values())

    @property
    def mean_precision(self) -> float:
        """Mean precision over the classes with a predicted lesion."""
        return mean(self.precision.values())

    @property
    def mean_f1(self) -> float:
        """Mean F1 over the classes with a lesion."""
        return mean(self.f1.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, the means included; None where undefined."""
        means = ("mean_sensitivity", "mean_precision", "mean_f1")
        scores = ("sensitivity", "precision", "f1", "false_positives_per_image")
        numbers = ("lesions", "predicted", "empty_images", "false_alarm_images")
        sizes = self.sensitivity_by_size.items()
        return {
            "criterion": self.criterion,
            "above": self.above,
            "connectivity": self.connectivity,
            "min_size": self.min_size,
            "images": self.images,
            **{name: json_number(getattr(self, name)) for name in means},
            **{name: json_numbers(getattr(self, name)) for name in scores},
            **{name: dict(getattr(self, name)) for name in numbers},
            "sensitivity_by_size": {name: json_numbers(found) for name, found in sizes},
            "lesions_by_size": {name: dict(n) for name, n in self.lesions_by_size.items()},
        }

    def __str__(self) -> str:
        columns = (self.sensitivity, self.precision, self.f1, self.false_positives_per_image)
        lines: list[list[float | int | str]] = [
            [name, *(c[name] for c in columns), self.lesions[name], self.predicted[name]]
            for name in self.sensitivity
        ]
        what = "overlap" if self.criterion == "overlap" else "IoU"
        images = f"{self.images} image{'' if self.images == 1 else 's'}"
        head = f"lesions of {images}; found: {what} above {self.above:g}"
        return f"{head}\n{text_table(_HEADER, lines)}"


class LesionCounts(ObjectRows):
    """True, found, predicted and rightly predicted lesions of each image and class, by size.

    Rows are int64, (images, classes, size bins, 4); a true lesion stands in the bin of its own
    size, a predicted one in that of its. Lesions are found on the CPU (scipy), so that each update
    waits for the device: for evaluation, not for every training step. In volumes (B, K, D, H, W) a
    lesion is one component in three dimensions; counted slice by slice it is one in every slice
    that shows it, and the numbers cannot be compared.

    Args:
        classes: names in the order of the logits' channels, or their number.
        mode: "binary", "multiclass" or "multilabel". The components of each class are found alone.
        criterion: "overlap" or "iou", when a lesion is found: see `match_lesions`.
        above: part of a lesion, or IoU, that must be exceeded; 0..1, 1 excluded.
        connectivity: see `label_lesions`.
        min_size: components of fewer pixels are no lesions, neither true nor predicted.
        size_limits: rising numbers of pixels: (10, 100) makes the bins 1-9, 10-99, 100 and more.
        threshold: binary and multilabel: the probability above which a pixel is foreground.
        ignore_index: pixels with this target value are background in both masks.

    Raises:
        SpecError: an unknown mode or criterion, classes that do not fit, limits that do not rise,
            a connectivity or a size that no mask has.

    Example:
        >>> counts = LesionCounts(["lesion"], mode="binary", size_limits=[2])
        >>> truth = torch.tensor([[[[1, 0, 1, 1]]]])
        >>> counts.update_masks(torch.tensor([[[[0, 0, 1, 0]]]]), truth)
        >>> counts.scores().sensitivity_by_size
        {'lesion': {'1-1': 0.0, '2 and more': 1.0}}
    """

    row_dtype = torch.int64

    def __init__(
        self,
        classes: int | Sequence[str],
        *,
        mode: TargetMode,
        criterion: Criterion = "overlap",
        above: float = 0.0,
        connectivity: int | None = None,
        min_size: int = 1,
        size_limits: Sequence[int] = (),
        threshold: float = 0.5,
        ignore_index: int | None = 255,
    ) -> None:
        super().__init__(classes, mode=mode, threshold=threshold, ignore_index=ignore_index)
        check_matching(criterion, above, connectivity=connectivity, min_size=min_size)
        self.criterion, self.above = criterion, above
        self.connectivity, self.min_size = connectivity, min_size
        self.size_limits = tuple(size_limits)
        if any(b <= a for a, b in zip((1, *self.size_limits), self.size_limits, strict=False)):
            raise SpecError(f"size_limits must rise, from above 1 pixel on, got {size_limits!r}.")

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(classes, size bins, 4)."""
        return (len(self.classes), len(self.size_limits) + 1, 4)

    def configuration(self) -> dict[str, object]:
        """Everything that the constructor takes."""
        names = ("criterion", "above", "connectivity", "min_size", "size_limits")
        return super().configuration() | {name: getattr(self, name) for name in names}

    def image_row(
        self, prediction: NDArray[np.bool_], truth: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """(classes, size bins, 4) of one image."""
        rows = np.zeros(self.row_shape, np.int64)
        for row, said, real in zip(rows, prediction, truth, strict=True):
            match = match_lesions(
                said, real, criterion=self.criterion, above=self.above,
                connectivity=self.connectivity, min_size=self.min_size,
            )  # fmt: skip
            row[:, 0], row[:, 1] = self._by_size(match.sizes, match.found)
            row[:, 2], row[:, 3] = self._by_size(match.predicted_sizes, match.true)
        return rows

    def _by_size(self, sizes: NDArray[np.int64], hit: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
        """How many lesions each size bin has, and how many of them are hit."""
        places = np.searchsorted(self.size_limits, sizes, side="right")
        bins = len(self.size_limits) + 1
        return [np.bincount(some, minlength=bins) for some in (places, places[hit])]

    def scores(self, *, classes: Sequence[str] | None = None) -> LesionScores:
        """Detection scores of everything counted so far.

        Args:
            classes: names to score, all of them by default; leave the background out here.

        Raises:
            SpecError: an unknown class.
            DataError: nothing counted.
        """
        rows = self.rows.cpu().numpy()
        chosen = chosen_classes(classes, self.classes)
        if not len(rows):
            raise DataError("no image has been counted, so there are no scores; an empty split?")
        rows = rows[:, [self.classes.index(name) for name in chosen]]
        total = dict(zip(chosen, rows.sum((0, 2)).tolist(), strict=True))
        sizes = dict(zip(chosen, rows.sum(0).tolist(), strict=True))
        sensitivity = {name: _part(found, all_) for name, (all_, found, _, _) in total.items()}
        precision = {name: _part(right, said) for name, (_, _, said, right) in total.items()}
        empty = rows[..., 0].sum(-1) == 0
        alarm = empty & (rows[..., 2].sum(-1) > 0)
        names = _size_names(self.size_limits)
        return LesionScores(
            criterion=self.criterion,
            above=self.above,
            connectivity=self.connectivity,
            min_size=self.min_size,
            sensitivity=sensitivity,
            precision=precision,
            f1={name: _f1(sensitivity[name], precision[name]) for name in total},
            false_positives_per_image={n: (t[2] - t[3]) / len(rows) for n, t in total.items()},
            lesions={name: numbers[0] for name, numbers in total.items()},
            predicted={name: numbers[2] for name, numbers in total.items()},
            sensitivity_by_size={
                name: {size: _part(b[1], b[0]) for size, b in zip(names, bins, strict=True)}
                for name, bins in sizes.items()
            },
            lesions_by_size={
                name: {size: b[0] for size, b in zip(names, bins, strict=True)}
                for name, bins in sizes.items()
            },
            images=len(rows),
            empty_images=dict(zip(chosen, empty.sum(0).tolist(), strict=True)),
            false_alarm_images=dict(zip(chosen, alarm.sum(0).tolist(), strict=True)),
        )


def _part(some: int, whole: int) -> float:
    return some / whole if whole else math.nan


def _f1(sensitivity: float, precision: float) -> float:
    if math.isnan(sensitivity):
        return math.nan
    if math.isnan(precision) or not sensitivity * precision:
        return 0.0
    return 2 * sensitivity * precision / (sensitivity + precision)


def _size_names(limits: Sequence[int]) -> list[str]:
    """As "1-9", "10-99", "100 and more"."""
    starts = (1, *limits)
    return [f"{a}-{b - 1}" for a, b in zip(starts, limits, strict=False)] + [
        f"{starts[-1]} and more"
    ]
