"""Run a stage: begin with its parent's weights, train, score, and keep it with its lineage."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock
from torch.utils.data import DataLoader

from transferseg.data import PreparedDataset, Reader
from transferseg.errors import CheckpointError
from transferseg.models import Autoencoder, Classifier, Segmenter, freeze
from transferseg.models.base import SpecModel
from transferseg.spec import InputSpec
from transferseg.stages.describe import describe_value
from transferseg.stages.leaks import SEEN_FILE, Seen, check_chain, read_seen, seen_by, seen_text
from transferseg.stages.lineage import (
    LINEAGE_FILE,
    Lineage,
    StageRecord,
    read_lineage,
    tensor_origins,
)
from transferseg.stages.recipes import TrainingRecipe
from transferseg.stages.stage import Stage
from transferseg.training import History, MeanLoss, evaluate, train, train_rotating
from transferseg.training.atomic import replacing, write_text
from transferseg.training.judge import flat_numbers
from transferseg.training.targets import Loader
from transferseg.transfer import TransferReport, read_spec, transfer_weights

_LIBRARIES = ("transferseg", "torch", "timm", "segmentation-models-pytorch", "accelerate", "numpy")


@dataclass(frozen=True)
class StageCheckpoint:
    """A finished stage on disk.

    Attributes:
        folder: `model.safetensors`, `config.json`, `lineage.json`, `history.csv`, and with a parent
            `transfer.json`.
        lineage: of the checkpoint.
    """

    folder: Path
    lineage: Lineage

    @property
    def record(self) -> StageRecord:
        """The stage's own entry in the lineage."""
        return self.lineage.stages[-1]

    @property
    def scores(self) -> Mapping[str, Mapping[str, Any]]:
        """By part: "validation" and "test", as they apply."""
        return self.record.scores

    def load(self) -> SpecModel:
        """The trained model, in evaluation mode."""
        architecture = read_spec(self.folder).architecture
        kinds: tuple[type[SpecModel], ...] = (Segmenter, Classifier, Autoencoder)
        return next(k for k in kinds if k.builds(architecture)).from_pretrained(self.folder)


def run_stage(
    stage: Stage, folder: str | os.PathLike[str], *, progress: bool = True
) -> StageCheckpoint:
    """Run a stage and the stages before it; those that are finished are not run again.

    Every stage has a folder of its own in `folder`, named by the stage and its key, written in one
    step when it is done. Training that is interrupted, by SIGKILL too, goes on from its last
    complete epoch when the stage is run again, to the same weights. Several processes may run
    chains in one folder: a stage is run by one of them, and the others wait for it.

    Checked before anything is trained: that no validation or test image was seen earlier in the
    chain, by patient and by picture.

    Args:
        stage: what to run.
        folder: where stages are kept, shared by all that belong together.
        progress: show progress bars.

    Returns:
        The finished stage.

    Raises:
        DataError: a leak within the stage or along its chain, or data that do not fit the task.
        TransferError: the parent's weights do not fit as declared; nothing was trained.
        TrainingError: see `train`.

    Example:
        >>> import tempfile, transferseg as ts
        >>> reader = ts.data.SyntheticRadiographs(8, size=64)
        >>> parts = {"train": range(4), "validation": (4, 5), "test": (6, 7)}
        >>> data = ts.stages.StageData(reader, parts, size=32)
        >>> recipe = ts.stages.TrainingRecipe(epochs=1, batch_size=2)
        >>> model = ts.stages.ModelRecipe("test_resnet", in_channels=1)
        >>> stage = ts.Stage("unet", task=ts.tasks.Segment(), data=data, model=model,
        ...                  training=recipe)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = ts.run_stage(stage, folder, progress=False)
        >>> sorted(done.scores), done.record.epochs
        (['test', 'validation'], 1)
    """
    root = Path(folder)
    check_whole_chain(stage)
    for one in stage.chain:
        checkpoint = _run_alone(one, root, progress)
    return checkpoint


def check_whole_chain(stage: Stage) -> None:
    """Refuse a chain in which a stage is scored on what an earlier one has seen; trains nothing."""
    seen: list[Seen] = []
    for one in stage.chain:
        if one.parent is not None and not isinstance(one.parent, Stage):
            former = Path(one.parent)
            seen += read_seen(former) if (former / SEEN_FILE).is_file() else ()
        check_chain(one.name, one.data, seen)
        seen.append(seen_by(one.name, one.data))


def finished(stage: Stage, root: Path) -> StageCheckpoint | None:
    """The checkpoint of a stage that has been run, None if it has not."""
    folder = root / stage.folder_name
    if not (folder / LINEAGE_FILE).is_file():
        return None
    lineage = read_lineage(folder)
    if lineage.stages[-1].key != stage.key:
        raise CheckpointError(
            f"{folder} holds a stage with another key; move it away, or give another folder."
        )
    return StageCheckpoint(folder, lineage)


def _run_alone(stage: Stage, root: Path, progress: bool) -> StageCheckpoint:
    """One stage whose parent is finished."""
    work = root / ".training" / stage.folder_name
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{work}.lock"):
        done = finished(stage, root)
        if done is None:
            _train_and_keep(stage, root, work, progress)
            done = finished(stage, root)
        shutil.rmtree(work, ignore_errors=True)
    if done is None:
        raise CheckpointError(f"{root / stage.folder_name} vanished while the stage was run.")
    return done


