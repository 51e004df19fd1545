"""The k best models of a training, each in a folder of its own."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from transferseg.errors import TrainingError, unknown_name
from transferseg.training import saves
from transferseg.training.atomic import (
    former_path,
    partial_path,
    recovered,
    settle_folder,
    write_text,
)
from transferseg.training.state import TrainState

INDEX_FILE = "index.json"
_FORMAT = 1
_NAME = re.compile(r"step-\d{8,}")


@dataclass(frozen=True)
class Checkpoint:
    """One kept model.

    Attributes:
        name: of its folder.
        score: of its evaluation.
        step: updates that it had seen.
        epoch: complete epochs that it had seen.
    """

    name: str
    score: float
    step: int
    epoch: int


class BestCheckpoints:
    """Keep the models of the k best evaluations of a training, by `save_pretrained`.

    In the folder stand one folder a model, `step-00000120` and so on, and `index.json`, which lists
    them, the best first. A new model is complete on disk before the index names it, and the index
    is complete before a model that it no longer names is deleted: whatever fails in between, a full
    disk or a killed process, the models of the last complete index are there. A folder that holds
    an index is gone on with, so a resumed training needs nothing more; an evaluation that it
    repeats is known by its step.

    Args:
        folder: of these models alone; made with the first of them.
        k: how many to keep, from 1.
        mode: "max" where higher scores are better, "min" where lower ones are.

    Attributes:
        checkpoints: what is kept, the best first; of equal scores the earlier.

    Raises:
        TrainingError: a `k` below 1, an unknown mode, an index of another mode or a damaged one.

    Example:
        >>> import tempfile
        >>> from transferseg.models import create_model
        >>> from transferseg.training import sgd
        >>> state = TrainState.prepare(create_model("fcn", "resnet10t", classes=2), optimizer=sgd)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     best = BestCheckpoints(folder, k=2)
        ...     for state.step, score in ((10, 0.5), (20, 0.7), (30, 0.6)):  # fit counts the steps
        ...         kept = best.update(state, score)
        ...     [(one.step, one.score) for one in best.checkpoints]
        [(20, 0.7), (30, 0.6)]
    """

    def __init__(
        self, folder: str | PathLike[str], k: int = 3, *, mode: Literal["max", "min"] = "max"
    ) -> None:
        if not isinstance(k, int) or k < 1:
            raise TrainingError(f"k must be a whole number, 1 or more, got {k!r}.")
        if mode not in ("max", "min"):
            raise TrainingError(unknown_name("mode", mode, ("max", "min")))
        self.folder, self.k, self.mode = Path(folder), k, mode
        self.checkpoints: tuple[Checkpoint, ...] = ()
        self._leaving: tuple[str, ...] = ()
        if (self.folder / INDEX_FILE).exists():
            self._read()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The folders of the kept models, the best first, for `from_pretrained`."""
        return tuple(recovered(self.folder / one.name) for one in self.checkpoints)

    def update(self, state: TrainState, score: float) -> bool:
        """Take the score of one more evaluation; keep the model if it is among the k best.

        Every process calls it, with the same score; the main one writes. For averaged weights call
        it within `EMA.applied`. A score that is not a number is never kept.

        Returns:
            Whether the model was kept.

        Raises:
            TrainingError: a model without `save_pretrained`, or one that could not be written: what
                was kept before still is.
        """
        model: Any = state.unwrapped
        if not callable(getattr(model, "save_pretrained", None)):
            raise TrainingError(
                f"{type(model).__name__} has no save_pretrained(folder), which writes a model; "
                "build it with create_model."
            )
        new = Checkpoint(f"step-{state.step:08d}", float(score), state.step, state.epoch)
        kept = self._with(new)
        if new not in kept or new in self.checkpoints:
            return new in self.checkpoints
        gone = tuple(one.name for one in self.checkpoints if one.name not in _names(kept))
        gone += tuple(name for name in self._leaving if name not in (*_names(kept), *gone))
        if new.name not in _names(self.checkpoints):  # cut short here, it would be left over
            self._write(state, self.checkpoints, (*self._leaving, new.name))
        saves.save_model(state, self.folder / new.name, replace=True)
        self._write(state, kept, gone)
        self.checkpoints, self._leaving = kept, gone
        if state.accelerator.is_main_process:
            self._delete()
        state.accelerator.wait_for_everyone()
        return True

    def settle(self, accelerator: Accelerator) -> None:
        """Clear away what a kill has left of a model, as a resumed run does at its start.

        Every process calls it; the main one deletes.

        Raises:
            TrainingError: the place is read-only.
        """

        def work() -> None:
            if accelerator.is_main_process:
                for one in self.checkpoints:
                    settle_folder(self.folder / one.name)
                self._delete()

        saves.write_together(accelerator, "the best models", self.folder, work)

    def _with(self, new: Checkpoint) -> tuple[Checkpoint, ...]:
        """What is to be kept of the kept ones and a new one."""
        if math.isnan(new.score):
            return self.checkpoints
        sign = -1 if self.mode == "max" else 1
        # A step that comes again, in a resumed run, stands once, with the better of its scores.
        again = [one for one in self.checkpoints if one.step == new.step]
        if any(sign * new.score >= sign * one.score for one in again):
            return self.checkpoints
        others = [one for one in self.checkpoints if one.step != new.step]
        ranked = sorted((*others, new), key=lambda one: (sign * one.score, one.step))
        return tuple(ranked[: self.k])

    def _write(
        self, state: TrainState, kept: tuple[Checkpoint, ...], leaving: tuple[str, ...]
    ) -> None:
        values = {
            "format": _FORMAT,
            "mode": self.mode,
            "checkpoints": [asdict(one) for one in kept],
            "leaving": list(leaving),
        }
        path, text = self.folder / INDEX_FILE, json.dumps(values, indent=1)

        def write() -> None:
            if state.accelerator.is_main_process:
                write_text(path, text)

        saves.write_together(state.accelerator, "the index of the best models", path, write)

    def _delete(self) -> None:
        """Delete what the index says is leaving; what cannot go now goes at the next update."""
        for name in self._leaving:
            for path in self._versions(name):
                shutil.rmtree(path, ignore_errors=True)
        self._leaving = tuple(name for name in self._leaving if self._versions(name))

    def _versions(self, name: str) -> list[Path]:
        """What there is of a model: itself, and what a kill while it was written has left."""
        folder = self.folder / name
        every = (folder, partial_path(folder), former_path(folder))
        return [path for path in every if path.exists()]

    def _read(self) -> None:
        path = self.folder / INDEX_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != _FORMAT:
                raise TrainingError(f"{path} has format {values['format']!r}, expected {_FORMAT}.")
            found = tuple(Checkpoint(**one) for one in values["checkpoints"])
            mode, leaving = values["mode"], tuple(values["leaving"])
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{path} is damaged: {error!r}.") from error
        # The names are deleted one day: nothing else than a model of this class may be among them.
        odd = [name for name in (*_names(found), *leaving) if not _NAME.fullmatch(str(name))]
        if odd:
            raise TrainingError(f"{path} is damaged: it names the folder {odd[0]!r}.")
        if mode != self.mode:
            raise TrainingError(
                f"the models in {self.folder} were kept with mode {mode!r}, not {self.mode!r}; "
                "give the same mode, or another folder."
            )
        self.checkpoints = found
        self._leaving = tuple(name for name in leaving if self._versions(name))


def _names(checkpoints: tuple[Checkpoint, ...]) -> tuple[str, ...]:
    return tuple(one.name for one in checkpoints)
