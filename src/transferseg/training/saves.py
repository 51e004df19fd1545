"""The folder of a saved `TrainState`: accelerate's files and one JSON beside them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from transferseg.errors import TrainingError, some
from transferseg.training.atomic import recovered, replacing

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
    state.record.settle()
    totals, weight = state.record.reduced(accelerator)
    if folder.exists() and any(folder.iterdir()) and not (folder / STATE_FILE).exists():
        raise TrainingError(
            f"{folder} holds files but no {STATE_FILE}, so it is not a save; it would be replaced "
            "as a whole. Give another folder."
        )
    main = accelerator.is_main_process
    with replacing(folder, main=main, wait=accelerator.wait_for_everyone) as partial:
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if main:
            values = {
                "format": _FORMAT,
                "conditions": state.conditions(),
                "layout": state.layout(),
                "counters": {name: getattr(state, name) for name in _COUNTERS},
                "record": {"totals": totals, "weight": weight},
                "scheduled": state.scheduler is not None,
                "random": random_digest(),
                "files": _sizes(partial),
            }
            text = json.dumps(values, indent=1)
            (partial / STATE_FILE).write_text(text, encoding="utf-8")


def load(state: TrainState, folder: Path) -> None:
    """Read a state from a folder; see `TrainState.load`."""
    folder = recovered(folder)
    values = _read(folder)
    _check(state, values, folder)
    counters = values["counters"]
    given = state.total_steps  # a new length, given to `prepare`, wins over the saved one
    if values["scheduled"]:
        state.total_steps = None
        state.lay_schedule(counters["total_steps"] if given is None else given)
    try:
        state.accelerator.load_state(str(folder))
    except Exception as error:
        raise TrainingError(
            f"{folder} could not be read: {error} The state may be half loaded; prepare a new one."
        ) from error
    for name in _COUNTERS:
        setattr(state, name, counters[name])
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


def _read(folder: Path) -> dict[str, Any]:
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
        f"{name} is {own[name]!r}, saved was {saved.get(name)!r}"
        for name in own
        if saved.get(name) != own[name]
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
