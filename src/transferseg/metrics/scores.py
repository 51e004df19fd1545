"""Overlap scores of segmentation counts: what was averaged, over what, is part of the result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from transferseg.errors import DataError, SpecError, unknown_name
from transferseg.metrics.distribution import ImageScores
from transferseg.metrics.overlap import (
    CLASS_SCORES,
    OVERALL_SCORES,
    EmptyScore,
    Scheme,
    overall_scores,
    unit_scores,
)
from transferseg.metrics.tables import json_number, json_numbers, markdown_table, mean, text_table
from transferseg.types import TargetMode

_HEADER = ("class", "IoU", "Dice", "precision", "recall", "images without it", "false alarms")
_EMPTY_TEXT = {
    "exclude": "left out",
    "one": "1 if nothing is predicted either, else 0",
    "zero": "0",
}


@dataclass(frozen=True)
class SegmentationScores:
    """Overlap scores by class, with everything that says what they mean.

    For each class, TP, FP, FN and TN in pixels: IoU = TP / (TP + FP + FN), Dice = 2 TP / (2 TP +
    FP + FN), precision = TP / (TP + FP), recall = TP / (TP + FN): in 0..1, NaN where undefined:
    without ground truth under `empty="exclude"`, without a counted pixel, and precision where
    nothing is predicted although there is something to find. The other scores are NaN wherever
    their denominator is 0, under every policy; `CLASS_SCORES` has all formulas.

    Attributes:
        scheme: "pooled": pixels of all images are summed first. "per_image": each image is scored
            alone, then the images in which a class is defined are averaged.
        empty: what a class without ground truth (of an image, or of all images when pooled) scores,
            in those four scores: "exclude": nothing, it is in no mean; "one": 1 if nothing is
            predicted either, else 0; "zero": 0.
        classes: the classes that were asked for, in order.
        iou: intersection over union (Jaccard) by class.
        dice: Dice (F1) by class.
        precision: precision by class.
        recall: recall (sensitivity, class accuracy) by class.
        specificity: TN / (TN + FP) by class.
        kappa: Cohen's kappa by class, the class against the rest; -1..1.
        volume_difference: predicted minus true pixels, over the true ones, by class; above 0 for
            too many, NaN without ground truth. A volume if all voxels have one size.
        absolute_volume_difference: its absolute value; per image, the mean of the absolute values.
        accuracy: part of the counted pixels that are right, over all classes, whichever were asked
            for; multilabel: of pixel-class pairs. Pooled, or the mean over images.
        overall_kappa: Cohen's kappa of all exclusive classes together, whichever were asked for;
            of binary and multilabel ones the mean of the classes' own.
        frequency_weighted_iou: IoU of the classes asked for, weighted with their part of the
            ground truth; NaN without any.
        present: the classes with ground truth somewhere in the data.
        absent: the classes without.
        images: how many images were counted.
        empty_images: by class, in how many images it has counted pixels but no ground truth.
        false_alarm_images: by class, in how many of those it is predicted all the same.
        missed_images: by class, in how many images it is there and nowhere predicted; its precision
            is undefined in those, and they are in no mean of it.
        ignored_images: by class, in how many images no pixel counts; they score nothing.

    Example:
        >>> import torch
        >>> from transferseg.metrics import SegmentationCounts
        >>> counts = SegmentationCounts(["polyp"], mode="binary")
        >>> counts.update_masks(torch.tensor([[[[1, 1, 0]]]]), torch.tensor([[[[1, 0, 0]]]]))
        >>> print(counts.scores())
        pooled over 1 image; classes: polyp
        mean over classes with ground truth: 1 present, 0 absent; without ground truth: left out
        class     IoU    Dice  precision  recall  images without it  false alarms
        polyp  0.5000  0.6667     0.5000  1.0000                  0             0
        mean   0.5000  0.6667     0.5000  1.0000
        accuracy over all classes and counted pixels: 0.6667
    """

    scheme: Scheme
    empty: EmptyScore
    classes: tuple[str, ...]
    iou: Mapping[str, float]
    dice: Mapping[str, float]
    precision: Mapping[str, float]
    recall: Mapping[str, float]
    specificity: Mapping[str, float]
    kappa: Mapping[str, float]
    volume_difference: Mapping[str, float]
    absolute_volume_difference: Mapping[str, float]
    accuracy: float
    overall_kappa: float
    frequency_weighted_iou: float
    present: tuple[str, ...]
    absent: tuple[str, ...]
    images: int
    empty_images: Mapping[str, int]
    false_alarm_images: Mapping[str, int]
    missed_images: Mapping[str, int]
    ignored_images: Mapping[str, int]

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes where it is defined, by default those with ground truth."""
        return mean(self.iou.values())

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the classes where it is defined, by default those with ground truth."""
        return mean(self.dice.values())

    @property
    def mean_precision(self) -> float:
        """Mean precision over the classes where it is defined."""
        return mean(self.precision.values())

    @property
    def mean_recall(self) -> float:
        """Mean recall over the classes where it is defined."""
        return mean(self.recall.values())

    @property
    def mean_accuracy(self) -> float:
        """Mean class accuracy: what MMSegmentation prints as mAcc; another name of the recall."""
        return self.mean_recall

    @property
    def mean_specificity(self) -> float:
        """Mean specificity over the classes where it is defined."""
        return mean(self.specificity.values())

    @property
    def mean_kappa(self) -> float:
        """Mean of the classes' kappas where they are defined; see also `overall_kappa`."""
        return mean(self.kappa.values())

    @property
    def mean_volume_difference(self) -> float:
        """Mean relative volume difference: too much in one class makes up for too little."""
        return mean(self.volume_difference.values())

    @property
    def mean_absolute_volume_difference(self) -> float:
        """Mean absolute relative volume difference over the classes with ground truth."""
        return mean(self.absolute_volume_difference.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, the means included; None where a score is undefined."""
        overall = ("accuracy", "mean_accuracy", "overall_kappa", "frequency_weighted_iou")
        means = (*(f"mean_{name}" for name in CLASS_SCORES), *overall)
        images = ("empty_images", "false_alarm_images", "missed_images", "ignored_images")
        return {
            "scheme": self.scheme,
            "empty": self.empty,
            "classes": list(self.classes),
            "present": list(self.present),
            "absent": list(self.absent),
            "images": self.images,
            **{name: json_number(getattr(self, name)) for name in means},
            **{name: json_numbers(getattr(self, name)) for name in CLASS_SCORES},
            **{name: dict(getattr(self, name)) for name in images},
        }

    def _lines(self) -> list[list[float | int | str]]:
        scores = (self.iou, self.dice, self.precision, self.recall)
        images = (self.empty_images, self.false_alarm_images)
        lines: list[list[float | int | str]] = [
            [name, *(score[name] for score in scores), *(count[name] for count in images)]
            for name in self.classes
        ]
        means = (self.mean_iou, self.mean_dice, self.mean_precision, self.mean_recall)
        return [*lines, ["mean", *means, "", ""]]

    def _what(self) -> list[str]:
        how = "pooled over" if self.scheme == "pooled" else "per image, the mean over"
        averaged = "classes with ground truth" if self.empty == "exclude" else "classes"
        absent = f" ({', '.join(self.absent)})" if self.absent else ""
        return [
            f"{how} {self.images} image{'' if self.images == 1 else 's'}; "
            f"classes: {', '.join(self.classes)}",
            f"mean over {averaged}: {len(self.present)} present, {len(self.absent)} absent{absent};"
            f" without ground truth: {_EMPTY_TEXT[self.empty]}",
        ]

    def _accuracy_line(self) -> str:
        pixels = "" if self.scheme == "pooled" else ", the mean over images"
        value = "undefined" if math.isnan(self.accuracy) else f"{self.accuracy:.4f}"
        return f"accuracy over all classes and counted pixels{pixels}: {value}"

    def to_markdown(self) -> str:
        """A table by class under a line that says what was averaged."""
        table = markdown_table(_HEADER, self._lines())
        return f"{'. '.join(self._what())}.\n\n{table}\n\n{self._accuracy_line()}\n"

    def __str__(self) -> str:
        table = "\n".join(line.rstrip() for line in text_table(_HEADER, self._lines()).splitlines())
        return "\n".join([*self._what(), table, self._accuracy_line()])


def refuse_labels(what: str, wrong: NDArray[np.bool_], classes: int) -> None:
    """Raise `DataError` when images, (images,), have labels outside the classes.

    Example:
        >>> refuse_labels("ground truth", np.array([False]), 2)
    """
    places = np.flatnonzero(wrong)
    if len(places):
        raise DataError(
            f"the {what} of {len(places)} image(s), the first being number {places[0]}, has labels "
            f"outside 0..{classes - 1} that are not the ignore_index; map them to classes or to "
            "the ignore_index first."
        )


def check_rows(rows: NDArray[np.int64], mode: TargetMode) -> None:
    """Raise `DataError` when nothing was counted, or labels lie outside the classes.

    Exclusive classes share the counted pixels out: what is missing in their sum was another label.
    """
    if not len(rows):
        raise DataError("no image has been counted, so there are no scores; an empty split?")
    if mode != "multiclass":
        return
    pixels = rows[:, 0].sum(-1)
    tp, fp, fn, _ = np.moveaxis(rows, -1, 0)
    for what, shared in (("ground truth", (tp + fn).sum(1)), ("prediction", (tp + fp).sum(1))):
        refuse_labels(what, shared != pixels, rows.shape[1])


def chosen_classes(names: Sequence[str] | None, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes asked for, all of them for None.

    Raises:
        SpecError: an unknown class, no class at all, a class twice.

    Example:
        >>> chosen_classes(["lung"], ("background", "lung"))
        ('lung',)
    """
    if names is None:
        return classes
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise SpecError(f"classes must be one or more distinct names in a list, got {names!r}.")
    for name in names:
        if name not in classes:
            raise SpecError(unknown_name("class", str(name), classes))
    return tuple(names)


def check_selection(
    names: Sequence[str] | None, classes: tuple[str, ...], scheme: str, empty: str
) -> tuple[str, ...]:
    """The classes asked for, all of them for None.

    Raises:
        SpecError: an unknown class, scheme or policy, no class at all, a class twice.
    """
    if scheme not in get_args(Scheme):
        raise SpecError(unknown_name("scheme", str(scheme), get_args(Scheme)))
    if empty not in get_args(EmptyScore):
        raise SpecError(unknown_name("empty policy", str(empty), get_args(EmptyScore)))
    return chosen_classes(names, classes)


def segmentation_scores(
    rows: NDArray[np.int64],
    classes: tuple[str, ...],
    *,
    mode: TargetMode,
    scheme: Scheme,
    chosen: Sequence[str] | None,
    empty: EmptyScore,
) -> SegmentationScores:
    """Scores of counts (images, classes, 4: TP, FP, FN, TN); see `SegmentationCounts.scores`."""
    names = check_selection(chosen, classes, scheme, empty)
    check_rows(rows, mode)
    places = [classes.index(name) for name in names]
    units = rows.sum(0, keepdims=True) if scheme == "pooled" else rows
    scores = {
        score: {name: mean(values[:, place]) for name, place in zip(names, places, strict=True)}
        for score, values in unit_scores(units, empty).items()
    }
    overall = overall_scores(units, mode, places)
    counted, truth = rows.sum(-1) > 0, rows[..., 0] + rows[..., 2] > 0
    without = counted & ~truth

    def images(condition: NDArray[np.bool_]) -> dict[str, int]:
        return {n: int(condition[:, p].sum()) for n, p in zip(names, places, strict=True)}

    with_truth = images(truth)
    return SegmentationScores(
        scheme=scheme,
        empty=empty,
        classes=names,
        **scores,
        accuracy=mean(overall["accuracy"]),
        overall_kappa=mean(overall["overall_kappa"]),
        frequency_weighted_iou=mean(overall["frequency_weighted_iou"]),
        present=tuple(name for name in names if with_truth[name]),
        absent=tuple(name for name in names if not with_truth[name]),
        images=len(rows),
        empty_images=images(without),
        false_alarm_images=images(without & (rows[..., 1] > 0)),
        missed_images=images(truth & (rows[..., 0] + rows[..., 1] == 0)),
        ignored_images=images(~counted),
    )


def image_scores(
    rows: NDArray[np.int64],
    classes: tuple[str, ...],
    *,
    score: str,
    mode: TargetMode,
    chosen: Sequence[str] | None,
    empty: EmptyScore,
) -> ImageScores:
    """One score of each image and class; see `SegmentationCounts.image_scores`."""
    every = (*CLASS_SCORES, *OVERALL_SCORES)
    if score not in every:
        raise SpecError(unknown_name("score", str(score), every))
    if chosen is not None and score in ("accuracy", "overall_kappa"):
        raise SpecError(f"{score} is of all classes together: leave classes out.")
    names = check_selection(chosen, classes, "per_image", empty)
    check_rows(rows, mode)
    places = [classes.index(name) for name in names]
    if score in OVERALL_SCORES:
        names, values = (score,), overall_scores(rows, mode, places)[score][:, None]
    else:
        values = unit_scores(rows, empty)[score][:, places]
    return ImageScores(score=score, empty=empty, classes=names, values=values)
