"""A progress bar over optimizer updates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm

from transferseg.training.events import StepEvent
from transferseg.training.state import TrainState


class UpdateBar:
    """A progress bar over updates that reads no loss from the device before an epoch's end."""

    def __init__(self, state: TrainState, epochs: int, shown: bool, *, unit: str = "epoch") -> None:
        self.shown = shown and state.accelerator.is_main_process
        self._state, self._epochs, self._unit = state, epochs, unit
        self._bar: Any = None

    def step(self, event: StepEvent) -> None:
        """One more update."""
        if self._bar is None:  # the length of an epoch is known from the first event on
            batches = self._state.epoch_length
            each = None if batches is None else math.ceil(batches / self._state.accumulation)
            total = None if each is None else self._epochs * each
            self._bar = tqdm(total=total, initial=event.step - 1, disable=not self.shown)
        self._bar.set_description(f"{self._unit} {event.epoch}/{self._epochs}", refresh=False)
        self._bar.update()

    def epoch(self, row: Mapping[str, Any]) -> None:
        """One more epoch: show its loss and score."""
        shown = {name: f"{row[name]:.4g}" for name in ("loss", "score") if name in row}
        if self._bar is not None:
            self._bar.set_postfix(shown)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