def _train_and_keep(stage: Stage, root: Path, work: Path, progress: bool) -> None:
    parent, parent_lineage, parent_name = _parent(stage, root)
    torch.manual_seed(stage.seed)
    reader = stage.task.reader(stage.data.reader)
    model = stage.task.build(stage.model, reader, _parent_input(parent, stage.model.in_channels))
    began = {key: _beginning(stage, key) for key in model.state_dict()}
    if stage.model.decoder_weights is not None:
        transfer_weights(stage.model.decoder_weights, model, parts=("decoder",))
    report = None
    if parent is not None:
        report = transfer_weights(parent, model, parts=stage.parts, **stage.transfer)
    origins = tensor_origins(began, report, parent_lineage, parent_name)
    if stage.training.freeze:
        freeze(model, *stage.training.freeze)
    accelerator = stage.training.accelerator()
    history = _train(stage, model, reader, accelerator, work, progress)
    scores = _scores(stage, model, reader, accelerator, history)
    record = _record(stage, model, report, history, scores, parent_name)
    earlier = parent_lineage.stages if parent_lineage is not None else ()
    seen = read_seen(parent) if parent_lineage is not None and parent is not None else ()
    with replacing(root / stage.folder_name) as place:
        model.save_pretrained(place, transfer=report)
        write_text(place / "history.csv", history.csv())
        write_text(place / SEEN_FILE, seen_text((*seen, seen_by(stage.name, stage.data))))
        write_text(place / LINEAGE_FILE, Lineage((*earlier, record), origins).to_json())


def _parent(stage: Stage, root: Path) -> tuple[Path | None, Lineage | None, str]:
    """The parent's checkpoint, its lineage if it is a stage's, and its name."""
    if stage.parent is None:
        return None, None, ""
    if isinstance(stage.parent, Stage):
        done = finished(stage.parent, root)
        if done is None:
            raise CheckpointError(f"{stage.parent.name!r} must be run before {stage.name!r}.")
        return done.folder, done.lineage, stage.parent.name
    path = Path(stage.parent)
    if not (path / LINEAGE_FILE).is_file():
        return path, None, str(path)
    lineage = read_lineage(path)
    return path, lineage, lineage.stages[-1].name


def _parent_input(parent: Path | None, channels: int) -> InputSpec | None:
    """What the parent's weights expect of an image, where the new model can expect the same."""
    if parent is None or not (parent / "config.json").is_file():
        return None
    try:
        known = read_spec(parent).input
    except CheckpointError:
        return None  # a folder of another library
    return known if known.channels == channels else None


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
    metrics = task.make_metrics(model.spec)
    judged: dict[str, Any] = {
        "metrics": metrics, "score": score if metrics is not None else None, "mode": mode,
        "restore_best": True,
    }  # fmt: skip
    common: dict[str, Any] = {
        **recipe.options(), "loss": task.make_loss(model.spec), "accelerator": accelerator,
        "folder": work / "run", "resume": True, "seed": stage.seed, "progress": progress,
        "target": task.target,
    }  # fmt: skip
    training = prepared("train", train=True)
    if data.folds is not None:
        return train_rotating(
            model, training, prepared("train", train=False), folds=data.folds,
            batch_size=recipe.batch_size, workers=recipe.workers, **judged, **common,
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
    """Validation scores of the best epoch, and the test part counted once."""
    scores: dict[str, dict[str, Any]] = {}
    if history.best_epoch is not None:
        row = next(row for row in history.rows if row["epoch"] == history.best_epoch)
        names = (name for name in row if name.startswith("validation_"))
        scores["validation"] = {
            name.removeprefix("validation_"): finite(row[name])
            for name in names
            if name != "validation_scheme"
        }
    if "test" in stage.data.parts:
        data = stage.data.prepared(reader, "test", model.spec.input, train=False, seed=stage.seed)
        metrics = stage.task.make_metrics(model.spec)
        if metrics is None:
            metrics = MeanLoss(stage.task.make_loss(model.spec))
        found = evaluate(
            model, _loader(data, stage.training), metrics=metrics, accelerator=accelerator,
            target=stage.task.target,
        )  # fmt: skip
        scores["test"] = {name: finite(value) for name, value in flat_numbers(found).items()}
    return scores


def finite(value: Any) -> Any:  # noqa: ANN401 - a score
    """The value as JSON has it: None for NaN and infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(
    stage: Stage,
    model: SpecModel,
    report: TransferReport | None,
    history: History,
    scores: Mapping[str, Mapping[str, Any]],
    parent_name: str,
) -> StageRecord:
    coverage = report.coverage if report is not None else {}
    return StageRecord(
        name=stage.name,
        key=stage.key,
        task=describe_value(stage.task),
        data=stage.data.summary(),
        model=model.spec.to_dict(),
        training=stage.training.describe(),
        seed=stage.seed,
        parent=parent_name or None,
        parts=tuple(stage.parts) if stage.parent is not None else (),
        coverage={part: share.fraction for part, share in coverage.items()},
        scores=scores,
        best_epoch=history.best_epoch,
        epochs=len(history.rows),
        seconds=history.seconds,
        samples_seen=history.samples_seen,
        versions={"python": platform.python_version(), **{n: version(n) for n in _LIBRARIES}},
        notes=() if history.validation_scheme is None else (history.validation_scheme,),
    )
