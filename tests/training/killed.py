"""Trainings that are killed by SIGKILL again and again, and gone on with, in real processes.

`main` forks a process for every attempt, so that an attempt costs no start. `test_killed` reads
what it writes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import accelerate.utils.other
import torch
from torch.utils.data import DataLoader, _utils

import transferseg as ts
from tests.training.tiny import Accuracy, TermsLoss, accelerator, darker, net, prepared, rotate
from transferseg.errors import TrainingError
from transferseg.training import TrainState, adamw, cosine, fit, plateau, save_every
from transferseg.training.atomic import recovered
from transferseg.training.events import EpochEvent
from transferseg.training.saves import read_save

#: Updates from save to save.
EVERY = 2
#: What Python tells its audit hooks of: what changes files, but for the writing itself.
WRITES = frozenset({"open", "os.rename", "os.mkdir"})
CHANGES = WRITES | {"os.remove", "os.rmdir", "shutil.rmtree"}


class Trap:
    """Does something at one moment of an attempt: at the n-th update, file or change of files."""

    def __init__(self, kind: str, count: int, name: str, act: Callable[[], None]) -> None:
        self.kind, self.left, self.name, self.act = kind, count, name, act
        self.events = CHANGES

    def passed(self, kind: str, path: str = "") -> bool:
        if kind != self.kind or self.name not in path:
            return False
        self.left -= 1
        return self.left == 0

    def set(self) -> None:
        """Watch updates, written files and audit events from now on, in this process."""
        sys.addaudithook(self._audit)
        torch.save = self._torn(torch.save)
        others: Any = accelerate.utils.other
        others.safe_save_file = self._torn(others.safe_save_file)

    def _audit(self, event: str, given: tuple[Any, ...]) -> None:
        if event in self.events and self.passed("change", str(given[0])):
            self.act()

    def _torn(self, write: Callable[..., None]) -> Callable[..., None]:
        def half(value: Any, path: Any, *args: Any, **options: Any) -> None:
            write(value, path, *args, **options)
            if self.passed("file", str(path)):
                os.truncate(path, Path(path).stat().st_size // 2)
                self.act()

        return half


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(log: int, trap: Trap | None) -> Callable[..., Any]:
    """AdamW that writes a byte for every update that it has executed."""

    def make(model: torch.nn.Module) -> torch.optim.Optimizer:
        optimizer = adamw(model, lr=0.05)

        def executed(*_: object) -> None:
            os.write(log, b"u")
            if trap is not None and trap.passed("update"):
                trap.act()

        optimizer.register_step_post_hook(executed)
        return optimizer

    return make


def in_a_loop(folder: Path, optimizer: Callable[..., Any]) -> TrainState:
    """A loop written by hand: dropout, BatchNorm, a schedule, an odd number of batches."""
    state = TrainState.prepare(
        net(), optimizer=optimizer, schedule=cosine(warmup_steps=3), accelerator=accelerator()
    )
    last = folder / "last"
    state.resume(last)
    data = DataLoader(prepared(augment=darker, indices=range(9)), batch_size=2, shuffle=True)
    events = fit(state, data, loss=TermsLoss(), epochs=8, clip_norm=0.5)
    for event in save_every(events, state, last, steps=EVERY):
        if isinstance(event, EpochEvent):
            state.history.append({"epoch": event.epoch, "loss": event.loss, **event.terms})
    return state


def by_train(folder: Path, optimizer: Callable[..., Any]) -> None:
    """`train` with workers, accumulation and a plateau that follows the scores."""
    data = prepared(augment=darker, indices=range(9))
    ts.train(
        net(),
        DataLoader(data, batch_size=2, shuffle=True, num_workers=1),
        DataLoader(prepared(indices=range(8, 12)), batch_size=3),
        loss=TermsLoss(),
        epochs=8,
        metrics=Accuracy(),
        score="loss_bce",
        optimizer=optimizer,
        schedule=plateau(factor=0.7, patience=0, mode="min"),
        accelerator=accelerator(gradient_accumulation_steps=2),
        folder=folder,
        save_every=EVERY,
        resume=True,
        progress=False,
        allow_shared_groups=True,
    )


def by_rotation(folder: Path, optimizer: Callable[..., Any]) -> None:
    """`train_rotating` over three epochs of three runs of four updates, with averaged weights."""
    rotate(
        net(), epochs=3, optimizer=optimizer, ema_decay=0.5, folder=folder, save_every=EVERY,
        resume=True,
    )  # fmt: skip


def attempt(work: Callable[..., Any], folder: Path, kill: tuple[str, int, str] | None) -> dict:
    """One process: what it had, what it executed, how it ended, what it left."""
    begun = saved_step(folder)
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    child = os.fork()
    if child == 0:
        try:
            trap = None if kill is None else Trap(*kill, die)
            if trap is not None:
                trap.set()
            work(folder / "run", counted(log, trap))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    os.close(log)
    return {
        "kill": kill, "begun": begun, "executed": (folder / "log").stat().st_size,
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "done": os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0,
        "saved": saved_step(folder),
    }  # fmt: skip


def saved_step(folder: Path) -> int:
    """Updates in the save that there is; it must be whole."""
    last = recovered(folder / "run" / "last")
    return read_save(last)["counters"]["step"] if last.exists() else 0


def chain(work: Callable[..., Any], folder: Path, kills: Iterable[tuple[str, int, str]]) -> list:
    """Attempts until the kills are used up or the run is done; the last is left to end."""
    folder.mkdir()
    attempts = []
    for kill in kills:
        attempts.append(attempt(work, folder, kill))
        if not attempts[-1]["killed"]:
            return attempts
    return [*attempts, attempt(work, folder, None)]


def failing(folder: Path) -> list[str]:
    """A loop in which every change of files in a save fails once; gives what the errors said."""
    said: list[str] = []
    log = os.open(os.devnull, os.O_WRONLY)

    def fail() -> None:
        raise OSError(28, "No space left on device")

    trap = Trap("change", 0, str(folder), fail)
    trap.events = WRITES
    trap.set()
    save = TrainState.save

    def until_it_works(state: TrainState, place: Any) -> None:
        trap.left = 0  # not while this looks
        before = saved_step(folder)
        for count in range(1, 40):
            trap.left = count if state.step == 2 * EVERY else 0
            try:
                save(state, place)
            except TrainingError as error:
                said.append(str(error))
                trap.left = 0
                assert saved_step(folder) in (before, state.step)
            else:
                if trap.left > 0 or state.step != 2 * EVERY:
                    break

    TrainState.save = until_it_works  # type: ignore[method-assign]
    in_a_loop(folder / "run", counted(log, None))
    return said


def forked(work: Callable[[], Any], result: Path) -> None:
    """Do something in a process of its own; its result goes into a file as JSON."""
    child = os.fork()
    if child == 0:
        try:
            result.write_text(json.dumps(work()))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    worker: Any = _utils.worker
    worker.MP_STATUS_CHECK_INTERVAL = 0.2  # workers notice a killed parent sooner
    found = {
        "straight loop": chain(in_a_loop, folder / "straight-loop", []),
        "killed loop": chain(in_a_loop, folder / "loop", loop_kills()),
        "straight train": chain(by_train, folder / "straight-train", []),
        "killed train": chain(by_train, folder / "train", train_kills()),
        "straight rotating": chain(by_rotation, folder / "straight-rotating", []),
        "killed rotating": chain(by_rotation, folder / "rotating", rotation_kills()),
    }
    (folder / "failing").mkdir()
    forked(partial(failing, folder / "failing"), folder / "failing.json")
    (folder / "found.json").write_text(json.dumps(found))


def loop_kills() -> list[tuple[str, int, str]]:
    """Every second change of files of a save, every file half written, and some updates."""
    changes = [("change", count, ".last.") for count in range(1, 20, 2)]
    files = [("file", count, ".last.") for count in range(1, 5)]
    return [("update", 3, ""), *changes, *files, ("update", 1, ""), ("update", 2, "")]


def train_kills() -> list[tuple[str, int, str]]:
    """The best model, the history, the save at an epoch's end, and some updates."""
    return [
        ("update", 2, ""),
        ("file", 3, ".last."),
        ("update", 4, ""),
        ("change", 4, ".best."),
        ("change", 1, "history.csv"),
        ("change", 6, ".best."),
        ("change", 4, "history.csv"),
        ("change", 30, "last"),
        ("update", 1, ""),
        ("change", 55, "last"),
    ]


def rotation_kills() -> list[tuple[str, int, str]]:
    """The weights of a run while they are written, saves within runs, and some updates."""
    runs = [("change", count, "runs") for count in (1, 3, 5)]
    return [("update", 3, ""), *runs, ("update", 4, ""), ("file", 3, ".last."), ("update", 5, "")]
