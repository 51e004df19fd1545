"""The work of one stage: begin with its weights, train, score, and keep all that tells of it."""

from __future__ import annotations

import copy
import math
import platform
import sys
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from transferseg.data import PreparedDataset, Reader
from transferseg.errors import CheckpointError
from transferseg.models import freeze
from transferseg.models.base import SpecModel
from transferseg.spec import InputSpec
from transferseg.stages.describe import describe_value
from transferseg.stages.leaks import SEEN_FILE, Seen, seen_text
from transferseg.stages.lineage import (
    LINEAGE_FILE,
    Lineage,
    StageRecord,
    TensorOrigin,
    read_lineage,
    tensor_origins,
)
from transferseg.stages.recipes import TrainingRecipe
from transferseg.stages.stage import Stage
from transferseg.training import History, MeanLoss, evaluate, train, train_rotating
from transferseg.training.atomic import replacing, write_text
from transferseg.training.judge import flat_scores
from transferseg.training.targets import Loader
from transferseg.transfer import TransferReport, read_spec, transfer_weights
from transferseg.transfer.files import CONFIG_FILE

_LIBRARIES = ("torch", "timm", "segmentation-models-pytorch", "accelerate", "numpy")


def train_stage(
    stage: Stage,
    folder: Path,
    *,
    work: Path,
    seen: tuple[Seen, ...],
    progress: bool,
    parent: Path | None = None,
) -> None:
    """Train a stage, and write its folder in one step.

    Args:
        stage: whose parent is finished.
        folder: what is written.
        work: where the training in progress is kept, to go on with.
        seen: whom its chain has seen, itself included.
        progress: show progress bars.
        parent: folder of the parent stage, if the parent is a stage.
    """
    libraries = {name: version(name) for name in _LIBRARIES}  # an error here costs nothing yet
    versions = {"python": platform.python_version(), "transferseg": _own_version()}
    source = begin_from(stage, parent)
    reader = stage.task.reader(stage.data.reader)
    torch.manual_seed(stage.seed)
    model = stage.task.build(stage.model, reader, expected_input(source, stage.model.in_channels))
    report, earlier, origins = _take(stage, model, source)
    if stage.training.freeze:
        freeze(model, *stage.training.freeze)
    with stage.training.accelerator() as accelerator:
        history = _train(stage, model, reader, accelerator, work, progress)
        scores = _scores(stage, model, reader, accelerator, history)
    record = _record(stage, model, report, history, scores, {**versions, **libraries})
    with replacing(folder) as place:
        model.save_pretrained(place, transfer=report)
        write_text(place / "history.csv", history.csv())
        write_text(place / SEEN_FILE, seen_text(seen))
        write_text(place / LINEAGE_FILE, Lineage((*earlier, record), origins).to_json())


def _own_version() -> str:
    """Of the package above this floor, which also runs where it is not installed."""
    return str(sys.modules["transferseg"].__version__)


def begin_from(stage: Stage, parent: Path | None) -> Path | None:
    """The checkpoint of the parent: of the stage before, or the one on disk that was given."""
    if stage.parent is None or isinstance(stage.parent, Stage):
        if isinstance(stage.parent, Stage) and parent is None:
            raise CheckpointError(f"{stage.parent.name!r} must be run before {stage.name!r}.")
        return parent
    return Path(stage.parent)


def expected_input(source: Path | None, channels: int) -> InputSpec | None:
    """What the parent's weights expect of an image, where the new model can expect the same."""
    if source is None or not (source / CONFIG_FILE).is_file():
        return None
    try:
        known = read_spec(source).input
    except CheckpointError:
        return None  # a folder of another library
    return known if known.channels == channels else None


def _take(
    stage: Stage, model: SpecModel, source: Path | None
) -> tuple[TransferReport | None, tuple[StageRecord, ...], dict[str, TensorOrigin]]:
    """Give the model its first weights: the report, the ancestors, the way of every tensor."""
    began = {key: _beginning(stage, key) for key in model.state_dict()}
    origins = tensor_origins(began, None, None, "")
    ancestors: dict[str, StageRecord] = {}
    report = None
    first = stage.model.decoder_weights
    for path, options in (
        (None if first is None else Path(first), {"parts": ("decoder",)}),
        (source, {"parts": stage.parts, **stage.transfer}),
    ):
        if path is None:
            continue
        known = read_lineage(path) if (path / LINEAGE_FILE).is_file() else None
        moved = transfer_weights(path, model, **options)
        name = str(path) if known is None else known.stages[-1].name
        origins |= tensor_origins({}, moved, known, name)
        ancestors |= {record.key: record for record in (known.stages if known else ())}
        report = moved if path is source else report
    return report, tuple(ancestors.values()), origins


