"""Where the time of a training goes: all of it, and what of it was spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from transferseg.training.state import TrainState


class Clock:
    """Adds the time between its start and its stop to the state, and that spent on data apart.

    It is the host's time, and asks no device whether it is done: where work is queued on one, a
    single update may look short and the next one long, and only an epoch's sum is the truth.
    """

    def __init__(self, state: TrainState) -> None:
        self._state = state
        self._seconds = self._waited = 0.0  # since the last lap
        self.start()

    def start(self) -> None:
        """Time counts from here on."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Time counts no more: the loop around `fit` has its turn."""
        passed = time.perf_counter() - self._since
        self._state.seconds += passed
        self._state.epoch_seconds += passed
        self._seconds += passed

    def waiting(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; the time until each of them comes counts as waited."""
        iterator = iter(batches)
        nothing = object()
        while True:
            since = time.perf_counter()
            batch = next(iterator, nothing)
            waited = time.perf_counter() - since
            self._state.epoch_data_seconds += waited
            self._waited += waited
            if batch is nothing:
                return
            yield batch

    def lap(self) -> tuple[float, float]:
        """Seconds counted since the last lap, and those of them that were waited for data."""
        lap = self._seconds, self._waited
        self._seconds = self._waited = 0.0
        return lap
