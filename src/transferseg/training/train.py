"""Train, evaluate, keep the best, stop early, resume: the loop around `fit`, written once."""

from __future__ import annotations

import warnings
from contextlib import closing
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from safetensors.torch import load_model
from torch import Tensor, nn

from transferseg.errors import TrainingError, some
from transferseg.training.atomic import recovered, replacing, write_text
from transferseg.training.evaluate import Metric, evaluate
from transferseg.training.events import EpochEvent, StepEvent
from transferseg.training.history import History, rows_to_csv
from transferseg.training.judge import Judge, ScoreLike, make_judge
from transferseg.training.loaders import length
from transferseg.training.loop import fit
from transferseg.training.optimizers import adamw
from transferseg.training.progress import UpdateBar
from transferseg.training.schedules import Plateau, ScheduleLike
from transferseg.training.state import OptimizerLike, TrainState
from transferseg.training.stopping import EarlyStopping
from transferseg.training.targets import Loader, Loss
from transferseg.types import Target


def train(
    model: nn.Module,
    train_loader: Loader,
    validation_loader: Loader | None = None,
    *,
    loss: Loss,
    epochs: int,
    metrics: Metric[Any] | None = None,
    score: ScoreLike | None = None,
    mode: Literal["max", "min"] | None = None,
    optimizer: OptimizerLike = adamw,
    schedule: ScheduleLike | None = None,
    accelerator: Accelerator | None = None,
    folder: str | PathLike[str] | None = None,
    patience: int | None = None,
    minimum_delta: float = 0.0,
    restore_best: bool = False,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
    target: Target = "mask",
    clip_norm: float | None = None,
    channels_last: bool = False,
    allow_shared_groups: bool = False,
) -> History:
    """Train a model for some epochs; evaluate it after each.

    It is `TrainState.prepare`, `fit`, `evaluate` and `EarlyStopping` put together; for anything
    that it does not do, write that loop. The model is trained in place and keeps the weights of the
    last epoch, unless `restore_best`.

    Into `folder` go, after every epoch and each in one step: `best/` (the model, by its
    `save_pretrained`), `last/` (the whole `TrainState`) and `history.csv`.

    Args:
        model: with a `.spec`, and with `save_pretrained` if there is a folder.
        train_loader: batches as the data room makes them.
        validation_loader: evaluated after every epoch; without it there is no score.
        loss: (logits, target) -> scalar; see `Loss`. Its mean over the validation samples is among
            the scores as "loss", those of its terms as "loss_<term>".
        epochs: complete epochs, those of a resumed run included.
        metrics: counts whose scores are kept as `validation_<name>`; only the loss when not given.
        score: decides which epoch is best: a name among the scores, or a function of what
            `metrics.scores()` returns. "loss" when there are no metrics; must be given with them.
        mode: "max" where higher scores are better, "min" where lower ones are; by default "min" for
            the score "loss" and "max" for any other.
        optimizer: see `TrainState.prepare`.
        schedule: see `TrainState.prepare`; a plateau schedule is stepped with the score.
        accelerator: see `TrainState.prepare`; it is handed back without the model.
        folder: where to keep the run; nothing is written when not given.
        patience: epochs without a better score after which to stop; None goes on to the end.
        minimum_delta: see `EarlyStopping`.
        restore_best: give the model the weights of the best epoch at the end.
        resume: go on with the run in `folder`, or begin it if there is none yet.
        seed: see `TrainState.prepare`.
        progress: show progress bars, in the main process.
        target: "mask", "label" or "image".
        clip_norm: see `fit`.
        channels_last: see `fit`.
        allow_shared_groups: train although a group (a patient) is in both loaders; only to see
            whether a model can overfit.

    Returns:
        The history of all epochs.

    Raises:
        TrainingError: options that do not fit each other, a folder that holds a run while `resume`
            is off, an unknown score, and everything that `fit` raises.

    Example:
        >>> import torch
        >>> from transferseg.spec import InputSpec, ModelSpec
        >>> model = torch.nn.Conv2d(1, 1, 3, padding=1)
        >>> model.spec = ModelSpec("autoencoder", "none", ["grey"], "binary", input=InputSpec(1))
        >>> samples = [{"image": torch.rand(1, 8, 8)} for _ in range(4)]
        >>> loader = torch.utils.data.DataLoader(samples, batch_size=2)
        >>> history = train(
        ...     model, loader, loader, loss=torch.nn.functional.mse_loss, epochs=2,
        ...     target="image", progress=False,
        ... )
        >>> [row["epoch"] for row in history.rows], history.best_score == history.rows[-1]["score"]
        ([1, 2], True)
    """
    if not allow_shared_groups:
        _check_leak(train_loader, validation_loader)
    judge = make_judge(metrics, score, mode, loss, validation_loader is not None)
    place = None if folder is None else Path(folder)
    _check_options(model, place, judge, schedule, patience, restore_best, resume)
    state = TrainState.prepare(
        model, optimizer=optimizer, schedule=schedule, accelerator=accelerator, seed=seed
    )
    stopping = EarlyStopping(patience, minimum_delta, judge.mode if judge else "max")
    run = _Run(state, place, judge, stopping, keep_best=restore_best)
    try:
        if resume and place is not None and recovered(place / "last").exists():
            run.resume(place / "last")
        with closing(UpdateBar(state, epochs, progress)) as bar:
            if not stopping.should_stop:
                events = fit(
                    state, train_loader, loss=loss, epochs=epochs, target=target,
                    clip_norm=clip_norm, channels_last=channels_last,
                )  # fmt: skip
                run.follow(events, validation_loader, target, bar)
        if restore_best:
            run.restore()
    finally:
        # The accelerator serves other trainings, and the model is called without its autocast.
        state.accelerator.unwrap_model(state.model, keep_fp32_wrapper=False)
        state.accelerator.free_memory()
    return run.history()


