"""One run: a prepared state, the score that decides, and what is kept while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from transferseg.errors import TrainingError
from transferseg.training import saves
from transferseg.training.atomic import recovered, write_text
from transferseg.training.best import INDEX_FILE, BestCheckpoints
from transferseg.training.ema import EMA
from transferseg.training.events import StepEvent
from transferseg.training.history import History, rows_to_csv
from transferseg.training.judge import Judge
from transferseg.training.schedules import Plateau, ScheduleLike
from transferseg.training.state import OptimizerLike, TrainState
from transferseg.training.stopping import EarlyStopping


@contextmanager
def running(
    model: nn.Module,
    judge: Judge | None,
    *,
    optimizer: OptimizerLike,
    schedule: ScheduleLike | None,
    accelerator: Accelerator | None,
    folder: str | PathLike[str] | None,
    patience: int | None,
    minimum_delta: float,
    restore_best: bool,
    resume: bool,
    seed: int,
    scheme: str | None = None,
    state: TrainState | None = None,
    ema_decay: float | None = None,
    best_k: int | None = None,
    save_every: int | None = None,
) -> Iterator[Run]:
    """A run over a state that is prepared once: begun or resumed; its best weights at the end.

    A `state` that is given has been prepared, with this optimizer and schedule, for several runs;
    it is left prepared.

    Raises:
        TrainingError: options that do not fit each other, or not the run in the folder.
    """
    place = None if folder is None else Path(folder)
    _check_options(model, place, judge, schedule, patience, restore_best, resume)
    stopping = EarlyStopping(patience, minimum_delta, judge.mode if judge else "max")
    checkpoints = None if best_k is None else _checkpoints(place, judge, best_k)
    kept = state is not None
    state = state or TrainState.prepare(
        model, optimizer=optimizer, schedule=schedule, accelerator=accelerator, seed=seed
    )
    run = Run(
        state, place, judge, stopping, keep_best=restore_best, scheme=scheme,
        checkpoints=checkpoints, save_every=save_every,
    )  # fmt: skip
    try:
        if ema_decay is not None:
            EMA(state, decay=ema_decay)
        if resume and place is not None:
            run.resume()
        yield run
        if state.ema is not None:
            state.ema.copy_to_model()  # those that were scored
        if restore_best:
            run.restore()
    finally:
        if not kept:
            hand_back(state)


def hand_back(state: TrainState) -> None:
    """Free the accelerator for other trainings, and the model of its autocast."""
    state.accelerator.unwrap_model(state.model, keep_fp32_wrapper=False)
    state.accelerator.free_memory()


def _checkpoints(folder: Path | None, judge: Judge | None, k: int) -> BestCheckpoints:
    if folder is None or judge is None:
        raise TrainingError(
            "best_k needs the folder of the run, and a score, so a validation loader."
        )
    return BestCheckpoints(folder / "checkpoints", k, mode=judge.mode)


def _check_options(
    model: nn.Module,
    folder: Path | None,
    judge: Judge | None,
    schedule: ScheduleLike | None,
    patience: int | None,
    restore_best: bool,
    resume: bool,
) -> None:
    if judge is None:
        needs = {
            "patience": patience is not None,
            "restore_best": restore_best,
            "a plateau schedule": isinstance(schedule, Plateau),
        }
        for name in [name for name, needed in needs.items() if needed]:
            raise TrainingError(f"{name} needs a score, and so a validation loader.")
    elif isinstance(schedule, Plateau) and schedule.mode != judge.mode:
        raise TrainingError(
            f"the plateau schedule has mode {schedule.mode!r}, but the score {judge.mode!r}; make "
            f"it plateau(mode={judge.mode!r})."
        )
    if folder is None:
        if resume:
            raise TrainingError("resume needs the folder of the run: give folder=...")
        return
    if not callable(getattr(model, "save_pretrained", None)):
        raise TrainingError(
            f"{type(model).__name__} has no save_pretrained(folder), which writes the best model; "
            "build it with create_model, or train without a folder."
        )
    kept = folder / "checkpoints" / INDEX_FILE  # of a run that ended before its first save
    if not resume and (recovered(folder / "last").exists() or kept.exists()):
        raise TrainingError(
            f"{folder} already holds a run; give resume=True to go on with it, or another folder."
        )


@dataclass
class Run:
    """What a training keeps beside its state.

    Attributes:
        state: what is trained.
        folder: where it is kept, None for nowhere.
        judge: what is measured, None without validation.
        stopping: has seen the score of every epoch.
        keep_best: whether the best weights are wanted at the end.
        scheme: how the scores are validated, where not on held-out data; it stands in every row.
        checkpoints: the k best models, where they are wanted.
        save_every: updates from save to save, None to save epochs alone.
        best: the best weights, where there is no folder.
    """

    state: TrainState
    folder: Path | None
    judge: Judge | None
    stopping: EarlyStopping
    keep_best: bool
    scheme: str | None = None
    checkpoints: BestCheckpoints | None = None
    save_every: int | None = None
    best: dict[str, Tensor] = field(default_factory=dict)

    def resume(self) -> None:
        """Go on from the save in the folder, if there is one; it must be of the same scores.

        What a kill has left half done beside the save is put in order: the history is written
        anew, as the kill may have come between the two.

        Raises:
            TrainingError: it is not.
        """
        if self.folder is None:
            return
        save = self.folder / "last"
        saves.settle(self.state.accelerator, self.folder / "best")
        if self.checkpoints is not None:
            self.checkpoints.settle(self.state.accelerator)
        if not self.state.resume(save):
            return
        for row in (*self.state.history, *filter(None, [self.state.under_way])):
            if row.get("validation_scheme") != self.scheme:
                raise TrainingError(
                    f"the run in {save} was validated by "
                    f"{_scheme_text(row.get('validation_scheme'))}, this one would be by "
                    f"{_scheme_text(self.scheme)}; go on as it was begun, or begin another folder."
                )
            if "score" in row:
                if self.judge is None or row["score_name"] != self.judge.name:
                    wanted = None if self.judge is None else self.judge.name
                    raise TrainingError(
                        f"the run in {save} was scored by {row['score_name']}, this one would be "
                        f"by {wanted}; give the same score and mode, or begin another folder."
                    )
                self.stopping.update(row["score"])
        if self.state.history:
            self._write_history()

    def scored_weights(self) -> AbstractContextManager[None]:
        """The model with the weights that are scored and kept: averaged ones, where there are."""
        return nullcontext() if self.state.ema is None else self.state.ema.applied()

    def scored(self, row: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
        """The row of an epoch with what the judge makes of an evaluation; steps a plateau."""
        if self.judge is None:
            return dict(row)
        score, columns = self.judge.read(results)
        self.state.step_plateau(score)
        scheme = {} if self.scheme is None else {"validation_scheme": self.scheme}
        found = {**row, "score": score, "score_name": self.judge.name, **scheme, **columns}
        found["learning_rate"] = self.state.learning_rate  # a plateau may just have lowered it
        return found

    def keep(self, row: dict[str, Any]) -> None:
        """Add the row of an epoch; write the state, and the weights if they are the best so far."""
        self.state.history.append(row)
        with self.scored_weights():
            if "score" in row and self.stopping.update(row["score"]):
                self._keep_weights()
            if self.checkpoints is not None:
                self.checkpoints.update(self.state, row["score"])
        if self.folder is not None:
            self.save()
            self._write_history()

    def step(self, event: StepEvent) -> None:
        """One more update; the state is saved where that is due."""
        if self.save_every is not None and event.step % self.save_every == 0:
            self.save()

    def save(self) -> None:
        """Write the whole state, perhaps in the middle of an epoch."""
        if self.folder is not None:
            self.state.save(self.folder / "last")

    def _write_history(self) -> None:
        if self.folder is None:
            return
        accelerator, path = self.state.accelerator, self.folder / "history.csv"

        def write() -> None:
            text = rows_to_csv(self.state.history)
            if accelerator.is_main_process and not (path.exists() and path.read_text() == text):
                write_text(path, text)

        saves.write_together(accelerator, "the history", path, write)

    def _keep_weights(self) -> None:
        if self.folder is not None:
            saves.save_model(self.state, self.folder / "best", replace=True)
        elif self.keep_best:
            values = self.state.unwrapped.state_dict()
            self.best = {name: t.detach().cpu().clone() for name, t in values.items()}

    def restore(self) -> None:
        """Give the model the weights of the best epoch."""
        if self.stopping.best is None:
            warnings.warn(
                "there are no best weights to restore, since no score was a number: the model "
                "keeps those of the last epoch.",
                stacklevel=5,  # past `running` and its context manager: who called the training
            )
            return
        if self.folder is None:
            self.state.unwrapped.load_state_dict(self.best)
            return
        saves.load_model(self.state, self.folder / "best")

    def history(self) -> History:
        """What the run gave."""
        rows = self.state.history
        scored = [row for row in rows if "score" in row]
        count = self.stopping.best_count
        return History(
            rows=tuple(rows),
            best_epoch=scored[count - 1]["epoch"] if count else None,
            best_score=self.stopping.best,
            seconds=self.state.seconds,
            samples_seen=self.state.samples_seen,
        )


def _scheme_text(scheme: str | None) -> str:
    return "a loader of its own, or not at all" if scheme is None else scheme
