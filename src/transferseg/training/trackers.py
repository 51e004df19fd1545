"""What goes to accelerate's trackers, and what `train` logs where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferseg.errors import TrainingError
from transferseg.training.atomic import writing
from transferseg.training.events import StepEvent, event_row, plain_number
from transferseg.training.logs import JSONLLogger
from transferseg.training.plan import whole
from transferseg.training.state import TrainState


def log_to_trackers(state: TrainState, row: Mapping[str, Any]) -> None:
    """Give the numbers of a row to the trackers of the state's accelerator.

    They are those of `Accelerator(log_with=...)` after `accelerator.init_trackers(...)`:
    TensorBoard, Weights & Biases, MLflow and all others that accelerate knows, or one's own
    `GeneralTracker`. Text, None and numbers that are not finite are left out; without a tracker
    nothing is done.

    Args:
        state: whose accelerator has the trackers.
        row: of a history, or `event_row(event)`; its "step" is the step, or else the state's.

    Example:
        >>> from accelerate import Accelerator
        >>> from accelerate.tracking import GeneralTracker
        >>> from torch import nn
        >>> from transferseg.training import sgd
        >>> class Printed(GeneralTracker):
        ...     name, requires_logging_directory, tracker = "printed", False, None
        ...     def log(self, values, step=None, **kwargs):
        ...         print(step, values)
        >>> accelerator = Accelerator(log_with=Printed())
        >>> accelerator.init_trackers("project")
        >>> state = TrainState.prepare(nn.Linear(1, 1), optimizer=sgd, accelerator=accelerator)
        >>> log_to_trackers(state, {"event": "epoch", "step": 9, "loss": 0.5})
        9 {'loss': 0.5}
    """
    if not state.accelerator.trackers:
        return
    plain = {name: plain_number(value) for name, value in row.items()}
    step = plain.pop("step", state.step)
    values = {
        name: value
        for name, value in plain.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
    state.accelerator.log(values, step=step)


class RunLog:
    """What `train` logs: every n-th update if asked, and every epoch.

    Args:
        state: what is trained; a resumed one has been loaded.
        folder: gets `log.jsonl`, if updates are logged; None for the trackers alone.
        every: updates from one that is logged to the next; None logs epochs to trackers alone.
        resume: go on with the log in the folder.

    Raises:
        TrainingError: an `every` that is no whole number from 1, or nowhere to log to.
    """

    def __init__(
        self, state: TrainState, folder: Path | None, *, every: int | None, resume: bool
    ) -> None:
        self._state = state
        self._every = None if every is None else whole("log_every", every, 1)
        self._file: JSONLLogger | None = None
        if every is None:
            return
        if folder is None and not state.accelerator.trackers:
            raise TrainingError(
                "log_every needs a place to log to: give folder=..., or an accelerator with "
                "trackers (log_with=..., and init_trackers called)."
            )
        if folder is not None:
            self._file = JSONLLogger(folder / "log.jsonl", state, resume=resume)

    def step(self, event: StepEvent) -> None:
        """One more update; only one that is logged waits for the device."""
        if self._every is not None and event.step % self._every == 0:
            self._write(event_row(event))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """One more epoch, as the history has it."""
        self._write({"event": "epoch", **row})

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is not None:
            with writing("the log", self._file.path):
                self._file.write(row)
        log_to_trackers(self._state, row)
