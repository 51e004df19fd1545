"""Streaming scores of a multi-label classifier, some of whose labels are missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from transferseg.errors import DataError, SpecError, describe
from transferseg.metrics.counts import check_threshold
from transferseg.metrics.rows import ImageRows
from transferseg.metrics.tables import json_number, json_numbers, markdown_table, mean, text_table
from transferseg.spec import class_names

_HEADER = ("label", "AUROC", "AP", "accuracy", "positives", "known")


def label_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    """Distinct names from a number or from names.

    Raises:
        SpecError: no names, or a name twice.

    Example:
        >>> label_names(["edema", "nodule"])
        ('edema', 'nodule')
    """
    names = class_names(classes)
    if not names or len(set(names)) != len(names):
        raise SpecError(f"label names must be given and be distinct, got {names}.")
    return names


def check_labels(logits: Tensor, label: Tensor, labels: int) -> None:
    """Raise `SpecError` unless both are (B, labels), floating and real; no value is read.

    Example:
        >>> check_labels(torch.zeros(2, 3), torch.zeros(2), 3)
        Traceback (most recent call last):
        transferseg.errors.SpecError: logits and label must be (B, 3), got logits (2, 3) float32 and
        label (2,) float32.
    """
    pair = f"got logits {describe(logits)} and label {describe(label)}."
    shape = (logits.shape[0], labels) if logits.ndim else ()
    if logits.ndim != 2 or logits.shape != shape or label.shape != shape:
        raise SpecError(f"logits and label must be (B, {labels}), {pair}")
    if not logits.is_floating_point() or label.is_complex():
        raise SpecError(f"logits must be of a floating and labels of a real dtype, {pair}")


def counted_text(images: int, unlabelled: int) -> str:
    """How many images were counted, as a text.

    Example:
        >>> counted_text(1, 0)
        '1 image, 0 without a known label'
    """
    return f"{images} image{'' if images == 1 else 's'}, {unlabelled} without a known label"


@dataclass(frozen=True)
class MultilabelScores:
    """Scores by label; a missing label counts nowhere.

    Attributes:
        classes: the labels' names, in order.
        threshold: probability above which a label is predicted.
        auroc: area under the ROC curve by label, 0..1; NaN without a positive or a negative,
            and when a logit is NaN.
        average_precision: area under the precision-recall curve by label, 0..1; NaN without a
            positive and when a logit is NaN; a sum of steps, nothing interpolated.
        accuracy: part of the known labels that are predicted right, by label (with a NaN logit
            never); NaN without one.
        exact_match: part of the images whose known labels are all right; images without a known
            label do not count.
        images: how many images were counted.
        unlabelled_images: how many of them have no known label.
        positives: by label, how many images have it.
        known: by label, in how many images it is known.

    Example:
        >>> counts = MultilabelCounts(["edema"])
        >>> counts.update(torch.tensor([[2.0], [-1.0]]), torch.tensor([[1.0], [0.0]]))
        >>> print(counts.scores())
        2 images, 0 without a known label; predicted above probability 0.5
        label   AUROC      AP  accuracy  positives  known
        edema  1.0000  1.0000    1.0000          1      2
        mean   1.0000  1.0000    1.0000
        exact match: 1.0000
    """

    classes: tuple[str, ...]
    threshold: float
    auroc: Mapping[str, float]
    average_precision: Mapping[str, float]
    accuracy: Mapping[str, float]
    exact_match: float
    images: int
    unlabelled_images: int
    positives: Mapping[str, int]
    known: Mapping[str, int]

    @property
    def mean_auroc(self) -> float:
        """Mean over the labels with a positive and a negative; NaN where one had a NaN logit."""
        return _mean_of_all(
            self.auroc[name] for name in self.classes if 0 < self.positives[name] < self.known[name]
        )

    @property
    def mean_average_precision(self) -> float:
        """Mean over the labels with a positive; NaN where one of them had a NaN logit."""
        return _mean_of_all(self.average_precision[n] for n in self.classes if self.positives[n])

    @property
    def mean_accuracy(self) -> float:
        """Mean over the labels where it is defined."""
        return mean(self.accuracy.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, the means included; None where a score is undefined."""
        means = ("mean_auroc", "mean_average_precision", "mean_accuracy", "exact_match")
        by_label = ("auroc", "average_precision", "accuracy")
        return {
            "classes": list(self.classes),
            "threshold": self.threshold,
            "images": self.images,
            "unlabelled_images": self.unlabelled_images,
            **{name: json_number(getattr(self, name)) for name in means},
            **{name: json_numbers(getattr(self, name)) for name in by_label},
            **{name: dict(getattr(self, name)) for name in ("positives", "known")},
        }

    def _lines(self) -> list[list[float | int | str]]:
        scores = (self.auroc, self.average_precision, self.accuracy)
        columns = (*scores, self.positives, self.known)
        lines: list[list[float | int | str]] = [
            [name, *(column[name] for column in columns)] for name in self.classes
        ]
        means = (self.mean_auroc, self.mean_average_precision, self.mean_accuracy)
        return [*lines, ["mean", *means, "", ""]]

    def _what(self) -> str:
        counted = counted_text(self.images, self.unlabelled_images)
        return f"{counted}; predicted above probability {self.threshold:g}"

    def to_markdown(self) -> str:
        """A table by label under a line that says what was counted."""
        table = markdown_table(_HEADER, self._lines())
        return f"{self._what()}.\n\n{table}\n\nexact match: {self.exact_match:.4f}\n"

    def __str__(self) -> str:
        table = text_table(_HEADER, self._lines())
        lines = [line.rstrip() for line in table.splitlines()]
        return "\n".join([self._what(), *lines, f"exact match: {self.exact_match:.4f}"])


