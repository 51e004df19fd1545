"""A state that is saved while it trains: every so many updates and after every epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os import PathLike

from transferseg.errors import TrainingError
from transferseg.training.events import EpochEvent, StepEvent
from transferseg.training.state import TrainState


def save_every(
    events: Iterable[StepEvent | EpochEvent],
    state: TrainState,
    folder: str | PathLike[str],
    *,
    steps: int,
) -> Iterator[StepEvent | EpochEvent]:
    """Hand on the events of `fit`, and save the state every `steps` updates and every epoch.

    The state is saved when the loop asks for the next event, so with all that the loop has done
    about this one (a row in `state.history`, a plateau schedule). A run that is killed at any
    moment, goes on from the save (`state.resume(folder)` before `fit`) and repeats at most `steps`
    updates. A loop that is left by `break` has not saved its last event: call `state.save`.

    Args:
        events: of `fit`, perhaps through other functions like this one.
        state: that `fit` trains.
        folder: of the save; see `TrainState.save`.
        steps: complete optimizer updates from save to save, from 1; counted from the start of
            training, so that a resumed run saves where the first one would have.

    Returns:
        An iterator of the same events.

    Raises:
        TrainingError: a number below 1; a save that fails.

    Example:
        >>> import tempfile, torch
        >>> from transferseg.spec import InputSpec, ModelSpec
        >>> from transferseg.training import fit, sgd
        >>> model = torch.nn.Conv2d(1, 1, 3, padding=1)
        >>> model.spec = ModelSpec("autoencoder", "none", ["grey"], "binary", input=InputSpec(1))
        >>> data = [{"image": torch.rand(1, 8, 8)} for _ in range(6)]
        >>> loader = torch.utils.data.DataLoader(data, batch_size=2)
        >>> loss = torch.nn.functional.mse_loss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     state = TrainState.prepare(model, optimizer=sgd)
        ...     events = fit(state, loader, loss=loss, epochs=2, target="image")
        ...     for event in save_every(events, state, f"{folder}/last", steps=2):
        ...         if event.step == 5:
        ...             break  # or a kill
        ...     state.resume(f"{folder}/last")
        True
        >>> state.step, state.batches
        (4, 1)
    """
    check_steps("steps", steps)
    return _saved(events, state, folder, steps)


def check_steps(name: str, steps: int) -> None:
    """Raise unless a number of updates is a whole number from 1.

    Raises:
        TrainingError: it is not.
    """
    if not isinstance(steps, int) or steps < 1:
        raise TrainingError(f"{name} must be a whole number of updates from 1, got {steps!r}.")


def check_save_every(save_every: int | None, folder: str | PathLike[str] | None) -> None:
    """Raise unless a run can be saved every so many updates, where that is asked for.

    Raises:
        TrainingError: it cannot.
    """
    if save_every is None:
        return
    check_steps("save_every", save_every)
    if folder is None:
        raise TrainingError("save_every needs a place to save to: give folder=...")


def _saved(
    events: Iterable[StepEvent | EpochEvent],
    state: TrainState,
    folder: str | PathLike[str],
    steps: int,
) -> Iterator[StepEvent | EpochEvent]:
    try:
        for event in events:
            yield event
            if isinstance(event, EpochEvent) or event.step % steps == 0:
                state.save(folder)
    finally:
        close = getattr(events, "close", None)
        if close is not None:
            close()
