"""Scores of one class from its counts: a formula each, and what holds where it is undefined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from transferseg.metrics.tables import mean
from transferseg.types import TargetMode

#: Counts summed over all images before dividing, or divided in each image and then averaged.
Scheme: TypeAlias = Literal["pooled", "per_image"]

#: What a class without ground truth scores: nothing, 1 when nothing is predicted either, or 0.
EmptyScore: TypeAlias = Literal["exclude", "one", "zero"]

Counts: TypeAlias = NDArray[np.float64]


def ratio(top: Counts, bottom: Counts) -> NDArray[np.float64]:
    """Quotient, NaN where the denominator is 0.

    Example:
        >>> ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
        array([0.5, nan])
    """
    quotient: NDArray[np.float64] = np.full(np.shape(bottom), np.nan)
    np.divide(top, bottom, out=quotient, where=bottom != 0)
    return quotient


@dataclass(frozen=True)
class Confusion:
    """TP, FP, FN and TN as float64 arrays of one shape.

    In float64, so that products of pixel counts do not overflow.
    """

    tp: Counts
    fp: Counts
    fn: Counts
    tn: Counts

    @classmethod
    def of(cls, rows: NDArray[np.int64]) -> Confusion:
        """From (..., 4)."""
        return cls(*np.moveaxis(rows.astype(np.float64), -1, 0))

    @property
    def true(self) -> Counts:
        """TP + FN: the ground truth."""
        return self.tp + self.fn

    @property
    def predicted(self) -> Counts:
        """TP + FP."""
        return self.tp + self.fp

    @property
    def kappa(self) -> Counts:
        """Cohen's kappa of the class against the rest."""
        chance = self.predicted * (self.fp + self.tn) + self.true * (self.fn + self.tn)
        return ratio(2 * (self.tp * self.tn - self.fn * self.fp), chance)


@dataclass(frozen=True)
class ClassScore:
    """A score of one class, from its TP, FP, FN and TN.

    Attributes:
        formula: counts -> scores of their shape, NaN where undefined.
        text: the formula as a text.
        overlap: whether the policy for a class without ground truth (`empty`) decides there; the
            other scores are NaN wherever their denominator is 0, under every policy.
        best: the score of a perfect prediction.

    Example:
        >>> rows = np.array([3, 1, 1, 5])
        >>> CLASS_SCORES["dice"].formula(Confusion.of(rows)).item()
        0.75
    """

    formula: Callable[[Confusion], Counts]
    text: str
    overlap: bool = True
    best: float = 1.0


#: The scores of a class by name; an entry here is in every result, table and contract test.
CLASS_SCORES: Mapping[str, ClassScore] = {
    "iou": ClassScore(lambda c: ratio(c.tp, c.tp + c.fp + c.fn), "TP / (TP + FP + FN)"),
    "dice": ClassScore(lambda c: ratio(2 * c.tp, c.true + c.predicted), "2 TP / (2 TP + FP + FN)"),
    "precision": ClassScore(lambda c: ratio(c.tp, c.predicted), "TP / (TP + FP)"),
    "recall": ClassScore(lambda c: ratio(c.tp, c.true), "TP / (TP + FN)"),
    "specificity": ClassScore(lambda c: ratio(c.tn, c.tn + c.fp), "TN / (TN + FP)", overlap=False),
    "kappa": ClassScore(
        lambda c: c.kappa,
        "2 (TP TN - FN FP) / ((TP + FP)(FP + TN) + (TP + FN)(FN + TN))",
        overlap=False,
    ),
    "volume_difference": ClassScore(
        lambda c: ratio(c.fp - c.fn, c.true), "(FP - FN) / (TP + FN)", overlap=False, best=0.0
    ),
    "absolute_volume_difference": ClassScore(
        lambda c: ratio(np.abs(c.fp - c.fn), c.true),
        "|FP - FN| / (TP + FN)",
        overlap=False,
        best=0.0,
    ),
}


