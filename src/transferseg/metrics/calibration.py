"""Calibration: whether of the pixels called 80 % foreground, 80 % are; streaming and exact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferseg.errors import DataError, SpecError
from transferseg.metrics.counts import SegmentationCounts, check_shapes
from transferseg.metrics.overlap import ratio
from transferseg.metrics.rows import ImageRows
from transferseg.metrics.tables import json_number, json_numbers, mean, text_table
from transferseg.types import TargetMode

_UNIT = 2**24  # sums are whole numbers of 2^-24: exact, whatever the order and the processes


@dataclass(frozen=True)
class CalibrationScores:
    """Calibration errors by class, pooled over all counted pixels.

    Of independent classes (binary, multilabel) the probability of the class is compared with how
    often it is there. Exclusive classes have one entry, "confidence": the largest probability
    beside how often that class is right; their Brier score is the sum over the classes.

    Attributes:
        ece: expected calibration error: the mean over the bins, weighted with their pixels, of how
            far mean probability and frequency are apart; 0..1, NaN without a counted pixel.
        mce: the largest of these differences.
        brier: mean squared difference of probability and truth; 0..1, of exclusive classes 0..2.
        probability: mean probability by bin, NaN in an empty one.
        frequency: part of the bin's pixels that are of the class (or right), likewise.
        pixels: how many pixels each bin has.
        images: how many images were counted.

    Source: Guo et al. 2017 (ECE, MCE); Brier 1950.

    Example:
        >>> counts = CalibrationCounts(["polyp"], mode="binary", bins=2)
        >>> counts.update(torch.tensor([[[[-20.0, 0.0, 0.0, 20.0]]]]),
        ...               torch.tensor([[[[0, 0, 1, 1]]]]))
        >>> print(counts.scores())
        pooled over 1 image, 2 bins
        class     ECE     MCE   Brier  pixels
        polyp  0.0000  0.0000  0.1250       4
    """

    ece: Mapping[str, float]
    mce: Mapping[str, float]
    brier: Mapping[str, float]
    probability: Mapping[str, tuple[float, ...]]
    frequency: Mapping[str, tuple[float, ...]]
    pixels: Mapping[str, tuple[int, ...]]
    images: int

    @property
    def mean_ece(self) -> float:
        """Mean expected calibration error over the classes where it is defined."""
        return mean(self.ece.values())

    @property
    def mean_brier(self) -> float:
        """Mean Brier score over the classes where it is defined."""
        return mean(self.brier.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, the means included; None where undefined."""
        bins = {
            name: {key: [json_number(v) for v in values] for key, values in by_class.items()}
            for name, by_class in (("probability", self.probability), ("frequency", self.frequency))
        }
        return {
            "images": self.images,
            "mean_ece": json_number(self.mean_ece),
            "mean_brier": json_number(self.mean_brier),
            **{name: json_numbers(getattr(self, name)) for name in ("ece", "mce", "brier")},
            **bins,
            "pixels": {name: list(values) for name, values in self.pixels.items()},
        }

    def __str__(self) -> str:
        bins = len(next(iter(self.pixels.values())))
        lines: list[list[float | int | str]] = [
            [name, self.ece[name], self.mce[name], self.brier[name], sum(self.pixels[name])]
            for name in self.ece
        ]
        images = f"{self.images} image{'' if self.images == 1 else 's'}"
        table = text_table(["class", "ECE", "MCE", "Brier", "pixels"], lines)
        return f"pooled over {images}, {bins} bins\n{table}"


