"""What a training gave, epoch by epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from transferseg.training.atomic import write_text


@dataclass(frozen=True)
class History:
    """The result of `train` or `train_rotating`.

    Attributes:
        rows: one mapping an epoch: `epoch`, `step`, `loss` and its terms, `learning_rate`
            (of the update to come), `seconds`, `data_seconds`, `images_per_second`, `samples_seen`,
            `skipped` (see `EpochEvent`), `score`, and the validation scores as
            `validation_<name>`; of `train_rotating` also `runs` and `validation_scheme`.
        best_epoch: the epoch with the best score, counted from 1; None without a score.
        best_score: its score.
        seconds: spent in `fit`, over all epochs and earlier parts of a resumed run.
        samples_seen: over all epochs and processes.

    Example:
        >>> history = History(rows=({"epoch": 1, "loss": 0.5},), samples_seen=8)
        >>> print(history.csv())
        epoch,loss
        1,0.5
    """

    rows: tuple[Mapping[str, Any], ...]
    best_epoch: int | None = None
    best_score: float | None = None
    seconds: float = 0.0
    samples_seen: int = 0

    @property
    def validation_scheme(self) -> str | None:
        """How the scores are validated where images that validate also train; None elsewhere.

        Such scores say which epoch is best; they are no scores on held-out data.
        """
        return self.rows[-1].get("validation_scheme") if self.rows else None

    def csv(self) -> str:
        """The rows as CSV text, a header first; missing values are empty."""
        return rows_to_csv(self.rows)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the rows as a CSV file, in one step."""
        write_text(Path(path), self.csv())


def rows_to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV text; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
