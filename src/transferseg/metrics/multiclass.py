"""Streaming scores of a classifier of exclusive classes, some of whose labels are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferseg.errors import DataError, SpecError
from transferseg.metrics.classification import check_labels, counted_text, label_names
from transferseg.metrics.rows import ImageRows
from transferseg.metrics.tables import json_number, json_numbers, markdown_table, mean, text_table

_HEADER = ("class", "recall", "precision", "positives", "predicted")


@dataclass(frozen=True)
class MulticlassScores:
    """Scores of exclusive classes; an image without a known label counts nowhere.

    Attributes:
        classes: the classes' names, in order.
        accuracy: part of the images with a known label that are predicted right; NaN without one.
        recall: by class, part of its images that are predicted as it; NaN without one.
        precision: by class, part of the images predicted as it that are of it; NaN without one.
        confusion: number of images by true class (row) and predicted class (column).
        images: how many images were counted.
        unlabelled_images: how many of them have no known label.
        positives: by class, how many images are of it.
        predicted: by class, how many images with a known label are predicted as it.

    Example:
        >>> counts = MulticlassCounts(["normal", "pneumonia"])
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> counts.update(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
        >>> print(counts.scores())
        3 images, 0 without a known label; predicted: the class of the largest logit
        class      recall  precision  positives  predicted
        normal     1.0000     0.5000          1          2
        pneumonia  0.5000     1.0000          2          1
        mean       0.7500
        accuracy: 0.6667
    """

    classes: tuple[str, ...]
    accuracy: float
    recall: Mapping[str, float]
    precision: Mapping[str, float]
    confusion: tuple[tuple[int, ...], ...]
    images: int
    unlabelled_images: int
    positives: Mapping[str, int]
    predicted: Mapping[str, int]

    @property
    def mean_recall(self) -> float:
        """Mean recall over the classes with ground truth: the balanced accuracy."""
        return mean(self.recall.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, the mean included; None where a score is undefined."""
        return {
            "classes": list(self.classes),
            "images": self.images,
            "unlabelled_images": self.unlabelled_images,
            **{name: json_number(getattr(self, name)) for name in ("accuracy", "mean_recall")},
            **{name: json_numbers(getattr(self, name)) for name in ("recall", "precision")},
            **{name: dict(getattr(self, name)) for name in ("positives", "predicted")},
            "confusion": [list(row) for row in self.confusion],
        }

    def _lines(self) -> list[list[float | int | str]]:
        columns = (self.recall, self.precision, self.positives, self.predicted)
        lines: list[list[float | int | str]] = [
            [name, *(column[name] for column in columns)] for name in self.classes
        ]
        return [*lines, ["mean", self.mean_recall, "", "", ""]]

    def _what(self) -> str:
        counted = counted_text(self.images, self.unlabelled_images)
        return f"{counted}; predicted: the class of the largest logit"

    def to_markdown(self) -> str:
        """A table by class under a line that says what was counted, then the confusion matrix."""
        table = markdown_table(_HEADER, self._lines())
        rows: list[list[float | int | str]] = [
            [name, *row] for name, row in zip(self.classes, self.confusion, strict=True)
        ]
        columns = [name.replace("|", "\\|") for name in self.classes]  # a header stays as it is
        confusion = markdown_table(["true, by predicted", *columns], rows)
        accuracy = f"accuracy: {self.accuracy:.4f}"
        return f"{self._what()}.\n\n{table}\n\n{accuracy}\n\n{confusion}\n"

    def __str__(self) -> str:
        table = text_table(_HEADER, self._lines())
        lines = [line.rstrip() for line in table.splitlines()]
        return "\n".join([self._what(), *lines, f"accuracy: {self.accuracy:.4f}"])


def _largest(rows: Tensor) -> Tensor:
    """Position of the largest value of each row, the first on ties; -1 for a row with a NaN."""
    return torch.where(rows.isnan().any(dim=1), -1, rows.argmax(dim=1))


class MulticlassCounts(ImageRows):
    """Predicted and true class of each image, streaming.

    Rows are int64 on the device of the data, (images, 2): the predicted class and the true one. The
    predicted class is that of the largest logit, the lowest index on ties. -1 stands for none: a
    missing label; or logits with a NaN, which predict no class, so that their image is wrong and in
    no cell of the confusion matrix. -2 is a label row without a class, which `scores` refuses.

    Args:
        classes: the classes' names in the order of the logits, or their number; two or more.

    Raises:
        SpecError: fewer than two names, or a name twice.

    Example:
        >>> counts = MulticlassCounts(["normal", "pneumonia"])
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
        >>> counts.update(logits, torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]]))
        >>> counts.rows.tolist(), counts.scores().accuracy
        ([[0, 0], [1, -1]], 1.0)
    """

    row_dtype = torch.int64

    def __init__(self, classes: int | Sequence[str]) -> None:
        super().__init__()
        self.classes = label_names(classes)
        if len(self.classes) < 2:
            raise SpecError(
                f"exclusive classes are two or more, got {self.classes}; use MultilabelCounts for "
                "one."
            )

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(2,)."""
        return (2,)

    def configuration(self) -> dict[str, object]:
        """Classes."""
        return {"classes": self.classes}

    @torch.no_grad()
    def count(self, logits: Tensor, label: Tensor) -> Tensor:
        """The rows of one batch, without adding them: int64 (B, 2).

        Args:
            logits: raw scores, (B, K), any float dtype.
            label: (B, K), any real dtype, each row one-hot (of a soft row the largest entry counts,
                the first on ties; a row without an entry above 0 is found by `scores`); a row with
                a NaN is a missing label.

        Raises:
            SpecError: a shape or dtype that does not fit, naming both.
        """
        check_labels(logits, label, len(self.classes))
        values = label if label.is_floating_point() else label.float()
        true = torch.where(values.amax(dim=1) <= 0, -2, _largest(values))
        return torch.stack([_largest(logits), true], dim=1)

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Count one batch: see `count`."""
        self.append(self.count(logits, label))

    def scores(self) -> MulticlassScores:
        """Accuracy, recall, precision and confusion matrix of everything counted so far.

        Raises:
            DataError: nothing counted, rows of another number of classes, or a label without one.
        """
        rows = self.rows.cpu().numpy()
        if not len(rows):
            raise DataError("no image has been counted, so there are no scores; an empty split?")
        if rows.max() >= len(self.classes):
            raise DataError(
                f"the rows hold class number {rows.max()}, but there are {len(self.classes)} "
                "classes; take rows that were counted with these classes."
            )
        wrong = np.flatnonzero(rows[:, 1] < -1)
        if len(wrong):
            raise DataError(
                f"the label of {len(wrong)} image(s), the first being number {wrong[0]}, has no "
                "entry above 0, so no class; give NaN where a label is missing."
            )
        predicted, true = rows[rows[:, 1] >= 0].T
        right = predicted == true
        named = list(enumerate(self.classes))
        return MulticlassScores(
            classes=self.classes,
            accuracy=mean(right),
            recall={name: mean(right[true == k]) for k, name in named},
            precision={name: mean(right[predicted == k]) for k, name in named},
            confusion=_confusion(true, predicted, len(self.classes)),
            images=len(rows),
            unlabelled_images=len(rows) - len(true),
            positives={name: int((true == k).sum()) for k, name in named},
            predicted={name: int((predicted == k).sum()) for k, name in named},
        )


def _confusion(
    true: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> tuple[tuple[int, ...], ...]:
    """Number of images by true (row) and predicted (column) class."""
    cells = (true * classes + predicted)[predicted >= 0]
    table = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    return tuple(tuple(row) for row in table.tolist())
