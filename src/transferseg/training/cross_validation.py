"""Cross-validation: a model from the same beginning for every fold, every image scored once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from torch import nn

from transferseg.data.folds import Fold
from transferseg.data.samples import PreparedDataset
from transferseg.data.splits import check_no_leak
from transferseg.errors import TrainingError
from transferseg.models.freezing import Unfreezing
from transferseg.training.atomic import write_text
from transferseg.training.crossed import CrossValidation
from transferseg.training.evaluate import MeanLoss, Metric
from transferseg.training.fold_runs import Beginning, FoldRuns
from transferseg.training.folding import check_data, ids_of
from transferseg.training.judge import (
    Judge,
    ScoreLike,
    check_metric,
    check_score,
    make_judge,
)
from transferseg.training.optimizers import adamw
from transferseg.training.plan import whole
from transferseg.training.run import hand_back
from transferseg.training.saving import check_save_every
from transferseg.training.schedules import Plateau, ScheduleLike
from transferseg.training.state import OptimizerLike, TrainState
from transferseg.training.targets import Loss
from transferseg.types import Target

#: What the folder of a cross-validation says of its folds.
FOLDS_FILE = "folds.json"


def cross_validate(
    model: nn.Module,
    data: PreparedDataset,
    validation_data: PreparedDataset,
    *,
    folds: Sequence[Fold],
    batch_size: int,
    loss: Loss,
    epochs: int,
    metrics: Metric[Any] | None = None,
    validation_share: float | None = None,
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
    workers: int = 0,
) -> CrossValidation:
    """Train once for every fold, each from the same weights; score what the fold held out.

    The images that a fold holds out are scored once, at the end of its training, and decide about
    nothing before: the scores are of images that no part of the training has seen. What looks at
    scores while training (`patience`, `restore_best`, a plateau schedule) needs `validation_share`,
    images of the fold's training part that are not trained on.

    Model, optimizer and accelerator are prepared once. Between two folds the state is given back
    what it was then: weights, optimizer, random generators, counters. At the end the model has the
    weights that it came with; with a `folder` those of each fold are kept.

    Into `folder` go `folds.json` and, of every fold, `fold1/` and so on, with what `train` writes
    and `model/`, the model that was scored. With `resume` finished folds are only scored again, and
    the one that was cut goes on.

    Args:
        model: see `train`.
        data: the images that train, augmented.
        validation_data: the same images in the same order, without augmentation.
        folds: positions in `data`, as `data.k_fold` gives them: each image held out exactly once.
        batch_size: images a batch (on each process), in training and in validation.
        loss: see `train`; its mean over the images held out is a score.
        epochs: complete epochs of each fold.
        metrics: counts whose scores are wanted; only the loss when not given.
        validation_share: share of the training images of each fold, whole groups, on which it is
            decided when to stop; they do not train. None trains all epochs on all of them.
        score: see `train`; needs `validation_share`.
        mode: see `train`; likewise.
        optimizer: see `TrainState.prepare`.
        schedule: laid anew for each fold.
        accelerator: see `TrainState.prepare`; it is handed back without the model.
        folder: where to keep the folds; nothing is written when not given.
        save_every: see `train`: of the fold that trains.
        patience: see `train`; needs `validation_share`.
        minimum_delta: see `EarlyStopping`.
        restore_best: score the weights of the best epoch instead of the last; likewise.
        resume: go on with what is in `folder`, or begin.
        seed: see `TrainState.prepare`; the same for all folds.
        progress: show progress bars, in the main process.
        target: "mask", "label" or "image".
        clip_norm: see `fit`.
        channels_last: see `fit`.
        unfreeze: see `train`.
        auxiliary_weight: see `train`.
        skip_nonfinite: see `fit`.
        ema_decay: see `train`.
        best_k: see `train`: of each fold, in its own folder; needs `validation_share`.
        workers: processes that load the data.

    Raises:
        TrainingError: data sets that do not have the same images, folds that hold an image out
            twice or never, options that look at scores without `validation_share`, a folder of
            other folds, and what `train` raises.
        DataError: a group (a patient) that a fold trains on and holds out.

    Source: Stone 1974; the spread best minus worst: Merand 2021, Table 3.

    Example:
        >>> import torch
        >>> from transferseg.data import SyntheticRadiographs, k_fold
        >>> from transferseg.spec import InputSpec, ModelSpec
        >>> model = torch.nn.Conv2d(1, 1, 3, padding=1)
        >>> model.spec = ModelSpec("autoencoder", "none", ["grey"], "binary", input=InputSpec(1))
        >>> data = PreparedDataset(SyntheticRadiographs(6, size=32), input=InputSpec(1), size=32)
        >>> result = cross_validate(
        ...     model, data, data, folds=k_fold(data.groups, 2, seed=0), batch_size=2, epochs=1,
        ...     loss=torch.nn.functional.mse_loss, target="image", progress=False,
        ... )
        >>> len(result.histories), result.summary()["loss"].folds
        (2, 2)
    """
    batch_size, epochs = whole("batch_size", batch_size, 1), whole("epochs", epochs, 0)
    check_data(data, validation_data)
    save_every = check_save_every(save_every, folder)
    folds = tuple(folds)
    _check_folds(folds, data)
    check_metric(metrics)
    judge = _judge(
        metrics, score, mode, loss, validation_share, patience, restore_best, schedule, best_k
    )
    check_score(judge, model, target)
    place = None if folder is None else Path(folder)
    if unfreeze is not None:
        unfreeze.release(model)  # before it is prepared: see `Unfreezing`
    state = TrainState.prepare(
        model, optimizer=optimizer, schedule=schedule, accelerator=accelerator, seed=seed
    )
    measured: dict[str, Metric[Any]] = {} if metrics is None else {"scores": metrics}
    work = FoldRuns(
        state=state, data=data, validation_data=validation_data, batch_size=batch_size,
        workers=workers, epochs=epochs, share=validation_share, judge=judge, progress=progress,
        metrics={**measured, "loss": MeanLoss(loss)}, place=place,
        fit_options={
            "loss": loss, "target": target, "clip_norm": clip_norm,
            "channels_last": channels_last, "unfreeze": unfreeze,
            "auxiliary_weight": auxiliary_weight, "skip_nonfinite": skip_nonfinite,
        },
        run_options={
            "optimizer": optimizer, "schedule": schedule, "accelerator": accelerator,
            "patience": patience, "minimum_delta": minimum_delta, "restore_best": restore_best,
            "resume": resume, "seed": seed, "ema_decay": ema_decay, "best_k": best_k,
            "save_every": save_every,
        },
    )  # fmt: skip
    return _all_folds(work, folds, resume=resume)


def _all_folds(work: FoldRuns, folds: tuple[Fold, ...], *, resume: bool) -> CrossValidation:
    """Fold after fold from the same beginning; the state is handed back at the end."""
    state = work.state
    beginning = Beginning(state)
    try:
        if work.place is not None:
            _check_place(work.place, folds, work.data, work.share, state, resume)
        done = []
        for number, fold in enumerate(folds, start=1):
            beginning.restore(state)
            done.append(work.fold(fold, number, len(folds)))
        beginning.restore(state)
    finally:
        hand_back(state)
    histories, counts = zip(*done, strict=True)
    return CrossValidation(folds, histories, counts)


def _check_folds(folds: tuple[Fold, ...], data: PreparedDataset) -> None:
    """Every image is held out once, and no image or group is on two sides of a fold."""
    if not folds:
        raise TrainingError("no folds; make them with data.k_fold(data.groups, 5, seed=0).")
    for fold in folds:
        check_no_leak({"train": fold.train, "validation": fold.validation}, data.groups)
    held_out = sorted(position for fold in folds for position in fold.validation)
    if held_out != list(range(len(data))):
        raise TrainingError(
            f"the folds hold out {len(held_out)} positions, {len(set(held_out))} different ones, "
            f"and there are {len(data)} images; each must be held out exactly once."
        )


def _judge(
    metrics: Metric[Any] | None,
    score: ScoreLike | None,
    mode: Literal["max", "min"] | None,
    loss: Loss,
    share: float | None,
    patience: int | None,
    restore_best: bool,
    schedule: ScheduleLike | None,
    best_k: int | None,
) -> Judge | None:
    """What decides while a fold trains; None without images for it."""
    if share is None:
        given = {
            "score": score is not None, "mode": mode is not None, "restore_best": restore_best,
            "patience": patience is not None, "a plateau schedule": isinstance(schedule, Plateau),
            "best_k": best_k is not None,
        }  # fmt: skip
        if names := [name for name, there in given.items() if there]:
            raise TrainingError(
                f"{' and '.join(names)} look(s) at scores while a fold trains, and the images that "
                "it holds out must not decide; give validation_share=0.2, which takes images of "
                "the training part for it, or leave that out and train all epochs."
            )
        return None
    if not 0 < share < 1:
        raise TrainingError(f"validation_share must lie between 0 and 1, got {share}.")
    return make_judge(metrics, score, mode, loss, True)


def _check_place(
    place: Path,
    folds: tuple[Fold, ...],
    data: PreparedDataset,
    share: float | None,
    state: TrainState,
    resume: bool,
) -> None:
    """Refuse a folder of another cross-validation; say in it what this one is."""
    ids = ids_of(data)
    held_out = [[ids[position] for position in fold.validation] for fold in folds]
    values = {"held_out": held_out, "validation_share": share}
    file = place / FOLDS_FILE
    if file.exists():
        if not resume:
            raise TrainingError(
                f"{place} already holds a cross-validation; give resume=True to go on with it, or "
                "another folder."
            )
        if json.loads(file.read_text(encoding="utf-8")) != values:
            raise TrainingError(
                f"{place} holds a cross-validation of other folds, images or validation_share; go "
                "on as it was begun, or begin another folder."
            )
    state.accelerator.wait_for_everyone()
    if state.accelerator.is_main_process:
        write_text(file, json.dumps(values))