def _beginning(stage: Stage, key: str) -> str:
    began = stage.model.beginning(key.split(".")[0])
    return f"random, seed {stage.seed}" if began == "random" else began


def _train(
    stage: Stage,
    model: SpecModel,
    reader: Reader,
    accelerator: Accelerator,
    work: Path,
    progress: bool,
) -> History:
    recipe, data, task = stage.training, stage.data, stage.task
    prepared = partial(data.prepared, reader, input=model.spec.input, seed=stage.seed)
    score, mode = task.best(model.spec)
    judged: dict[str, Any] = {
        "metrics": task.make_metrics(model.spec), "score": score, "mode": mode,
        "restore_best": True,
    }  # fmt: skip
    common: dict[str, Any] = {
        **recipe.options(), "loss": task.make_loss(model.spec), "accelerator": accelerator,
        "folder": work / "run", "resume": True, "seed": stage.seed, "progress": progress,
        "target": task.target,
    }  # fmt: skip
    training = prepared("train", train=True)
    if data.folds is not None:
        plain = copy.copy(training)  # shares the decoded images
        plain.augment = None
        return train_rotating(
            model, training, plain, folds=data.folds, batch_size=recipe.batch_size,
            workers=recipe.workers, **judged, **common,
        )  # fmt: skip
    loader = _loader(training, recipe, shuffle=True)
    if "validation" not in data.parts:
        return train(model, loader, **common)
    validation = _loader(prepared("validation", train=False), recipe)
    return train(model, loader, validation, **judged, **common)


def _loader(data: PreparedDataset, recipe: TrainingRecipe, *, shuffle: bool = False) -> Loader:
    return DataLoader(
        data, batch_size=recipe.batch_size, shuffle=shuffle, num_workers=recipe.workers
    )


def _scores(
    stage: Stage, model: SpecModel, reader: Reader, accelerator: Accelerator, history: History
) -> dict[str, dict[str, Any]]:
    """Validation scores of the best epoch, and the test part counted once; None if undefined."""
    scores: dict[str, dict[str, Any]] = {}
    if history.best_epoch is not None:
        row = next(row for row in history.rows if row["epoch"] == history.best_epoch)
        scores["validation"] = {
            name.removeprefix("validation_"): _finite(value)
            for name, value in row.items()
            if name.startswith("validation_") and name != "validation_scheme"
        }
    if "test" in stage.data.parts:
        data = stage.data.prepared(reader, "test", model.spec.input, train=False, seed=stage.seed)
        metrics = stage.task.make_metrics(model.spec)
        measured = {"loss": MeanLoss(stage.task.make_loss(model.spec))}
        found = evaluate(
            model,
            _loader(data, stage.training),
            metrics=measured if metrics is None else {"scores": metrics, **measured},
            accelerator=accelerator,
            target=stage.task.target,
        )
        scores["test"] = {name: _finite(value) for name, value in flat_scores(found).items()}
    return scores


def _finite(value: Any) -> Any:  # noqa: ANN401 - a score
    """The value as JSON has it: None for NaN and infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(
    stage: Stage,
    model: SpecModel,
    report: TransferReport | None,
    history: History,
    scores: Mapping[str, Mapping[str, Any]],
    versions: Mapping[str, str],
) -> StageRecord:
    parent = stage.parent.name if isinstance(stage.parent, Stage) else stage.parent
    return StageRecord(
        name=stage.name,
        key=stage.key,
        task=describe_value(stage.task),
        data=stage.data.summary(),
        model=model.spec.to_dict(),
        training=stage.training.describe(),
        seed=stage.seed,
        parent=None if parent is None else str(parent),
        parts=tuple(stage.parts) if parent is not None else (),
        coverage={p: c.fraction for p, c in report.coverage.items()} if report else {},
        scores=scores,
        best_epoch=history.best_epoch,
        epochs=len(history.rows),
        seconds=history.seconds,
        samples_seen=history.samples_seen,
        versions=versions,
        notes=tuple(_notes(stage, history)),
    )


def _notes(stage: Stage, history: History) -> list[str]:
    """What must be known of the scores."""
    notes = [] if history.validation_scheme is None else [history.validation_scheme]
    scored = any("score" in row for row in history.rows)
    if scored and history.best_epoch is None:
        notes.append(
            "no validation score was a number, so no epoch was chosen: these are the last weights"
        )
    if not stage.data.read_contents:
        notes.append("pictures were not compared with those of other parts and stages")
    return notes
