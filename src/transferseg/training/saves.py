"""The folder of a saved `TrainState`: accelerate's files and one JSON beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from transferseg.errors import TrainingError, some
from transferseg.training import sharded
from transferseg.training.atomic import (
    begin_folder,
    discard_folder,
    finish_folder,
    partial_path,
    recovered,
    replacing,
    settle_folder,
    writing,
)

if TYPE_CHECKING:
    from transferseg.training.state import TrainState

STATE_FILE = "train_state.json"
_FORMAT = 1
_COUNTERS = (
    "step", "epoch", "batches", "samples_seen", "seconds", "epoch_seconds", "epoch_length",
    "total_steps", "history", "epoch_data_seconds", "epoch_skipped",
)  # fmt: skip
_PARTS = ("conditions", "layout", "record", "scheduled", "random")


def save(state: TrainState, folder: Path) -> None:
    """Write a state into a folder; see `TrainState.save`."""
    accelerator = state.accelerator
    main = accelerator.is_main_process

    def part(work: Callable[[], object]) -> None:
        write_together(accelerator, "the state", folder, work)

    together(accelerator, state.record.settle)
    record = state.record.reduced(accelerator)
    sharded.share_buffers(state.unwrapped, accelerator)
    try:
        part(lambda: _begin(folder) if main else None)
        part(lambda: _save_files(accelerator, partial_path(folder)))
        part(lambda: _finish(state, record, folder) if main else None)
    finally:
        if main:
            discard_folder(folder)


def save_model(state: TrainState, folder: Path, *, replace: bool = False) -> None:
    """Write the model by its own `save_pretrained`; every process calls it.

    Args:
        state: of the model.
        folder: where.
        replace: swap in a new folder as a whole, for models that write file by file.
    """
    model: Any = state.unwrapped

    def write() -> None:
        if not state.accelerator.is_main_process:
            return
        if not replace:
            folder.mkdir(parents=True, exist_ok=True)
            model.save_pretrained(folder)
            return
        with replacing(folder) as partial:
            model.save_pretrained(partial)

    sharded.share_buffers(model, state.accelerator)
    with sharded.whole_weights(state.model, model, state.accelerator):
        write_together(state.accelerator, "the model", folder, write)


def load_model(state: TrainState, folder: Path) -> None:
    """Read the weights that `save_model` wrote into the model; every process calls it."""
    state.accelerator.wait_for_everyone()
    file = recovered(folder) / "model.safetensors"
    sharded.load_weights(state.model, state.unwrapped, state.accelerator, file)


def write_together(
    accelerator: Accelerator, what: str, path: Path, work: Callable[[], object]
) -> None:
    """Do a part of writing something; what fails on one process is raised on every one.

    Args:
        accelerator: whose processes all call this.
        what: is written, as the message says it.
        path: where.
        work: the part of this process.

    Raises:
        TrainingError: it could not be written, here or on another process.
    """

    def write() -> None:
        with writing(what, path):
            work()

    together(accelerator, write)


def together(accelerator: Accelerator, work: Callable[[], object]) -> None:
    """Do the work of this process; an error of one process is raised on every one.

    Without this, the other processes would wait for the one that has given up.

    Args:
        accelerator: whose processes all call this.
        work: the part of this process.

    Raises:
        TrainingError: that of this process, or else of another.

    Example:
        >>> together(Accelerator(cpu=True), lambda: print("done"))
        done
    """
    error = None
    try:
        work()
    except TrainingError as caught:
        error = caught
    said = [None if error is None else str(error)]
    if accelerator.num_processes > 1:
        said = gather_object(said)
    try:
        if error is not None:
            raise error
        for text in filter(None, said):
            raise TrainingError(text)
    finally:
        error = None  # it holds this frame: both, and a loop that was left, would stay in memory


def _begin(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / STATE_FILE).exists():
        raise TrainingError(
            f"{folder} holds files but no {STATE_FILE}, so it is not a save; it would be replaced "
            "as a whole. Give another folder."
        )
    begin_folder(folder)


def _save_files(accelerator: Accelerator, folder: Path) -> None:
    with sharded.plain_failures(accelerator):
        accelerator.save_state(str(folder))


def _finish(state: TrainState, record: tuple[dict[str, float], int], folder: Path) -> None:
    """The JSON beside accelerate's files; then all of it takes its place."""
    partial = partial_path(folder)
    values = {
        "format": _FORMAT,
        "conditions": state.conditions(),
        "layout": state.layout(),
        "counters": {name: getattr(state, name) for name in (*_COUNTERS, "under_way")},
        "record": {"totals": record[0], "weight": record[1]},
        "scheduled": state.scheduler is not None,
        "random": random_digest(),
        "files": _sizes(partial),
    }
    (partial / STATE_FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")
    finish_folder(folder)


def resume(state: TrainState, folder: Path) -> bool:
    """Go on from a save if there is one; see `TrainState.resume`."""
    settle(state.accelerator, folder)
    if not folder.exists():
        return False
    load(state, folder)
    return True


def settle(accelerator: Accelerator, folder: Path) -> None:
    """Clear away what a kill has left of a replacement of a folder; every process calls it.

    Raises:
        TrainingError: the place is read-only.
    """
    main = accelerator.is_main_process
    write_together(
        accelerator, "a former save", folder, lambda: settle_folder(folder) if main else None
    )


def load(state: TrainState, folder: Path) -> None:
    """Read a state from a folder; see `TrainState.load`."""
    folder = recovered(folder)
    values = read_save(folder)
    _check(state, values, folder)
    counters = values["counters"]
    given = state.total_steps  # a new length, given to `prepare`, wins over the saved one
    if values["scheduled"]:
        state.total_steps = None
        state.lay_schedule(counters["total_steps"] if given is None else given)
    elif state.scheduler is not None:  # saved before the first `fit`: that lays the schedule anew
        state.scheduler, given = None, counters["total_steps"]
    try:
        with sharded.plain_failures(state.accelerator):
            state.accelerator.load_state(str(folder))
    except Exception as error:
        raise TrainingError(
            f"{folder} could not be read: {error} The state may be half loaded; prepare a new one."
        ) from error
    for name in _COUNTERS:
        setattr(state, name, counters[name])
    state.under_way = counters.get("under_way", {})  # earlier saves have none
    state.total_steps = counters["total_steps"] if given is None else given
    main = state.accelerator.is_main_process
    totals, weight = values["record"]["totals"], values["record"]["weight"]
    # The saved sums are those of all processes: one process goes on with them.
    state.record.restore(totals if main else dict.fromkeys(totals, 0.0), weight if main else 0)
    # accelerate logs and goes on when it cannot restore the random generators.
    if main and random_digest() != values["random"]:
        raise TrainingError(
            f"{folder}: accelerate could not restore the random generators, so the run would not "
            "go on as it was; was it saved with other versions of torch or accelerate?"
        )


def random_digest() -> str:
    """A fingerprint of torch's CPU generator."""
    return hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def read_save(folder: Path) -> dict[str, Any]:
    """The JSON of a save, whose files must all be there in the size in which they were written.

    Raises:
        TrainingError: no save, or a damaged one; it names the files.
    """
    if not folder.is_dir():
        raise TrainingError(f"no save at {folder}: there is no such folder.")
    path = folder / STATE_FILE
    if not path.exists():
        found = some(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise TrainingError(
            f"{folder} is not a save of a TrainState: expected {STATE_FILE}, found {found}."
        )
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != _FORMAT:
            raise TrainingError(f"{path} has format {values['format']!r}, expected {_FORMAT}.")
        sizes, counters = values["files"], values["counters"]
        absent = [name for name in _COUNTERS if name not in counters]
        absent += [name for name in _PARTS if name not in values]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is damaged: {error!r}.") from error
    if absent:
        raise TrainingError(f"{path} is damaged: it lacks {some(absent)}.")
    there = _sizes(folder)
    damaged = [name for name, size in sizes.items() if there.get(name) != size]
    if damaged:
        raise TrainingError(
            f"{folder} is damaged: {some(damaged)} missing or of another size than was saved."
        )
    return values


def _check(state: TrainState, values: dict[str, Any], folder: Path) -> None:
    """Compare the saved conditions and shapes with the state's, before anything changes."""
    saved, own = values["conditions"], state.conditions()
    differences = [
        f"{name} is {own.get(name)!r}, saved was {saved.get(name)!r}"
        for name in dict.fromkeys([*own, *saved])
        if saved.get(name) != own.get(name)
    ]
    before, now = values["layout"], state.layout()
    kinds = {
        "missing in the save": [name for name in now if name not in before],
        "not in the model": [name for name in before if name not in now],
        "of another shape": [
            f"{name} {tuple(now[name])} (saved {tuple(before[name])})"
            for name in now
            if name in before and now[name] != before[name]
        ],
    }
    differences += [f"tensors {kind}: {some(names)}" for kind, names in kinds.items() if names]
    if differences:
        raise TrainingError(
            f"the save at {folder} does not fit this state: {'; '.join(differences)}. Prepare the "
            "state as it was prepared when it was saved."
        )