def _mean_of_all(values: Iterable[float]) -> float:
    """The mean, NaN when one value is: a failed model must not score by its other labels."""
    values = list(values)
    return float("nan") if np.isnan(values).any() else mean(values)


def auroc(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve from ranks: the part of the pairs that are ordered right.

    (R - P (P + 1) / 2) / (P N), R being the sum of the positives' ranks, P and N the numbers of
    positives and negatives; ties count half.

    Args:
        score: (n,), larger means more likely positive.
        positive: (n,), the truth.

    Returns:
        0..1; NaN without a positive or without a negative, and when a score is NaN.

    Source: Hanley and McNeil 1982 (the Wilcoxon-Mann-Whitney statistic).

    Example:
        >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
        0.75
    """
    positives = int(positive.sum())
    pairs = positives * (len(positive) - positives)
    if not pairs or np.isnan(score).any():
        return float("nan")
    ranks = float(rankdata(score)[positive].sum())
    return (ranks - positives * (positives + 1) / 2) / pairs


def average_precision(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area under the precision-recall curve, as a sum of steps without interpolation.

    The sum over the distinct scores, from the highest, of precision times the gain in recall: every
    image of a tied score is taken at once.

    Args:
        score: (n,), larger means more likely positive.
        positive: (n,), the truth.

    Returns:
        0..1, by chance about the part of positives; NaN without a positive, and when a score is
        NaN.

    Source: the definition is scikit-learn's `average_precision_score`; Manning, Raghavan and
    Schuetze 2008, section 8.4.

    Example:
        >>> score = np.array([0.1, 0.4, 0.35, 0.8])
        >>> round(average_precision(score, np.array([False, False, True, True])), 4)
        0.8333
    """
    positives = int(positive.sum())
    if not positives or np.isnan(score).any():
        return float("nan")
    order = np.argsort(-score)
    falling = score[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # of each tied score
    found = positive[order].cumsum()[last]
    precision, gain = found / (last + 1), np.diff(found, prepend=0)
    return float((precision * gain).sum() / positives)


class MultilabelCounts(ImageRows):
    """Logits and labels of each image, kept for scores that need every one (AUROC, AP).

    Rows are float32 on the device of the data, (images, labels, 2): logit and label; logits in
    float64 are rounded to float32.

    Args:
        classes: the labels' names in the order of the logits, or their number.
        threshold: the probability above which a label is predicted, compared as
            logit > log(threshold / (1 - threshold)).

    Raises:
        SpecError: no names or a name twice, a threshold outside 0..1.

    Example:
        >>> counts = MultilabelCounts(["edema", "nodule"])
        >>> counts.update(torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, torch.nan]]))
        >>> counts.scores().accuracy
        {'edema': 1.0, 'nodule': nan}
    """

    row_dtype = torch.float32

    def __init__(self, classes: int | Sequence[str], *, threshold: float = 0.5) -> None:
        super().__init__()
        self.classes = label_names(classes)
        self.threshold = threshold
        self._logit = check_threshold(threshold)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(labels, 2)."""
        return (len(self.classes), 2)

    def configuration(self) -> dict[str, object]:
        """Classes and threshold."""
        return {"classes": self.classes, "threshold": self.threshold}

    def count(self, logits: Tensor, label: Tensor) -> Tensor:
        """The rows of one batch, without adding them: float32 (B, labels, 2).

        Args:
            logits: raw scores, (B, K), any float dtype.
            label: (B, K), any real dtype, positive above 0.5, NaN where missing.

        Raises:
            SpecError: a shape or dtype that does not fit, naming both.
        """
        check_labels(logits, label, len(self.classes))
        return torch.stack([logits.detach().float(), label.detach().float()], dim=-1)

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Count one batch: see `count`."""
        self.append(self.count(logits, label))

    def scores(self) -> MultilabelScores:
        """AUROC, average precision, accuracy and exact match of everything counted so far.

        Raises:
            DataError: nothing counted.
        """
        logits, labels = np.moveaxis(self.rows.cpu().double().numpy(), -1, 0)
        if not len(logits):
            raise DataError("no image has been counted, so there are no scores; an empty split?")
        known, positive = ~np.isnan(labels), labels > 0.5
        right = ((logits > self._logit) == positive) & ~np.isnan(logits)
        some = known.any(1)
        by_label = list(zip(self.classes, logits.T, positive.T, right.T, known.T, strict=True))
        return MultilabelScores(
            classes=self.classes,
            threshold=self.threshold,
            auroc={name: auroc(x[k], p[k]) for name, x, p, _, k in by_label},
            average_precision={n: average_precision(x[k], p[k]) for n, x, p, _, k in by_label},
            accuracy={name: mean(r[k]) for name, _, _, r, k in by_label},
            exact_match=mean((right | ~known).all(1)[some]),
            images=len(logits),
            unlabelled_images=int((~some).sum()),
            positives={name: int((p & k).sum()) for name, _, p, _, k in by_label},
            known={name: int(k.sum()) for name, _, _, _, k in by_label},
        )
