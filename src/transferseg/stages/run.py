"""Run a stage and those before it, each once, and find what has been run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from filelock import FileLock

from transferseg.errors import CheckpointError, TrainingError
from transferseg.models import Autoencoder, Classifier, Segmenter
from transferseg.models.base import SpecModel
from transferseg.stages.check import ONE_AT_A_TIME, check_stages
from transferseg.stages.leaks import Seen, check_whole_chain
from transferseg.stages.lineage import LINEAGE_FILE, Lineage, StageRecord, read_lineage
from transferseg.stages.stage import Stage
from transferseg.stages.work import train_stage
from transferseg.transfer import read_spec


@dataclass(frozen=True)
class StageCheckpoint:
    """A finished stage on disk.

    Attributes:
        folder: `model.safetensors`, `config.json`, `lineage.json`, `seen.json`, `history.csv`, and
            with a parent `transfer.json`.
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
        """The trained model, in evaluation mode.

        Raises:
            CheckpointError: a model of a class of one's own, which has its own `from_pretrained`.
        """
        architecture = read_spec(self.folder).architecture
        kinds: tuple[type[SpecModel], ...] = (Segmenter, Classifier, Autoencoder)
        for kind in kinds:
            if kind.builds(architecture):
                return kind.from_pretrained(self.folder)
        raise CheckpointError(
            f"{self.folder} holds {architecture!r}, a model of your own class: load it by that "
            "class's from_pretrained(folder)."
        )


def run_stage(
    stage: Stage, folder: str | os.PathLike[str], *, progress: bool = True
) -> StageCheckpoint:
    """Run a stage and the stages before it; those that are finished are not run again.

    Every stage has a folder of its own in `folder`, named by the stage and its key, written in one
    step when it is done. Training that is interrupted, by SIGKILL too, goes on from its last
    complete epoch when the stage is run again, to the same weights. Several processes and threads
    may run chains in one folder: a stage is run by one of them, the others wait for it, and within
    a process one stage is run at a time.

    Checked before anything is trained: that no validation or test image was seen earlier in the
    chain, by patient and by picture; that every model can be built, takes its parent's weights as
    declared, and gets a loss and its score from two of its images.

    Args:
        stage: what to run.
        folder: where stages are kept, shared by all that belong together.
        progress: show progress bars.

    Returns:
        The finished stage.

    Raises:
        DataError: a leak within the stage or along its chain, or data that do not fit the task.
        SpecError: a model that cannot be built.
        TransferError: weights that do not fit as declared.
        TrainingError: see `train`; several processes of one launcher (`accelerate launch`), which
            stages do not share out yet.

    Example:
        >>> import tempfile, transferseg as ts
        >>> reader = ts.data.SyntheticRadiographs(12, size=64)
        >>> shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
        >>> parts = ts.data.split_by_group(reader.groups, shares, seed=0)
        >>> stage = ts.Stage(
        ...     "unet",
        ...     task=ts.tasks.Segment(),
        ...     data=ts.StageData(reader, parts, size=32),
        ...     model=ts.ModelRecipe("test_resnet", in_channels=1),
        ...     training=ts.TrainingRecipe(epochs=1, batch_size=4),
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = ts.run_stage(stage, folder, progress=False)
        >>> sorted(done.scores), done.record.epochs
        (['test', 'validation'], 1)
    """
    root = Path(folder).absolute()
    seen = check_whole_chain(stage)
    done = finished(stage, root)
    if done is not None:
        return done
    check_process()
    problems = check_stages([one for one in stage.chain if finished(one, root) is None])
    for problem in problems.values():
        raise problem
    return run_checked(stage, root, seen, progress=progress)


def check_process() -> None:
    """Refuse several processes of one launcher, which would wait for each other's locks.

    And multiply the batch size, which stands in a stage's key.
    """
    if PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).num_processes > 1:
        raise TrainingError(
            "stages train in one process; start with plain python, and run stages beside each "
            "other with run_study(..., executor=...)."
        )


def run_checked(
    stage: Stage, root: Path, seen: Mapping[str, tuple[Seen, ...]], *, progress: bool
) -> StageCheckpoint:
    """Run a chain that has been checked; `seen` is what `check_whole_chain` gave."""
    done = None
    for one in stage.chain:
        done = _run_alone(one, root, seen[one.key], progress=progress)
    if done is None:
        raise CheckpointError(f"{root / stage.folder_name} vanished while the stage was run.")
    return done


def finished(stage: Stage, root: Path) -> StageCheckpoint | None:
    """The checkpoint of a stage that has been run, by whatever name; None if it has not been.

    Raises:
        CheckpointError: its folder holds another stage, or is damaged.
    """
    folder = root / stage.folder_name
    if not (folder / LINEAGE_FILE).is_file():
        other = sorted(root.glob(f"*-{stage.key[:12]}/{LINEAGE_FILE}"))
        if not other:
            return None
        folder = other[0].parent
    lineage = read_lineage(folder)
    if lineage.stages[-1].key != stage.key:
        raise CheckpointError(
            f"{folder} holds a stage with another key; move it away, or give another folder."
        )
    return StageCheckpoint(folder, lineage)


def _run_alone(
    stage: Stage, root: Path, seen: tuple[Seen, ...], *, progress: bool
) -> StageCheckpoint | None:
    """One stage whose parent is finished."""
    done = finished(stage, root)
    if done is not None:
        return done
    work = root / ".training" / stage.key[:12]
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{work}.lock"), ONE_AT_A_TIME:
        done = finished(stage, root)
        if done is None:
            parent = finished(stage.parent, root) if isinstance(stage.parent, Stage) else None
            train_stage(
                stage, root / stage.folder_name, work=work, seen=seen, progress=progress,
                parent=None if parent is None else parent.folder,
            )  # fmt: skip
            done = finished(stage, root)
        shutil.rmtree(work, ignore_errors=True)
    return done
