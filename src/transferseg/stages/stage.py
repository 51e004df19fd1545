"""A stage: data, task, model, training and parent, as one value with a key."""

from __future__ import annotations

import inspect
import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from transferseg.errors import SpecError, unknown_name
from transferseg.models.create import is_path
from transferseg.stages.data import StageData
from transferseg.stages.describe import describe_value, file_digest, key_of
from transferseg.stages.recipes import ModelRecipe, TrainingRecipe
from transferseg.stages.tasks import Task
from transferseg.training.schedules import Plateau
from transferseg.transfer import transfer_weights
from transferseg.transfer.files import CONFIG_FILE, WEIGHTS_FILE

_FORMAT = 1  # raised when the same settings begin to give another result

_ARGUMENTS = tuple(
    name
    for name, parameter in inspect.signature(transfer_weights).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "parts"
)

#: Where a stage's weights begin: another stage, a checkpoint (folder or file), or nowhere.
Parent: TypeAlias = "Stage | str | os.PathLike[str] | None"


@dataclass(frozen=True, eq=False)
class Stage:
    """One training: what is learned, from which data, by which model, from whose weights.

    Chains are parent links. A stage is a value: nothing happens until `run_stage`, or `run_study`
    for many. Two stages with equal keys give the same weights (on one kind of machine), so that
    prefixes shared by several chains are trained once.

    Attributes:
        name: for folders, lineage and tables; no part of the key.
        task: what is learned; see `TASKS`.
        data: from which images.
        model: by what.
        training: how.
        parent: from whose weights; a checkpoint that is no stage's is taken as it is, and nothing
            is known then of whom it has seen.
        parts: what is taken from the parent: "encoder", "decoder", "head", "auxiliary_head"; see
            `transfer_weights`.
        transfer: further arguments of `transfer_weights` (`leave`, `unused`, `rename`, `classes`,
            `input_channels`, `source_format`, `adapt` by name).
        seed: of the initial weights, the order of the images and their augmentation.

    Raises:
        SpecError: a parent from which nothing is taken, arguments of a transfer without a parent,
            or that `transfer_weights` has not, a seed out of range, patience or a plateau schedule
            without validation.

    Example:
        >>> from transferseg.data import SyntheticRadiographs
        >>> reader = SyntheticRadiographs(4, size=64)
        >>> data = StageData(reader, {"train": range(4)}, size=32)
        >>> from transferseg.stages.tasks import Reconstruct, Segment
        >>> model = ModelRecipe("test_resnet", in_channels=1)
        >>> first = Stage("autoencoder", task=Reconstruct(), data=data, model=model)
        >>> second = Stage("unet", task=Segment(), data=data, model=model, parent=first,
        ...                parts=("encoder", "decoder"))
        >>> [stage.name for stage in second.chain], first.key == second.key
        (['autoencoder', 'unet'], False)
    """

    name: str
    task: Task
    data: StageData
    model: ModelRecipe
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    parent: Parent = None
    parts: Sequence[str] = ("encoder",)
    transfer: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        parts = (self.parts,) if isinstance(self.parts, str) else tuple(self.parts)
        object.__setattr__(self, "parts", parts)
        if not self.name:
            raise SpecError("a stage needs a name, for its folder and for lineage.")
        if self.parent is not None and not parts:
            raise SpecError(f"stage {self.name!r} takes nothing from its parent: give parts=.")
        if self.parent is None and self.transfer:
            raise SpecError(
                f"stage {self.name!r} has no parent, so transfer={dict(self.transfer)} says "
                "nothing; give a parent, or leave it out."
            )
        if self.parent is not None and not isinstance(self.parent, Stage):
            object.__setattr__(self, "parent", _checkpoint(Path(self.parent).absolute()))
        for name in self.transfer:
            if name not in _ARGUMENTS:
                raise SpecError(unknown_name("argument of a transfer", name, _ARGUMENTS))
        object.__setattr__(self, "seed", operator.index(self.seed))
        if not 0 <= self.seed < 2**32:
            raise SpecError(f"seed must lie in 0..2**32 - 1, got {self.seed}.")
        validated = self.data.folds is not None or "validation" in self.data.parts
        waits = self.training.patience is not None or isinstance(self.training.schedule, Plateau)
        if waits and not validated:
            raise SpecError(
                f"stage {self.name!r} has patience or a plateau schedule, which need a score, but "
                "its data have no part 'validation' and no folds."
            )

    def replace(self, **changes: Any) -> Stage:  # noqa: ANN401 - field values
        """A copy with some fields changed."""
        return replace(self, **changes)

    @cached_property
    def key(self) -> str:
        """SHA-256 over everything that decides the result; reads the data once.

        Not in it: names, and the versions of libraries (those are in the lineage).
        """
        values = {
            "format": _FORMAT,
            "task": describe_value(self.task, what="task"),
            "data": self.data.describe(),
            "model": self.model.describe(),
            "training": self.training.describe(),
            "seed": self.seed,
        }
        if self.parent is not None:
            parent = self.parent
            values["parent"] = (
                parent.key if isinstance(parent, Stage) else weights_digest(Path(parent))
            )
            values["parts"] = list(self.parts)
            values["transfer"] = {
                name: _in_order(given, f"transfer[{name!r}]")
                for name, given in self.transfer.items()
            }
        return key_of(values)

    @property
    def chain(self) -> tuple[Stage, ...]:
        """The stages from the first ancestor to this one."""
        earlier = self.parent.chain if isinstance(self.parent, Stage) else ()
        return (*earlier, self)

    @property
    def begun_with(self) -> tuple[Path, ...]:
        """Checkpoints on disk that the stage begins with: parent, weights of encoder, decoder."""
        parent = None if isinstance(self.parent, Stage) else self.parent
        encoder = self.model.weights if is_path(self.model.weights) else None
        given = (parent, encoder, self.model.decoder_weights)
        return tuple(_checkpoint(Path(path)) for path in given if path is not None)

    @property
    def folder_name(self) -> str:
        """The stage's own folder: its name, made fit for files, and the beginning of its key."""
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', self.name).strip('-.')}-{self.key[:12]}"


def _checkpoint(path: Path) -> Path:
    """The folder of a checkpoint, if the path names the weights within one."""
    inside = path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file()
    return path.parent if inside else path


def weights_digest(path: Path) -> str:
    """What a checkpoint's weights are: of a folder of ours the weights and the spec, no more."""
    names = (WEIGHTS_FILE, CONFIG_FILE)
    if all((path / name).is_file() for name in names):
        return key_of([file_digest(path / name) for name in names])
    return file_digest(path)


def _in_order(given: Any, what: str) -> Any:  # noqa: ANN401 - an argument of a transfer
    """Rules by name apply in their order, which JSON with sorted keys would forget."""
    if isinstance(given, Mapping):
        return [[name, describe_value(rule, what=what)] for name, rule in given.items()]
    return describe_value(given, what=what)
