"""Training over rotating folds: no image is spared for validation, and the scores say so."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, cast

from accelerate import Accelerator
from torch import nn

from transferseg.data.folds import Fold, RotatingKFold
from transferseg.data.samples import PreparedDataset
from transferseg.errors import TrainingError
from transferseg.models.freezing import Unfreezing
from transferseg.training.done_runs import DoneRuns
from transferseg.training.evaluate import Metric, evaluate
from transferseg.training.events import EpochEvent, StepEvent
from transferseg.training.folding import Growing, check_data, held_out_part, training_part
from transferseg.training.history import History
from transferseg.training.judge import Judge, ScoreLike, check_score, make_judge
from transferseg.training.loaders import epoch_batches
from transferseg.training.loop import fit
from transferseg.training.optimizers import adamw
from transferseg.training.plan import whole
from transferseg.training.progress import UpdateBar
from transferseg.training.run import Run, running
from transferseg.training.saving import check_save_every
from transferseg.training.schedules import ScheduleLike
from transferseg.training.state import OptimizerLike
from transferseg.training.targets import Loader, Loss
from transferseg.training.trackers import RunLog
from transferseg.types import Target


def train_rotating(
    model: nn.Module,
    data: PreparedDataset,
    validation_data: PreparedDataset,
    *,
    folds: RotatingKFold,
    batch_size: int,
    loss: Loss,
    epochs: int,
    metrics: Metric[Any] | None = None,
    score: ScoreLike | None = None,
    mode: Literal["max", "min"] | None = None,
    optimizer: OptimizerLike = adamw,
    schedule: ScheduleLike | None = None,
    accelerator: Accelerator | None = None,
    folder: str | PathLike[str] | None = None,
    save_every: int | None = None,
    patience: int | None = None,
    minimum_delta: float = 0.0,
    restore_best: bool = False,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
    target: Target = "mask",
    clip_norm: float | None = None,
    channels_last: bool = False,
    unfreeze: Unfreezing | None = None,
    auxiliary_weight: float | None = None,
    skip_nonfinite: int = 0,
    ema_decay: float | None = None,
    best_k: int | None = None,
    log_every: int | None = None,
    workers: int = 0,
) -> History:
    """Train one model over rotating folds: all images train, and all validate.

    An epoch is one run a fold: the model trains on all other folds, then the fold that was held out
    is counted. The epoch's scores are those of the counts of all folds together, so that each image
    counts once, by the weights of its run. The next epoch divides the images anew. Model, optimizer
    and schedule are prepared once and go through all runs.

    **What the scores are worth.** An image that validates in one run has trained in the others.
    The scores rise when the model learns images by heart; they choose an epoch, and take no place
    of a test set. The column `validation_scheme` of every row and `History.validation_scheme` say
    so.

    Files, trackers, stopping and resuming are those of `train`. With `save_every` the folder also
    holds `runs/` while it trains: the model as it was scored after each run of an epoch but the
    last. Resumed in the middle of an epoch, it counts the images again that the runs before have
    held out, and repeats none of their updates. In the saved state, and in the updates that are
    logged, `epoch` counts runs.

    Args:
        model: see `train`.
        data: the images that train, augmented.
        validation_data: the same images in the same order, without augmentation.
        folds: how they are divided, epoch by epoch.
        batch_size: images a batch (on each process), in training and in validation.
        loss: see `train`.
        epochs: complete epochs of `folds.folds` runs each, those of a resumed run included.
        metrics: see `train`.
        score: see `train`.
        mode: see `train`.
        optimizer: see `TrainState.prepare`.
        schedule: laid over the updates of all runs; a plateau schedule is stepped once an epoch.
        accelerator: see `TrainState.prepare`; it is handed back without the model.
        folder: where to keep the run; nothing is written when not given.
        save_every: see `train`; without it, a run that is killed repeats the epoch, all its runs.
        patience: epochs (not runs) without a better score after which to stop.
        minimum_delta: see `EarlyStopping`.
        restore_best: give the model the weights of the best epoch at the end.
        resume: go on with the run in `folder`, or begin it if there is none yet.
        seed: see `TrainState.prepare`; the partitions follow from the seed of `folds`.
        progress: show progress bars, in the main process.
        target: "mask", "label" or "image".
        clip_norm: see `fit`.
        channels_last: see `fit`.
        unfreeze: see `train`; its epochs are those of all folds.
        auxiliary_weight: see `train`.
        skip_nonfinite: see `fit`.
        ema_decay: see `train`; the averaged weights count the folds.
        best_k: see `train`.
        log_every: see `train`.
        workers: processes that load the data of a run.

    Returns:
        The history: one row an epoch. `loss` and its terms are means over the images of the runs,
        `runs` is their number, `learning_rate` that of the update to come.

    Raises:
        TrainingError: data sets that do not have the same images, an image twice, augmented
            validation data, a folder whose run was begun in another way, and what `train` raises.
        DataError: fewer groups than folds.

    Source: Merand 2021, section 3.3.

    Example:
        >>> import torch
        >>> from transferseg.data import SyntheticRadiographs
        >>> from transferseg.spec import InputSpec, ModelSpec
        >>> model = torch.nn.Conv2d(1, 1, 3, padding=1)
        >>> model.spec = ModelSpec("autoencoder", "none", ["grey"], "binary", input=InputSpec(1))
        >>> data = PreparedDataset(SyntheticRadiographs(6, size=32), input=InputSpec(1), size=32)
        >>> history = train_rotating(
        ...     model, data, data, folds=RotatingKFold(2), batch_size=2, epochs=2,
        ...     loss=torch.nn.functional.mse_loss, target="image", progress=False,
        ... )
        >>> [(row["epoch"], row["runs"]) for row in history.rows]
        [(1, 2), (2, 2)]
        >>> print(history.validation_scheme)
        RotatingKFold(folds=2, seed=0, by_group=True, reshuffle=True): images that validate in one
        run train in the others
    """
    batch_size, epochs = whole("batch_size", batch_size, 1), whole("epochs", epochs, 0)
    save_every = check_save_every(save_every, folder)
    check_data(data, validation_data)
    folds.partitions(data.groups, 0)  # too few groups: said before anything is prepared
    judge = cast(Judge, make_judge(metrics, score, mode, loss, True))  # None without validation
    check_score(judge, model, target)
    if unfreeze is not None:
        unfreeze.release(model)  # before it is prepared: see `Unfreezing`
        unfreeze = unfreeze.every(folds.folds)
    options: dict[str, Any] = {
        "loss": loss, "target": target, "clip_norm": clip_norm, "channels_last": channels_last,
        "unfreeze": unfreeze, "auxiliary_weight": auxiliary_weight,
        "skip_nonfinite": skip_nonfinite,
    }  # fmt: skip
    runs = epochs * folds.folds
    with running(
        model, judge, optimizer=optimizer, schedule=schedule, accelerator=accelerator,
        folder=folder, patience=patience, minimum_delta=minimum_delta, restore_best=restore_best,
        resume=resume, seed=seed, scheme=_scheme(folds), ema_decay=ema_decay, best_k=best_k,
        save_every=save_every,
    ) as run, closing(UpdateBar(run.state, runs, progress, unit="run")) as bar:  # fmt: skip
        log = RunLog(run.state, run.folder, every=log_every, resume=resume)
        rotation = _Rotation(
            run, judge, data, validation_data, folds, batch_size, workers, options, bar, log
        )
        rotation.lay_out(epochs)
        while run.state.epoch < runs and not run.stopping.should_stop:
            row = rotation.epoch()
            log.epoch(row)  # before the save, so that a resumed run has it once
            run.keep(row)
            bar.epoch(row)
        rotation.done.clear()
    return run.history()


def _scheme(folds: RotatingKFold) -> str:
    return f"{folds!r}: images that validate in one run train in the others"


@dataclass(frozen=True)
class _Rotation:
    """The runs of the epochs over one run's state."""

    run: Run
    judge: Judge
    data: PreparedDataset
    validation_data: PreparedDataset
    folds: RotatingKFold
    batch_size: int
    workers: int
    options: Mapping[str, Any]
    bar: UpdateBar
    log: RunLog

    @property
    def done(self) -> DoneRuns:
        """What is kept of the runs of the epoch under way."""
        return DoneRuns(self.run, self.folds.folds)

    def lay_out(self, epochs: int) -> None:
        """Tell the state how many updates there will be, as a schedule must know beforehand."""
        state, folds = self.run.state, self.folds.folds
        done = folds * len(state.history) + len(state.under_way.get("runs", ()))
        if state.epoch != done or (state.batches and not state.under_way):
            raise TrainingError(
                f"the saved state has done {state.epoch} run(s) and {state.batches} batch(es) more "
                f"in {len(state.history)} complete epoch(s), {folds} runs each, so train_rotating "
                "did not save it; begin another folder."
            )
        if state.schedule is None or not getattr(state.schedule, "bounded", True):
            return
        total = self._total_updates(epochs)
        if state.total_steps not in (None, total):
            raise TrainingError(
                f"the schedule of the saved run was laid out for {state.total_steps} updates, but "
                f"this training has {total}; give the same images, epochs and batch size."
            )
        state.total_steps = total

    def _total_updates(self, epochs: int) -> int:
        groups = self.data.groups
        sizes = Counter(
            len(groups) - len(held_out)
            for epoch in range(epochs)
            for held_out in self.folds.partitions(groups, epoch)
        )
        return sum(runs * self._updates(size) for size, runs in sizes.items())

    def _updates(self, images: int) -> int:
        """Updates in a run over that many images, counted as `fit` will do them."""
        state, accelerator = self.run.state, self.run.state.accelerator
        loader = self._train_loader(range(images))
        batches = epoch_batches(accelerator, loader, state.unwrapped)
        return math.ceil((batches or 0) / state.accumulation)

    def epoch(self) -> dict[str, Any]:
        """Do the runs of the epoch that comes, and give its row."""
        state = self.run.state
        metrics = self.judge.metrics
        counts = {name: Growing(metric) for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        folds = self.folds.epoch(self.data.groups, len(state.history))
        runs = self._again(folds, counts)
        summed: dict[str, Metric[Any]] = {}
        for fold in folds[len(runs) :]:
            runs.append(self._train(fold))
            with self.run.scored_weights():
                self.done.add(runs[-1])
                summed = self._count(fold, counts)
        self.done.end()
        results = {name: metric.scores() for name, metric in summed.items()}
        return self.run.scored(_row(runs, len(state.history) + 1), results)

    def _again(self, folds: Sequence[Fold], counts: Mapping[str, Metric[Any]]) -> list[EpochEvent]:
        """The runs that are done of an epoch that was cut; what they held out is counted again."""
        runs = self.done.begin()
        for number, fold in enumerate(folds[: len(runs)], start=1):
            self.done.load_weights(number)
            self._count(fold, counts)
        if runs:
            self.done.load_state()
        return runs

    def _count(self, fold: Fold, counts: Mapping[str, Metric[Any]]) -> dict[str, Metric[Any]]:
        state, held_out = self.run.state, self.validation_data
        batches = held_out_part(
            held_out, fold.validation, batch_size=self.batch_size, workers=self.workers
        )
        return evaluate(
            state.model,
            batches,
            metrics=counts,
            accelerator=state.accelerator,
            target=self.options["target"],
            progress=self.bar.shown,
        )

    def _train(self, fold: Fold) -> EpochEvent:
        state = self.run.state
        events: Any = fit(
            state, self._train_loader(fold.train), epochs=state.epoch + 1, **self.options
        )
        with closing(events):
            for event in events:
                if isinstance(event, StepEvent):
                    self.bar.step(event)
                    self.log.step(event)
                    self.run.step(event)
                else:
                    done: EpochEvent = event
        return done

    def _train_loader(self, positions: Iterable[int]) -> Loader:
        return training_part(self.data, positions, batch_size=self.batch_size, workers=self.workers)


def _row(runs: list[EpochEvent], epoch: int) -> dict[str, Any]:
    """The epoch's runs as one row; losses are means over the images of updates that were made."""
    made = [run for run in runs if run.images]
    images = sum(run.images for run in made)

    def mean(values: Iterable[float]) -> float:
        weighted = (value * run.images for value, run in zip(values, made, strict=True))
        return sum(weighted) / images if images else math.nan

    last = runs[-1]
    return {
        "epoch": epoch,
        "runs": len(runs),
        "step": last.step,
        "loss": mean(run.loss for run in made),
        **{name: mean(run.terms[name] for run in made) for name in (made or runs)[0].terms},
        "learning_rate": last.learning_rate,
        "seconds": sum(run.seconds for run in runs),
        "data_seconds": sum(run.data_seconds for run in runs),
        "images_per_second": images / sum(run.seconds for run in runs),
        "samples_seen": last.samples_seen,
        "skipped": sum(run.skipped for run in runs),
    }
