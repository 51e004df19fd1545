"""Counts at many thresholds at once: which probability should be called foreground."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transferseg.errors import DataError, SpecError
from transferseg.metrics.counts import SegmentationCounts, check_shapes, check_threshold
from transferseg.metrics.overlap import EmptyScore, Scheme
from transferseg.metrics.rows import ImageRows
from transferseg.metrics.scores import SegmentationScores
from transferseg.metrics.tally import overlapping_counts
from transferseg.types import TargetMode

#: 0.05, 0.10, ... 0.95
THRESHOLDS = tuple(step / 20 for step in range(1, 20))


@dataclass(frozen=True)
class SweepScores:
    """The scores at each threshold.

    Attributes:
        by_threshold: threshold -> scores, thresholds rising.

    Example:
        >>> counts = ThresholdCounts(["polyp"], mode="binary", thresholds=[0.25, 0.5, 0.75])
        >>> logits = torch.tensor([[[[-0.5, 0.5, 0.5, 2.0]]]])
        >>> counts.update(logits, torch.tensor([[[[0, 1, 1, 1]]]]))
        >>> counts.scores().best("mean_dice")
        0.5
    """

    by_threshold: Mapping[float, SegmentationScores]

    def values(self, score: str) -> dict[float, float]:
        """One score by threshold; any number that `SegmentationScores` has, such as "mean_dice".

        Raises:
            SpecError: a score that is no number or does not exist.
        """
        found = {at: getattr(scores, score, None) for at, scores in self.by_threshold.items()}
        numbers = {at: value for at, value in found.items() if isinstance(value, float)}
        if len(numbers) != len(found):
            raise SpecError(f"{score!r} is no number of the scores; ask for one like 'mean_dice'.")
        return numbers

    def best(self, score: str) -> float:
        """The threshold with the largest score, the lowest of several.

        Choose it on validation images: on those of the test it flatters.

        Raises:
            SpecError: see `values`.
            DataError: the score is undefined at every threshold.
        """
        values = {at: value for at, value in self.values(score).items() if not math.isnan(value)}
        if not values:
            raise DataError(f"{score} is undefined at every threshold; is the class ever present?")
        return max(values, key=values.__getitem__)


class ThresholdCounts(ImageRows):
    """TP, FP, FN and TN of each image and class at each of several thresholds, in one pass.

    Rows are int64 on the device of the data, (images, classes, thresholds, 4): at each threshold
    exactly those of a `SegmentationCounts` with it.

    Args:
        classes: names in the order of the logits' channels, or their number.
        mode: "binary" or "multilabel"; exclusive classes have no threshold.
        thresholds: probabilities, distinct and rising; by default 0.05, 0.10, ... 0.95.
        ignore_index: pixels with this target value count nowhere; None for no such value.

    Raises:
        SpecError: an unknown or exclusive mode, classes that do not fit it, thresholds outside
            0..1, none at all or not rising.

    Example:
        >>> counts = ThresholdCounts(["polyp"], mode="binary", thresholds=[0.3, 0.6])
        >>> counts.update(torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0, 1]]]]))
        >>> counts.scores().values("mean_dice")
        {0.3: 0.6666666666666666, 0.6: 1.0}
        >>> counts.at(0.6).rows.tolist()
        [[[1, 0, 0, 1]]]
    """

    row_dtype = torch.int64

    def __init__(
        self,
        classes: int | Sequence[str],
        *,
        mode: TargetMode,
        thresholds: Sequence[float] = THRESHOLDS,
        ignore_index: int | None = 255,
    ) -> None:
        super().__init__()
        if mode == "multiclass":
            raise SpecError("mode 'multiclass' has no threshold: the largest logit wins.")
        like = SegmentationCounts(classes, mode=mode, ignore_index=ignore_index)
        self.classes, self.mode, self.ignore_index = like.classes, mode, ignore_index
        self.thresholds = tuple(thresholds)
        self._logits = [check_threshold(threshold) for threshold in self.thresholds]
        if not self._logits or sorted(set(self.thresholds)) != list(self.thresholds):
            raise SpecError(f"thresholds must be given, distinct and rising, got {thresholds!r}.")

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(classes, thresholds, 4)."""
        return (len(self.classes), len(self.thresholds), 4)

    def configuration(self) -> dict[str, object]:
        """Classes, mode, thresholds and ignore_index."""
        names = ("classes", "mode", "thresholds", "ignore_index")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def count(self, logits: Tensor, target: Tensor) -> Tensor:
        """The rows of one batch, without adding them: int64 (B, classes, thresholds, 4).

        Args:
            logits: raw scores, (B, K, H, W) or (B, K, D, H, W), any float dtype.
            target: of the same shape, any real dtype, foreground above 0.5.

        Raises:
            SpecError: a shape or dtype that does not fit, naming both.
        """
        check_shapes("logits", logits, target, len(self.classes), self.mode)
        return overlapping_counts(
            logits, target, above=self._logits, ignore_index=self.ignore_index
        )

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count one batch: see `count`."""
        self.append(self.count(logits, target))

    def at(self, threshold: float) -> SegmentationCounts:
        """The counts at one threshold, for every other reading of them.

        Raises:
            SpecError: a threshold that was not counted.
        """
        if threshold not in self.thresholds:
            raise SpecError(f"threshold {threshold!r} was not counted: {self.thresholds} were.")
        like = SegmentationCounts(
            self.classes, mode=self.mode, threshold=threshold, ignore_index=self.ignore_index
        )
        rows = self.rows[:, :, self.thresholds.index(threshold)]
        return SegmentationCounts.from_rows(rows, like=like)

    def scores(
        self,
        scheme: Scheme = "pooled",
        *,
        classes: Sequence[str] | None = None,
        empty: EmptyScore = "exclude",
    ) -> SweepScores:
        """The scores at each threshold: see `SegmentationCounts.scores`.

        Raises:
            SpecError: an unknown scheme, class or policy.
            DataError: nothing counted.
        """
        return SweepScores(
            {
                threshold: self.at(threshold).scores(scheme, classes=classes, empty=empty)
                for threshold in self.thresholds
            }
        )
