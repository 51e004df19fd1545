"""Where a checkpoint comes from: every stage before it, and the way of every tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from transferseg.errors import CheckpointError
from transferseg.transfer import TransferReport

LINEAGE_FILE = "lineage.json"
_FORMAT = 1


@dataclass(frozen=True)
class TensorOrigin:
    """The way of one tensor.

    Attributes:
        began: its first values: "random, seed 0", or which weights.
        through: the stages that trained it before this one, oldest first, as "stage/key there".
        adapters: what changed its shape or rows on the way.
    """

    began: str
    through: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageRecord:
    """One stage as it was run; JSON values throughout.

    Attributes:
        name: as the stage was called.
        key: SHA-256 over everything that decides its result.
        task: the task and its options.
        data: data set, digest, images and groups by part, size.
        model: the model's spec.
        training: the training recipe.
        seed: of initial weights, order and augmentation.
        parent: the parent stage's name, a foreign checkpoint's path, or None.
        parts: what was taken from the parent.
        coverage: fraction of every such part that the parent gave, 0 to 1.
        scores: by part, "validation" (of the best epoch) and "test" as they apply.
        best_epoch: which epoch's weights these are; None without validation: the last.
        epochs: epochs trained.
        seconds: of training.
        samples_seen: images trained on, repeats counted.
        versions: of the libraries.
        notes: what must be known of the scores.
    """

    name: str
    key: str
    task: Any
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    seed: int
    parent: str | None
    parts: tuple[str, ...]
    coverage: Mapping[str, float]
    scores: Mapping[str, Mapping[str, Any]]
    best_epoch: int | None
    epochs: int
    seconds: float
    samples_seen: int
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lineage:
    """Every stage of a checkpoint, the first ancestor first, and where its tensors come from.

    Attributes:
        stages: the last is the checkpoint's own.
        tensors: by key of the checkpoint.

    Example:
        >>> Lineage((), {"head.bias": TensorOrigin("random, seed 0")}).from_random()
        ('head.bias',)
    """

    stages: tuple[StageRecord, ...]
    tensors: Mapping[str, TensorOrigin] = field(default_factory=dict)

    def from_random(self) -> tuple[str, ...]:
        """Keys that no earlier stage and no other weights gave."""
        return tuple(
            key
            for key, origin in self.tensors.items()
            if not origin.through and origin.began.startswith("random")
        )

    def to_text(self) -> str:
        """One line a stage."""
        lines = []
        for record in self.stages:
            moved = ", ".join(f"{part} {share:.0%}" for part, share in record.coverage.items())
            origin = f" <- {record.parent} ({moved})" if record.parent else ""
            images = ", ".join(f"{n} {part}" for part, n in record.data["images"].items())
            lines.append(
                f"{record.name}{origin}: {record.data['name']} ({images}), "
                f"{record.epochs} epochs, {record.seconds:.0f} s, seed {record.seed}"
            )
        return "\n".join(lines)

    __str__ = to_text

    def to_json(self) -> str:
        """JSON text, read again by `read_lineage`."""
        values = {
            "format": _FORMAT,
            "stages": [asdict(record) for record in self.stages],
            "tensors": {key: asdict(origin) for key, origin in self.tensors.items()},
        }
        return json.dumps(values, indent=1)


def read_lineage(folder: str | PathLike[str]) -> Lineage:
    """The lineage of a checkpoint folder that `run_stage` made.

    Raises:
        CheckpointError: there is none, or it is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "lineage.json").write_text(Lineage(()).to_json())
        ...     read_lineage(folder).stages
        ()
    """
    path = Path(folder) / LINEAGE_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != _FORMAT:
            raise CheckpointError(f"{path} has format {values['format']!r}, expected {_FORMAT}.")
        stages = tuple(
            StageRecord(**{**v, "parts": tuple(v["parts"]), "notes": tuple(v["notes"])})
            for v in values["stages"]
        )
        tensors = {
            key: TensorOrigin(v["began"], tuple(v["through"]), tuple(v["adapters"]))
            for key, v in values["tensors"].items()
        }
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: not the folder of a stage.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}.") from error
    return Lineage(stages, tensors)


def tensor_origins(
    began: Mapping[str, str],
    report: TransferReport | None,
    parent: Lineage | None,
    parent_name: str,
) -> dict[str, TensorOrigin]:
    """Where every tensor of a new stage's model comes from.

    Args:
        began: key -> what its values were before the transfer.
        report: of the transfer from the parent, None without one.
        parent: the parent's lineage, None for a foreign checkpoint.
        parent_name: of the parent stage, or the foreign checkpoint's path.

    Example:
        >>> tensor_origins({"a": "random, seed 1"}, None, None, "")["a"].began
        'random, seed 1'
    """
    origins = {key: TensorOrigin(text) for key, text in began.items()}
    for move in report.plan.moves if report is not None else ():
        former = parent.tensors.get(move.source) if parent is not None else None
        former = former or TensorOrigin(f"checkpoint {parent_name}")
        through = former.through
        if parent is not None:
            through = (*through, f"{parent_name}/{move.source}")
        adapters = former.adapters
        if move.adapter is not None:
            adapters = (*adapters, f"{move.adapter.name}: {move.adapter.note}")
        origins[move.target] = TensorOrigin(former.began, through, adapters)
    return origins
