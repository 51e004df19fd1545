"""A state that is saved while it trains: every so many updates and after every epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os import PathLike

from transferseg.errors import TrainingError
from transferseg.training.events import EpochEvent, StepEvent
from transferseg.training.plan import whole
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
        TrainingError: no whole number from 1; a save that fails.

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
    return _saved(events, state, folder, whole("steps", steps, 1))


def check_save_every(save_every: int | None, folder: str | PathLike[str] | None) -> int | None:
    """The updates from save to save, as Python's own number, None where that is not asked for.

    Raises:
        TrainingError: no whole number from 1, or nowhere to save to.
    """
    if save_every is None:
        return None
    if folder is None:
        raise TrainingError("save_every needs a place to save to: give folder=...")
    return whole("save_every", save_every, 1)


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
