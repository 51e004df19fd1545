"""Train, evaluate, keep the best, stop early, resume: the loop around `fit`, written once."""

from __future__ import annotations

from contextlib import closing
from os import PathLike
from typing import Any, Literal

from accelerate import Accelerator
from torch import nn

from transferseg.errors import TrainingError, some
from transferseg.models.freezing import Unfreezing
from transferseg.training.evaluate import Metric, check_shares, evaluate
from transferseg.training.events import EpochEvent, StepEvent, event_row
from transferseg.training.history import History
from transferseg.training.judge import ScoreLike, check_score, make_judge
from transferseg.training.loaders import length
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
    allow_shared_groups: bool = False,
) -> History:
    """Train a model for some epochs; evaluate it after each.

    It is `TrainState.prepare`, `fit`, `evaluate` and `EarlyStopping` put together; for anything
    that it does not do, write that loop. The model is trained in place and keeps the weights of the
    last epoch, unless `restore_best`.

    Into `folder` go, after every epoch and each in one step: `best/` (the model, by its
    `save_pretrained`), `last/` (the whole `TrainState`) and `history.csv`; as asked `checkpoints/`
    (the k best models, see `BestCheckpoints`) and `log.jsonl` (see `JSONLLogger`). Trackers of the
    accelerator, if it has any, get the row of every epoch: see `log_to_trackers`. A run
    that is killed at any moment goes on with `resume=True` and ends with the same weights and the
    same history.

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
            A name is tried before anything is trained, on a copy of `metrics` and blank pixels.
        mode: "max" where higher scores are better, "min" where lower ones are; by default "min" for
            losses and for the errors, distances, false alarms and misses of `metrics`, by their
            names ("mean_hd95", "l1", "mean_ece"), and "max" for any other score or function.
        optimizer: see `TrainState.prepare`.
        schedule: see `TrainState.prepare`; a plateau schedule is stepped with the score.
        accelerator: see `TrainState.prepare`; it is handed back without the model.
        folder: where to keep the run; nothing is written when not given.
        save_every: also write `last/` after every so many updates, from 1: a run that is killed and
            resumed repeats at most that many. Without it, it repeats the epoch.
        patience: epochs without a better score after which to stop; None goes on to the end.
        minimum_delta: see `EarlyStopping`.
        restore_best: give the model the weights of the best epoch at the end.
        resume: go on with the run in `folder`, or begin it if there is none yet.
        seed: see `TrainState.prepare`.
        progress: show progress bars, in the main process.
        target: "mask", "label" or "image".
        clip_norm: see `fit`.
        channels_last: see `fit`.
        unfreeze: what begins to train at which epoch. When training ends before the last of its
            epochs, what is still frozen then stays frozen.
        auxiliary_weight: see `fit`; scores, the loss among them, are those of the main head alone.
        skip_nonfinite: see `fit`.
        ema_decay: average the weights with this decay (see `EMA`): the averaged ones are evaluated,
            kept as the best, and given to the model at the end.
        best_k: keep the models of so many best epochs in `folder`.
        log_every: log the loss of every n-th update, and every epoch, to `folder` and the trackers.
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
    epochs = whole("epochs", epochs, 0)
    if not allow_shared_groups:
        _check_leak(train_loader, validation_loader)
    save_every = check_save_every(save_every, folder)
    judge = make_judge(metrics, score, mode, loss, validation_loader is not None)
    check_score(judge, model, target)
    if unfreeze is not None:
        unfreeze.release(model)  # before it is prepared: see `Unfreezing`
    with running(
        model, judge, optimizer=optimizer, schedule=schedule, accelerator=accelerator,
        folder=folder, patience=patience, minimum_delta=minimum_delta, restore_best=restore_best,
        resume=resume, seed=seed, ema_decay=ema_decay, best_k=best_k, save_every=save_every,
    ) as run, closing(UpdateBar(run.state, epochs, progress)) as bar:  # fmt: skip
        if validation_loader is not None:
            check_shares(validation_loader, run.state.accelerator)
        log = RunLog(run.state, run.folder, every=log_every, resume=resume)
        if not run.stopping.should_stop:
            events = fit(
                run.state, train_loader, loss=loss, epochs=epochs, target=target,
                clip_norm=clip_norm, channels_last=channels_last, unfreeze=unfreeze,
                auxiliary_weight=auxiliary_weight, skip_nonfinite=skip_nonfinite,
            )  # fmt: skip
            _follow(run, events, validation_loader, target, bar, log)
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


def _follow(
    run: Run,
    events: Any,  # noqa: ANN401 - the generator of `fit`
    validation_loader: Loader | None,
    target: Target,
    bar: UpdateBar,
    log: RunLog,
) -> None:
    """Evaluate and keep every epoch; leave when the scores say so."""
    with closing(events):
        for event in events:
            if isinstance(event, StepEvent):
                bar.step(event)
                log.step(event)
                run.step(event)
                continue
            row = _row(run, event, validation_loader, target, bar)
            log.epoch(row)  # before the save, so that a resumed run has it once
            run.keep(row)
            bar.epoch(row)
            if run.stopping.should_stop:
                return


def _row(
    run: Run, event: EpochEvent, validation_loader: Loader | None, target: Target, bar: UpdateBar
) -> dict[str, Any]:
    row = event_row(event)
    del row["event"]  # all are epochs
    if run.judge is None or validation_loader is None:
        return row
    with run.scored_weights():
        results = evaluate(
            run.state.model,
            validation_loader,
            metrics=run.judge.metrics,
            accelerator=run.state.accelerator,
            target=target,
            progress=bar.shown,
        )
    return run.scored(row, results)
