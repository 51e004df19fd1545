"""Rows of numbers in files that grow while a training runs."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from transferseg.errors import TrainingError
from transferseg.training.atomic import write_text
from transferseg.training.events import plain_number
from transferseg.training.state import TrainState


class _FileLogger(ABC):
    """Appends rows to a file, in the main process; each row is one line."""

    def __init__(
        self, path: str | PathLike[str], state: TrainState, *, resume: bool = False
    ) -> None:
        self.path = Path(path)
        self._writes = state.accelerator.is_main_process
        if not self._writes or not self.path.exists():
            return
        if not resume and self.path.stat().st_size:
            raise TrainingError(
                f"{self.path} already holds a log; give resume=True to go on with it after "
                "TrainState.load, or another path."
            )
        *lines, _ = self.path.read_bytes().split(b"\n")  # what follows the last is torn, or empty
        texts = [line.decode("utf-8", errors="replace") for line in lines]
        kept = self._kept(texts, state)
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row of numbers and text; numbers of NumPy and torch (0-d) are numbers too.

        Raises:
            OSError: it could not be written; the file holds the rows before it, whole.
        """
        if not self._writes:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = {name: _told(plain_number(value)) for name, value in row.items()}
        text = self._line(values).encode("utf-8")
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab", buffering=0) as file:
                written = file.write(text)
                if written != len(text):
                    raise OSError(f"{self.path}: {written} of {len(text)} bytes were written.")
        except OSError:
            if self.path.exists():
                os.truncate(self.path, before)
            raise

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """The rows in the file."""

    @abstractmethod
    def _kept(self, lines: Sequence[str], state: TrainState) -> list[str]:
        """Of the lines of an earlier run, those up to where the state stands."""

    @abstractmethod
    def _line(self, values: Mapping[str, Any]) -> str:
        """A row as its line."""


class JSONLLogger(_FileLogger):
    r"""Append rows to a file of JSON lines.

    Every row is one write: a killed process leaves whole rows and perhaps a torn last one. With
    `resume` that one is taken off, and so are the rows of updates and epochs that the state, loaded
    from an older save, will do again; so write a row before the save that follows it. Rows know
    their place by "step" and, where "event" is "epoch" or there is no "step", by "epoch", which
    counts complete epochs. NaN and infinities, which JSON does not know, are null.

    Args:
        path: of the file, made with the first row.
        state: where the training stands; with `resume` it has been loaded.
        resume: go on with the file, if there is one.

    Attributes:
        path: as given.

    Raises:
        TrainingError: the file holds rows, and `resume` is off; it holds something else.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from transferseg.training import sgd
        >>> state = TrainState.prepare(nn.Conv2d(1, 1, 1), optimizer=sgd)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = JSONLLogger(f"{folder}/log.jsonl", state)
        ...     log.write({"step": 1, "loss": 0.5})  # or event_row(event), of what `fit` yields
        ...     log.path.read_text()
        '{"step": 1, "loss": 0.5}\n'
    """

    def rows(self) -> list[dict[str, Any]]:
        """The rows in the file, in order."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def _kept(self, lines: Sequence[str], state: TrainState) -> list[str]:
        try:
            return [line for line in lines if _is_done(dict(json.loads(line)), state)]
        except (ValueError, TypeError) as error:
            raise TrainingError(f"{self.path} is no log of JSON lines: {error}.") from error

    def _line(self, values: Mapping[str, Any]) -> str:
        return f"{json.dumps(values, allow_nan=False)}\n"


class CSVLogger(_FileLogger):
    r"""Append rows to a CSV file.

    As `JSONLLogger`. The columns are those of the first row; a later row with new ones has the file
    written anew, once, with them at the end. What a row lacks is empty, and so are NaN and
    infinities.

    Args:
        path: see `JSONLLogger`.
        state: see `JSONLLogger`.
        resume: see `JSONLLogger`.

    Attributes:
        path: as given.

    Raises:
        TrainingError: see `JSONLLogger`.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from transferseg.training import sgd
        >>> state = TrainState.prepare(nn.Conv2d(1, 1, 1), optimizer=sgd)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = CSVLogger(f"{folder}/log.csv", state)
        ...     log.write({"step": 1, "loss": 0.5})
        ...     log.write({"step": 2, "loss": 0.4, "dice": 0.9})
        ...     log.path.read_text()
        'step,loss,dice\n1,0.5,\n2,0.4,0.9\n'
    """

    def rows(self) -> list[dict[str, Any]]:
        """The rows in the file, in order; every value is text, empty where there is none."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        return list(csv.DictReader(text.splitlines()))

    def _kept(self, lines: Sequence[str], state: TrainState) -> list[str]:
        if not lines:
            return []
        columns, *parsed = csv.reader(lines)
        if any(len(cells) != len(columns) for cells in parsed):
            raise TrainingError(f"{self.path} is no CSV log: rows differ in their cells.")
        try:
            done = [_is_done(dict(zip(columns, cells, strict=True)), state) for cells in parsed]
        except ValueError as error:
            raise TrainingError(f"{self.path} is no CSV log: {error}.") from error
        return [lines[0], *(line for line, is_done in zip(lines[1:], done, strict=True) if is_done)]

    def _line(self, values: Mapping[str, Any]) -> str:
        columns = self._columns()
        new = [name for name in values if name not in columns]
        if new:
            widened, rows = [*columns, *new], self.rows()
            write_text(self.path, "".join(_cells(widened, row) for row in ({}, *rows)))
            columns = widened
        return _cells(columns, {name: "" if v is None else v for name, v in values.items()})

    def _columns(self) -> list[str]:
        if not self.path.exists():
            return []
        with self.path.open(encoding="utf-8") as file:
            return next(csv.reader([file.readline().rstrip("\n")]), [])


def _cells(columns: Sequence[str], row: Mapping[str, Any]) -> str:
    """A row as a line of CSV; an empty row as the header."""
    text = io.StringIO()
    values = [row.get(name, "") for name in columns] if row else columns
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _is_done(row: Mapping[str, Any], state: TrainState) -> bool:
    """Whether a row is of what the state has done."""
    step, epoch = (None if row.get(name) == "" else row.get(name) for name in ("step", "epoch"))
    of_epoch = row.get("event") == "epoch" or step is None
    # `train_rotating` has several runs in an epoch, and its state counts those
    epochs = len(state.history) if row.get("runs") else state.epoch
    if of_epoch and epoch is not None and int(epoch) > epochs:
        return False
    return step is None or int(step) <= state.step


def _told(value: Any) -> Any:  # noqa: ANN401 - a cell of a row
    """A value as JSON knows it, on one line."""
    if isinstance(value, str):
        return " ".join(value.splitlines())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
