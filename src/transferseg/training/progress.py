"""A progress bar over optimizer updates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

from tqdm.auto import tqdm

from transferseg.errors import TrainingError
from transferseg.training.events import EpochEvent, StepEvent
from transferseg.training.state import TrainState


class UpdateBar:
    """A progress bar over updates that reads no loss from the device before an epoch's end.

    Args:
        state: what is trained.
        epochs: at which training ends, None where `steps` says it.
        shown: whether to show it, in the main process.
        unit: what an epoch of the state is called.
        steps: at which training ends.
    """

    def __init__(
        self,
        state: TrainState,
        epochs: int | None,
        shown: bool,
        *,
        unit: str = "epoch",
        steps: int | None = None,
    ) -> None:
        self.shown = shown and state.accelerator.is_main_process
        self._state, self._epochs, self._steps, self._unit = state, epochs, steps, unit
        self._bar: Any = None

    def step(self, event: StepEvent) -> None:
        """One more update."""
        if self._bar is None:  # the length of an epoch is known from the first event on
            self._bar = tqdm(total=self._total(), initial=event.step - 1, disable=not self.shown)
        of = "" if self._epochs is None else f"/{self._epochs}"
        self._bar.set_description(f"{self._unit} {event.epoch}{of}", refresh=False)
        self._bar.update()

    def _total(self) -> int | None:
        batches = self._state.epoch_length
        if self._epochs is None or batches is None:
            return self._steps
        return self._epochs * math.ceil(batches / self._state.accumulation)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """One more epoch: show its loss and score."""
        shown = {name: f"{row[name]:.4g}" for name in ("loss", "score") if name in row}
        if self._bar is not None:
            self._bar.set_postfix(shown)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def with_progress(
    events: Iterable[StepEvent | EpochEvent],
    state: TrainState,
    *,
    epochs: int | None = None,
    steps: int | None = None,
) -> Iterator[StepEvent | EpochEvent]:
    """The events of `fit`, with a progress bar over its updates in the terminal or the notebook.

    The bar shows the loss of every epoch; it reads none in between, so no update waits for the
    device. Over several processes the main one shows it.

    Args:
        events: what `fit` gives; closed when the loop around is left.
        state: what is trained.
        epochs: as `fit` was told.
        steps: as `fit` was told.

    Yields:
        The events.

    Raises:
        TrainingError: neither or both of epochs and steps.

    Example:
        >>> from contextlib import redirect_stderr
        >>> from io import StringIO
        >>> import torch
        >>> from transferseg.spec import InputSpec, ModelSpec
        >>> from transferseg.training import fit, sgd
        >>> model = torch.nn.Conv2d(1, 1, 3, padding=1)
        >>> model.spec = ModelSpec("autoencoder", "none", ["grey"], "binary", input=InputSpec(1))
        >>> loader = torch.utils.data.DataLoader([{"image": torch.rand(1, 8, 8)}] * 6, batch_size=2)
        >>> state = TrainState.prepare(model, optimizer=sgd)
        >>> events = fit(
        ...     state, loader, loss=torch.nn.functional.mse_loss, epochs=2, target="image"
        ... )
        >>> with redirect_stderr(StringIO()) as shown:
        ...     for event in with_progress(events, state, epochs=2):
        ...         pass
        >>> "epoch 2/2: 100%" in shown.getvalue()
        True
    """
    if (epochs is None) == (steps is None):
        raise TrainingError(f"give one of epochs and steps, got epochs={epochs}, steps={steps}.")
    return _shown(events, UpdateBar(state, epochs, True, steps=steps))


def _shown(
    events: Iterable[StepEvent | EpochEvent], bar: UpdateBar
) -> Iterator[StepEvent | EpochEvent]:
    with closing(bar):
        try:
            for event in events:
                if isinstance(event, StepEvent):
                    bar.step(event)
                else:
                    bar.epoch({"loss": event.loss})
                yield event
        finally:
            close = getattr(events, "close", None)
            if callable(close):
                close()