def _check_leak(train_loader: Any, validation_loader: Any) -> None:  # noqa: ANN401
    """No group in both loaders, where their data sets tell groups."""
    if validation_loader is None:
        return
    if length(validation_loader) == 0:
        raise TrainingError("the validation loader has no batches; an empty split?")
    sides = [getattr(loader.dataset, "groups", ()) for loader in (train_loader, validation_loader)]
    shared = set(sides[0]) & set(sides[1])
    if shared:
        raise TrainingError(
            f"{len(shared)} group(s) are in the training and in the validation loader, so the "
            f"scores would be too good: {some(sorted(map(str, shared)))}. Split with "
            "data.split_by_group, or give allow_shared_groups=True."
        )


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
    if not resume and recovered(folder / "last").exists():
        raise TrainingError(
            f"{folder} already holds a run; give resume=True to go on with it, or another folder."
        )


@dataclass
class _Run:
    state: TrainState
    folder: Path | None
    judge: Judge | None
    stopping: EarlyStopping
    keep_best: bool
    best: dict[str, Tensor] = field(default_factory=dict)

    def resume(self, save: Path) -> None:
        self.state.load(save)
        for row in self.state.history:
            if "score" in row:
                if self.judge is None or row["score_name"] != self.judge.name:
                    wanted = None if self.judge is None else self.judge.name
                    raise TrainingError(
                        f"the run in {save} was scored by {row['score_name']}, this one would be "
                        f"by {wanted}; give the same score and mode, or begin another folder."
                    )
                self.stopping.update(row["score"])

    def follow(self, events: Any, validation_loader: Any, target: Target, bar: UpdateBar) -> None:  # noqa: ANN401
        with closing(events):
            for event in events:
                if isinstance(event, StepEvent):
                    bar.step(event)
                    continue
                row = self.measure(event, validation_loader, target, bar)
                self.keep(row)
                bar.epoch(row)
                if self.stopping.should_stop:
                    return

    def measure(
        self,
        event: EpochEvent,
        validation_loader: Any,  # noqa: ANN401
        target: Target,
        bar: UpdateBar,
    ) -> dict[str, Any]:
        row: dict[str, Any] = {
            "epoch": event.epoch, "step": event.step, "loss": event.loss, **event.terms,
            "learning_rate": event.learning_rate, "seconds": event.seconds,
            "samples_seen": event.samples_seen,
        }  # fmt: skip
        if self.judge is not None:
            results = evaluate(
                self.state.model,
                validation_loader,
                metrics=self.judge.metrics,
                accelerator=self.state.accelerator,
                target=target,
                progress=bar.shown,
            )
            score, columns = self.judge.read(results)
            row.update(score=score, score_name=self.judge.name, **columns)
            self.state.step_plateau(score)
            row["learning_rate"] = self.state.learning_rate  # a plateau may just have lowered it
        return row

    def keep(self, row: dict[str, Any]) -> None:
        state, accelerator = self.state, self.state.accelerator
        state.history.append(row)
        if "score" in row and self.stopping.update(row["score"]):
            self.keep_weights()
        if self.folder is not None:
            state.save(self.folder / "last")
            if accelerator.is_main_process:
                write_text(self.folder / "history.csv", rows_to_csv(state.history))

    def keep_weights(self) -> None:
        model: Any = self.state.unwrapped
        if self.folder is None:
            if self.keep_best:
                self.best = {
                    name: t.detach().cpu().clone() for name, t in model.state_dict().items()
                }
        elif self.state.accelerator.is_main_process:
            with replacing(self.folder / "best") as partial:
                model.save_pretrained(partial)

    def restore(self) -> None:
        if self.stopping.best is None:
            warnings.warn(
                "there are no best weights to restore, since no score was a number: the model "
                "keeps those of the last epoch.",
                stacklevel=3,
            )
            return
        if self.folder is None:
            self.state.unwrapped.load_state_dict(self.best)
            return
        self.state.accelerator.wait_for_everyone()
        load_model(self.state.unwrapped, recovered(self.folder / "best") / "model.safetensors")

    def history(self) -> History:
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