def unit_scores(rows: NDArray[np.int64], empty: EmptyScore) -> dict[str, NDArray[np.float64]]:
    """Every class score of (units, classes, 4) counts, each (units, classes); a unit is an image.

    Example:
        >>> rows = np.array([[[0, 0, 0, 4]]])  # nothing there, nothing predicted
        >>> unit_scores(rows, "one")["dice"], unit_scores(rows, "one")["specificity"]
        (array([[1.]]), array([[1.]]))
    """
    counts, nothing = Confusion.of(rows), rows.sum(-1) == 0
    without = np.full(nothing.shape, {"exclude": np.nan, "one": 1.0, "zero": 0.0}[empty])
    if empty == "one":
        without[counts.fp > 0] = 0.0
    without[nothing] = np.nan  # not a pixel counts: no policy applies
    found = {}
    for name, score in CLASS_SCORES.items():
        values = score.formula(counts)
        found[name] = np.where(counts.true == 0, without, values) if score.overlap else values
    return found


def unit_accuracy(units: NDArray[np.int64], mode: TargetMode) -> NDArray[np.float64]:
    """Part of the counted pixels that are right; (units, classes, 4) to (units,).

    Example:
        >>> unit_accuracy(np.array([[[1, 1, 0, 2]]]), "binary")
        array([0.75])
    """
    tp, _, _, tn = np.moveaxis(units, -1, 0)
    if mode == "multiclass":  # every pixel is counted once a class; TN would count it again
        return ratio(tp.sum(1), units[:, 0].sum(-1))
    return ratio((tp + tn).sum(1), units.sum((1, 2)))


def unit_kappa(units: NDArray[np.int64], mode: TargetMode) -> NDArray[np.float64]:
    """Cohen's kappa of all exclusive classes at once; (units, classes, 4) to (units,).

    Of independent classes (binary, multilabel) the mean of the classes' own kappas.

    Source: Cohen 1960.

    Example:
        >>> unit_kappa(np.array([[[2, 1, 1, 4]]]), "binary").round(4)
        array([0.4667])
    """
    counts = Confusion.of(units)
    if mode != "multiclass":
        return np.array([mean(unit) for unit in counts.kappa])
    pixels = units[:, 0].sum(-1).astype(np.float64)
    agreed, chance = pixels * counts.tp.sum(1), (counts.predicted * counts.true).sum(1)
    return ratio(agreed - chance, pixels**2 - chance)


def unit_weighted_iou(units: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU of the classes weighted with their part of the ground truth; (units,).

    Args:
        units: (units, classes, 4); the weights are over these classes, NaN where none is present.

    Source: Long, Shelhamer and Darrell 2015, section 5.

    Example:
        >>> unit_weighted_iou(np.array([[[3, 0, 0, 1], [0, 0, 1, 3]]]))
        array([0.75])
    """
    counts = Confusion.of(units)
    iou = np.nan_to_num(CLASS_SCORES["iou"].formula(counts))  # without a pixel its weight is 0
    return ratio((counts.true * iou).sum(1), counts.true.sum(1))


#: Scores of all classes together that every unit (an image, or the pooled pixels) has one of.
OVERALL_SCORES = ("accuracy", "overall_kappa", "frequency_weighted_iou")


def overall_scores(
    units: NDArray[np.int64], mode: TargetMode, places: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    """Every one of `OVERALL_SCORES` of (units, classes, 4) counts, each (units,).

    Accuracy and kappa are of all classes, the weighted IoU of those at `places`.

    Example:
        >>> overall_scores(np.array([[[1, 1, 0, 2]]]), "binary", [0])["accuracy"]
        array([0.75])
    """
    found = (
        unit_accuracy(units, mode),
        unit_kappa(units, mode),
        unit_weighted_iou(units[:, places]),
    )
    return dict(zip(OVERALL_SCORES, found, strict=True))
