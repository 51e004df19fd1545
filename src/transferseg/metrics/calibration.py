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
from transferseg.metrics.scores import refuse_labels
from transferseg.metrics.tables import json_number, json_numbers, mean, text_table
from transferseg.types import TargetMode

_UNIT = 2**24  # sums are whole numbers of 2^-24: exact, whatever the order and the processes
_VALUES = 2**21  # of a piece of an image, of all its channels: of a large image some are in memory


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
        nan_pixels: how many have no probability, since a logit is NaN: they are in no bin, and the
            errors of their class, and the means, are NaN.
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
    nan_pixels: Mapping[str, int]
    images: int

    @property
    def mean_ece(self) -> float:
        """Mean expected calibration error over the classes with a counted pixel."""
        return self._mean(self.ece)

    @property
    def mean_brier(self) -> float:
        """Mean Brier score over the classes with a counted pixel."""
        return self._mean(self.brier)

    def _mean(self, values: Mapping[str, float]) -> float:
        """NaN where a class is by its logits: a failed model must not score by the others."""
        return math.nan if any(self.nan_pixels.values()) else mean(values.values())

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
            "nan_pixels": dict(self.nan_pixels),
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

    Rows are int64 on the device of the data, (images, classes, bins + 2, 4): pixels, sum of the
    probabilities, sum of the truth, sum of squared errors, the sums in units of 2^-24 (each pixel's
    value is rounded to such a unit), so that adding them is exact in any order. Behind the bins
    stand the pixels whose probability is NaN, and those whose label is none of the classes.
    Exclusive classes have one entry in place of the classes.

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
        """(classes or 1, bins + 2, 4)."""
        return (len(self.names), self.bins + 2, 4)

    def configuration(self) -> dict[str, object]:
        """Classes, mode, bins and ignore_index."""
        return {name: getattr(self, name) for name in ("classes", "mode", "bins", "ignore_index")}

    @torch.no_grad()
    def count(self, logits: Tensor, target: Tensor) -> Tensor:
        """The rows of one batch, without adding them: int64 (B, classes or 1, bins + 2, 4).

        Args:
            logits: raw scores, (B, K, H, W) or (B, K, D, H, W), any float dtype; computed in at
                least float32.
            target: multiclass: class indices (B, [D,] H, W), integers in 0..K-1 or `ignore_index`
                (another label is found by `scores`); binary and multilabel: the shape of the
                logits, any real dtype, foreground above 0.5.

        Raises:
            SpecError: a shape or dtype that does not fit, naming both.
        """
        check_shapes("logits", logits, target, len(self.classes), self.mode)
        images = [self._image(*image) for image in zip(logits, target, strict=True)]
        if not images:
            return torch.zeros((0, *self.row_shape), dtype=torch.int64, device=logits.device)
        return torch.stack(images)

    def _image(self, logits: Tensor, target: Tensor) -> Tensor:
        """(classes or 1, bins + 2, 4) of one image, piece by piece."""
        logits, target = logits.flatten(1), target.flatten(0 if self.mode == "multiclass" else 1)
        rows = torch.zeros(self.row_shape, dtype=torch.int64, device=logits.device)
        step = max(_VALUES // len(logits), 1)
        for start in range(0, logits.shape[1], step):
            rows += self._piece(logits[:, start : start + step], target[..., start : start + step])
        return rows

    def _piece(self, logits: Tensor, target: Tensor) -> Tensor:
        """(classes or 1, bins + 2, 4) of some pixels: (K, n) and (n,) or (K, n)."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        values = target if target.is_floating_point() else target.long()
        counted = torch.ones_like(values, dtype=torch.bool)
        if self.ignore_index is not None:
            counted = values != self.ignore_index
        if self.mode == "multiclass":
            probability, truth, error = _confidence(logits.softmax(0), values)
            counted = counted.unsqueeze(0)
        else:
            probability, truth = logits.sigmoid(), values > 0.5
            error = (probability - truth.to(probability.dtype)).square()
        place = (probability * self.bins).nan_to_num().long().clamp_(0, self.bins - 1)
        place = torch.where(probability.isnan(), self.bins, place)
        if self.mode == "multiclass":
            place = torch.where((values < 0) | (values >= len(logits)), self.bins + 1, place)
        columns = [torch.ones_like(place), _units(probability), truth * _UNIT, _units(error)]
        zeros = place.new_zeros((len(place), self.bins + 2))
        # scatter_add of whole numbers: the same in every order, and no size to wait for
        return torch.stack(
            [zeros.scatter_add(1, place, column * counted) for column in columns], dim=-1
        )

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count one batch: see `count`."""
        self.append(self.count(logits, target))

    def scores(self) -> CalibrationScores:
        """Errors and the reliability diagram of everything counted so far.

        Raises:
            DataError: nothing counted, or labels outside the classes.
        """
        rows = self.rows.cpu().numpy()
        if not len(rows):
            raise DataError("no image has been counted, so there are no scores; an empty split?")
        refuse_labels("ground truth", rows[:, :, -1, 0].sum(1) > 0, len(self.classes))
        pixels, sums = _table(rows)
        nan = dict(zip(self.names, pixels[:, self.bins].tolist(), strict=True))
        bins = {
            name: _Bins(some, *values.T)
            for name, some, values in zip(
                self.names, pixels[:, : self.bins], sums[:, : self.bins], strict=True
            )
        }
        return CalibrationScores(
            ece={name: math.nan if nan[name] else of.expected for name, of in bins.items()},
            mce={name: math.nan if nan[name] else of.largest for name, of in bins.items()},
            brier={name: math.nan if nan[name] else of.brier for name, of in bins.items()},
            probability={name: tuple(of.probability.tolist()) for name, of in bins.items()},
            frequency={name: tuple(of.frequency.tolist()) for name, of in bins.items()},
            pixels={name: tuple(of.pixels.tolist()) for name, of in bins.items()},
            nan_pixels=nan,
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


def _table(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pixels (n, bins) and sums (n, bins, 3) of all images, from (images, n, bins, 4)."""
    # whole numbers and their fractions apart: in units of 2^-24 many images exceed 64 bits
    whole, rest = np.divmod(rows[..., 1:], _UNIT)
    return rows[..., 0].sum(0), whole.sum(0) + rest.sum(0) / _UNIT


@dataclass(frozen=True)
class _Bins:
    """Of one class: pixels, and sums of probability, truth and squared error, (bins,) each."""

    pixels: NDArray[np.int64]
    said: NDArray[np.float64]
    true: NDArray[np.float64]
    error: NDArray[np.float64]

    @property
    def probability(self) -> NDArray[np.float64]:
        return ratio(self.said, self.pixels.astype(np.float64))

    @property
    def frequency(self) -> NDArray[np.float64]:
        return ratio(self.true, self.pixels.astype(np.float64))

    @property
    def expected(self) -> float:
        if not self.pixels.any():
            return math.nan
        return float(np.abs(self.said - self.true).sum() / self.pixels.sum())

    @property
    def largest(self) -> float:
        if not self.pixels.any():
            return math.nan
        return float(np.nanmax(np.abs(self.probability - self.frequency)))

    @property
    def brier(self) -> float:
        return float(self.error.sum() / self.pixels.sum()) if self.pixels.any() else math.nan
