"""Streaming counts of a segmentation: true and false positives and negatives, in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from transferseg.errors import SpecError, describe, unknown_name
from transferseg.metrics.distribution import ImageScores
from transferseg.metrics.overlap import EmptyScore, Scheme
from transferseg.metrics.rows import ImageRows
from transferseg.metrics.scores import SegmentationScores, image_scores, segmentation_scores
from transferseg.metrics.tally import exclusive_counts, overlapping_counts
from transferseg.spec import class_names
from transferseg.types import TargetMode


def check_threshold(threshold: float) -> float:
    """The logit of a probability threshold.

    Raises:
        SpecError: a threshold that does not lie between 0 and 1.

    Example:
        >>> check_threshold(0.5)
        0.0
    """
    if not 0 < threshold < 1:
        raise SpecError(f"threshold must lie between 0 and 1, got {threshold!r}.")
    return math.log(threshold / (1 - threshold))


def check_shapes(kind: str, given: Tensor, target: Tensor, classes: int, mode: str) -> None:
    """Raise `SpecError` unless a prediction and its target fit the classes; no value is read.

    Example:
        >>> check_shapes("logits", torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8).long(), 3,
        ...              "multiclass")
    """
    pair = f"got {kind} {describe(given)} and target {describe(target)}."
    indices = mode == "multiclass" and kind == "masks"
    # indices of a volume would look like one-hot masks of slices
    expected = "(B, H, W)" if indices else f"(B, {classes}, [D,] H, W)"
    fits = given.ndim == 3 if indices else given.ndim in (4, 5) and given.shape[1] == classes
    if not fits:
        raise SpecError(f"{kind} must be {expected} in mode {mode!r}, {pair}")
    channels = mode == "multiclass" and not indices
    wanted = (given.shape[0], *given.shape[2:]) if channels else given.shape
    if target.shape != wanted:
        raise SpecError(f"target must be {tuple(wanted)} in mode {mode!r}, {pair}")
    if (kind == "logits") != given.is_floating_point() or given.is_complex():
        raise SpecError(
            f"logits are of a floating dtype (`update`), masks of an integer or bool dtype "
            f"(`update_masks`), {pair}"
        )
    if target.is_complex() or (
        mode == "multiclass" and (target.is_floating_point() or target.dtype is torch.bool)
    ):
        raise SpecError(f"target must be of an integer dtype in mode {mode!r}, {pair}")


class SegmentationCounts(ImageRows):
    """TP, FP, FN and TN of each image and class, streaming; the source of every overlap score.

    Rows are int64 on the device of the data, (images, classes, 4) in the order TP, FP, FN, TN, and
    everything derives from them: `counts_a + counts_b` concatenates, `scores` sums or averages.
    Nothing is synchronised before `scores`. An image may be a volume: all its voxels are one row.

    Args:
        classes: names in the order of the logits' channels, or their number; multiclass includes
            the background.
        mode: "binary" (one class), "multiclass" (the largest logit wins), "multilabel".
        threshold: binary and multilabel: the probability above which a pixel is foreground,
            compared as logit > log(threshold / (1 - threshold)); not used by multiclass.
        ignore_index: pixels with this target value count nowhere; None for no such value. (A mask
            of 0 and 255 must be made 0 and 1 first: its foreground would be ignored.)

    Raises:
        SpecError: an unknown mode, classes that do not fit it, a threshold outside 0..1.

    Example:
        >>> counts = SegmentationCounts(["background", "lung"], mode="multiclass")
        >>> logits = torch.tensor([[[[2.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 1.0]]]])
        >>> counts.update(logits, torch.tensor([[[0, 1, 0, 255]]]))
        >>> counts.rows.tolist()
        [[[1, 0, 1, 1], [1, 1, 0, 1]]]
        >>> counts.scores("pooled", classes=["lung"]).iou
        {'lung': 0.5}
    """

    row_dtype = torch.int64

    def __init__(
        self,
        classes: int | Sequence[str],
        *,
        mode: TargetMode,
        threshold: float = 0.5,
        ignore_index: int | None = 255,
    ) -> None:
        super().__init__()
        self.classes = class_names(classes)
        if mode not in get_args(TargetMode):
            raise SpecError(unknown_name("mode", str(mode), get_args(TargetMode)))
        number = len(self.classes)
        if len(set(self.classes)) != number or not number:
            raise SpecError(f"class names must be given and be distinct, got {self.classes}.")
        if (mode == "binary" and number != 1) or (mode == "multiclass" and number < 2):
            raise SpecError(
                f"mode {mode!r} does not fit {number} class(es): binary has one class (the "
                "foreground), multiclass two or more (background included)."
            )
        self.mode = mode
        self.threshold = threshold
        self.ignore_index = ignore_index
        self.logit = check_threshold(threshold)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(classes, 4)."""
        return (len(self.classes), 4)

    def configuration(self) -> dict[str, object]:
        """Classes, mode, threshold and ignore_index."""
        names = ("classes", "mode", "threshold", "ignore_index")
        return {name: getattr(self, name) for name in names}

    def _count(self, given: Tensor, target: Tensor, above: float) -> Tensor:
        """Rows of logits or hard masks against a target."""
        ignore = self.ignore_index
        if self.mode == "multiclass":
            return exclusive_counts(given, target, classes=len(self.classes), ignore_index=ignore)
        return overlapping_counts(given, target, above=[above], ignore_index=ignore).squeeze(2)

    @torch.no_grad()
    def count(self, logits: Tensor, target: Tensor) -> Tensor:
        """The rows of one batch, without adding them: int64 (B, classes, 4).

        Args:
            logits: raw scores, (B, K, H, W) or (B, K, D, H, W), any float dtype. NaN is no
                foreground, and of exclusive classes the largest, as in torch.
            target: multiclass: class indices (B, [D,] H, W), integers in 0..K-1 or `ignore_index`
                (another label is found by `scores`); binary and multilabel: the shape of the
                logits, any real dtype, foreground above 0.5.

        Raises:
            SpecError: a shape or dtype that does not fit, naming both.
        """
        check_shapes("logits", logits, target, len(self.classes), self.mode)
        return self._count(logits, target, self.logit)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count one batch: see `count`."""
        self.append(self.count(logits, target))

    @torch.no_grad()
    def update_masks(self, prediction: Tensor, target: Tensor) -> None:
        """Count one batch of hard masks.

        Args:
            prediction: multiclass: class indices (B, H, W), a volume as `volume.flatten(1, 2)`;
                binary and multilabel: (B, K, [D,] H, W), bool or integers, foreground above 0.
            target: as in `count`; what it ignores is ignored in the prediction.

        Raises:
            SpecError: a shape or dtype that does not fit, naming both.
        """
        check_shapes("masks", prediction, target, len(self.classes), self.mode)
        self.append(self._count(prediction, target, 0))

    def scores(
        self,
        scheme: Scheme = "pooled",
        *,
        classes: Sequence[str] | None = None,
        empty: EmptyScore = "exclude",
    ) -> SegmentationScores:
        """Every score of everything counted so far: IoU, Dice, accuracy and the others.

        Args:
            scheme: "pooled" (pixels summed over all images) or "per_image" (the mean over images).
            classes: names to score, all of them by default; leave the background out here.
            empty: what a class without ground truth scores, "exclude", "one" or "zero": see
                `SegmentationScores`.

        Raises:
            SpecError: an unknown scheme, class or policy.
            DataError: nothing counted, or labels outside the classes.
        """
        return segmentation_scores(
            self.rows.cpu().numpy(),
            self.classes,
            mode=self.mode,
            scheme=scheme,
            chosen=classes,
            empty=empty,
        )

    def image_scores(
        self,
        score: str,
        *,
        classes: Sequence[str] | None = None,
        empty: EmptyScore = "exclude",
    ) -> ImageScores:
        """One score of each image and class, in the order in which the images were counted.

        Args:
            score: a name of `CLASS_SCORES`, such as "dice"; or "accuracy", "overall_kappa" or
                "frequency_weighted_iou", whose one column is named as the score is. (Mean accuracy
                is the `macro` of "recall".)
            classes: names to score, all of them by default.
            empty: as in `scores`.

        Raises:
            SpecError: an unknown score, class or policy; classes for a score of all of them.
            DataError: nothing counted, or labels outside the classes.
        """
        return image_scores(
            self.rows.cpu().numpy(),
            self.classes,
            score=score,
            mode=self.mode,
            chosen=classes,
            empty=empty,
        )