class CalibrationCounts(ImageRows):
    """Pixels, probabilities, truth and squared errors of each bin of probability, streaming.

    Rows are int64 on the device of the data, (images, classes, bins, 4): pixels, sum of the
    probabilities, sum of the truth, sum of squared errors, the sums in units of 2^-24 (each pixel's
    value is rounded to such a unit), so that adding them is exact in any order. Exclusive classes
    have one entry in place of the classes.

    Args:
        classes: names in the order of the logits' channels, or their number.
        mode: "binary" and "multilabel" (sigmoid), "multiclass" (softmax).
        bins: how many, of equal width, each with its lower limit; the last has 1 too.
        ignore_index: pixels with this target value count nowhere; None for no such value.

    Raises:
        SpecError: an unknown mode, classes that do not fit it, no bin.

    Example:
        >>> counts = CalibrationCounts(["background", "lung"], mode="multiclass")
        >>> counts.update(torch.tensor([[[[9.0]], [[0.0]]]]), torch.tensor([[[1]]]))
        >>> round(counts.scores().ece["confidence"], 3)
        1.0
    """

    row_dtype = torch.int64

    def __init__(
        self,
        classes: int | Sequence[str],
        *,
        mode: TargetMode,
        bins: int = 15,
        ignore_index: int | None = 255,
    ) -> None:
        super().__init__()
        if bins < 1:
            raise SpecError(f"bins must be 1 or more, got {bins!r}.")
        like = SegmentationCounts(classes, mode=mode, ignore_index=ignore_index)
        self.classes, self.mode = like.classes, mode
        self.bins, self.ignore_index = bins, ignore_index

    @property
    def names(self) -> tuple[str, ...]:
        """What is scored: the classes, or "confidence" of exclusive ones."""
        return ("confidence",) if self.mode == "multiclass" else self.classes

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(classes or 1, bins, 4)."""
        return (len(self.names), self.bins, 4)

    def configuration(self) -> dict[str, object]:
        """Classes, mode, bins and ignore_index."""
        return {name: getattr(self, name) for name in ("classes", "mode", "bins", "ignore_index")}

    @torch.no_grad()
    def count(self, logits: Tensor, target: Tensor) -> Tensor:
        """The rows of one batch, without adding them: int64 (B, classes or 1, bins, 4).

        Args:
            logits: raw scores, (B, K, H, W), any float dtype; computed in at least float32. A NaN
                falls into the first bin.
            target: multiclass: class indices (B, H, W), integers; binary and multilabel:
                (B, K, H, W), any real dtype, foreground above 0.5.

        Raises:
            SpecError: a shape or dtype that does not fit, naming both.
        """
        check_shapes("logits", logits, target, len(self.classes), self.mode)
        images = [self._image(*image) for image in zip(logits, target, strict=True)]
        if not images:
            return torch.zeros((0, *self.row_shape), dtype=torch.int64, device=logits.device)
        return torch.stack(images)

    def _image(self, logits: Tensor, target: Tensor) -> Tensor:
        """(classes or 1, bins, 4) of one image."""
        logits = logits.flatten(1).to(torch.promote_types(logits.dtype, torch.float32))
        values = target.flatten(0 if self.mode == "multiclass" else 1)
        values = values if values.is_floating_point() else values.long()
        counted = torch.ones_like(values, dtype=torch.bool)
        if self.ignore_index is not None:
            counted = values != self.ignore_index
        if self.mode == "multiclass":
            probability, truth, error = _confidence(logits.softmax(0), values)
            counted = counted.unsqueeze(0)
        else:
            probability, truth = logits.sigmoid(), values > 0.5
            error = (probability - truth.to(probability.dtype)).square()
        return self._sums(probability, truth, error, counted)

    def _sums(self, probability: Tensor, truth: Tensor, error: Tensor, counted: Tensor) -> Tensor:
        """(classes or 1, bins, 4) from four (classes or 1, pixels)."""
        place = (probability * self.bins).nan_to_num().long().clamp_(0, self.bins - 1)
        columns = [torch.ones_like(place), _units(probability), truth * _UNIT, _units(error)]
        zeros = place.new_zeros((len(place), self.bins))
        # scatter_add_ of whole numbers: the same in every order, and no size to wait for
        return torch.stack(
            [zeros.scatter_add(1, place, column * counted) for column in columns], dim=-1
        )

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count one batch: see `count`."""
        self.append(self.count(logits, target))

    def scores(self) -> CalibrationScores:
        """Errors and the reliability diagram of everything counted so far.

        Raises:
            DataError: nothing counted.
        """
        rows = self.rows.cpu().numpy()
        if not len(rows):
            raise DataError("no image has been counted, so there are no scores; an empty split?")
        table = dict(zip(self.names, rows.sum(0), strict=True))
        columns = {name: _columns(bins) for name, bins in table.items()}
        return CalibrationScores(
            ece={name: _expected(*columns[name]) for name in table},
            mce={name: _largest(*columns[name]) for name in table},
            brier={name: _mean_error(bins) for name, bins in table.items()},
            probability={name: tuple(columns[name][1].tolist()) for name in table},
            frequency={name: tuple(columns[name][2].tolist()) for name in table},
            pixels={name: tuple(columns[name][0].tolist()) for name in table},
            images=len(rows),
        )


def _confidence(probability: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of exclusive classes: largest probability, whether its class is right, squared error."""
    classes = torch.arange(len(probability), device=probability.device).unsqueeze(1)
    error = (probability - (classes == target).to(probability.dtype)).square().sum(0, keepdim=True)
    largest, place = probability.max(dim=0, keepdim=True)
    return largest, place == target, error


def _units(values: Tensor) -> Tensor:
    return (values * _UNIT).nan_to_num().round().long()


_Columns = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


def _columns(bins: NDArray[np.int64]) -> _Columns:
    """Pixels, mean probability and frequency of each bin, from (bins, 4)."""
    pixels, said, true = bins[:, 0], bins[:, 1] / _UNIT, bins[:, 2] / _UNIT
    number = pixels.astype(np.float64)
    return pixels, ratio(said, number), ratio(true, number)


def _expected(pixels: NDArray[np.int64], said: NDArray[Any], true: NDArray[Any]) -> float:
    if not pixels.sum():
        return math.nan
    return float(np.nansum(np.abs(said - true) * pixels) / pixels.sum())


def _largest(pixels: NDArray[np.int64], said: NDArray[Any], true: NDArray[Any]) -> float:
    return float(np.nanmax(np.abs(said - true))) if pixels.sum() else math.nan


def _mean_error(bins: NDArray[np.int64]) -> float:
    return float(bins[:, 3].sum() / _UNIT / bins[:, 0].sum()) if bins[:, 0].sum() else math.nan
