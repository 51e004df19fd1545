"""What a checkpoint file holds: names, shapes, dtypes and hints, without its values where possible.

All reading of files in this room goes through here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transferseg.errors import CheckpointError, some
from transferseg.spec import ModelSpec
from transferseg.transfer import SourceWeights, read_source, read_spec

Shape: TypeAlias = tuple[int, ...]

#: What a folder may hold, in the order in which it is looked for.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: The names of safetensors' header for the dtypes of torch.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class Listing:
    """A checkpoint by names and shapes.

    Attributes:
        origin: the path.
        shapes: key -> shape, the wrappers taken off.
        dtypes: key -> dtype.
        peeled: the wrappers that were taken off, outermost first.
        others: what else the file holds, by name: optimizer state, epoch.
        metadata: hints by where they stand: "config", the config.json beside the weights; "header",
            the texts of a safetensors header; and what a training script saved beside the weights.
        spec: of a folder that transferseg saved.
    """

    origin: str
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, torch.dtype]
    peeled: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    spec: ModelSpec | None = None

    @property
    def parameters(self) -> int:
        """How many values there are, buffers included."""
        return sum(map(prod, self.shapes.values()))

    def has(self, *keys: str) -> bool:
        """Whether all of these keys are there."""
        return all(key in self.shapes for key in keys)

    def under(self, prefix: str) -> dict[str, Shape]:
        """The shapes behind a prefix, by what follows it."""
        return {k.removeprefix(prefix): s for k, s in self.shapes.items() if k.startswith(prefix)}

    def config(self) -> Mapping[str, Any]:
        """The config.json beside the weights, or an empty one."""
        found = self.metadata.get("config")
        return found if isinstance(found, Mapping) else {}


def read_listing(path: str | os.PathLike[str]) -> Listing:
    """The listing of a file or folder; of safetensors files their headers are read and no more.

    Raises:
        CheckpointError: nothing there, or nothing that can be read as weights; it names the file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"fc.bias": torch.zeros(3)}}, f"{folder}/a.pth")
        ...     listing = read_listing(f"{folder}/a.pth")
        >>> dict(listing.shapes), listing.peeled
        ({'fc.bias': (3,)}, ('state_dict',))
    """
    return listing_of(_open(path, values=False), path)


def read_weights(path: str | os.PathLike[str]) -> SourceWeights:
    """The tensors of a file or folder, their wrappers taken off as in its listing."""
    return _open(path, values=True)


def listing_of(weights: SourceWeights, path: str | os.PathLike[str]) -> Listing:
    """The listing of weights that were read from a path."""
    tensors = weights.tensors
    return Listing(
        weights.origin,
        {key: tuple(value.shape) for key, value in tensors.items()},
        {key: value.dtype for key, value in tensors.items()},
        weights.peeled,
        metadata=_hints(Path(path)),
        spec=weights.spec,
    )


def _open(path: str | os.PathLike[str], *, values: bool) -> SourceWeights:
    """The one place at which this room touches files: tensors with or without their values."""
    file = _weights_file(Path(path))
    if file.name.endswith(".index.json"):
        return _peeled(_shards(file, values=values), file, path)
    if file.suffix == ".safetensors" and not values:
        return _peeled(_header(file), file, path)
    source: Path = Path(path) if Path(path).is_dir() and file.name == WEIGHT_FILES[0] else file
    return read_source(source)


def _peeled(
    tensors: Mapping[str, Tensor], file: Path, path: str | os.PathLike[str]
) -> SourceWeights:
    found = read_source(tensors)
    ours = file.name == WEIGHT_FILES[0] and "spec" in _config(file.parent)
    spec = read_spec(file.parent) if ours else None
    return SourceWeights(found.tensors, str(path), spec, found.peeled)


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    there = [file.name for file in sorted(path.iterdir())]
    raise CheckpointError(
        f"{path} holds no weights: expected one of {', '.join(WEIGHT_FILES)}, got {some(there)}. "
        "Pass the file itself if it has another name."
    )


def _header(file: Path) -> dict[str, Tensor]:
    """Tensors without memory, as the header of a safetensors file lists them."""
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: expected a checkpoint file or folder.")
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            return {key: _empty(file, key, found) for key, found in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}.") from error


def _empty(file: Path, key: str, found: Any) -> Tensor:  # noqa: ANN401 - safetensors' own type
    dtype = DTYPES.get(found.get_dtype())
    if dtype is None:
        raise CheckpointError(
            f"{file}: {key!r} is of dtype {found.get_dtype()}, which is not one of "
            f"{', '.join(DTYPES)}."
        )
    return torch.empty(found.get_shape(), dtype=dtype, device="meta")


def _shards(index: Path, *, values: bool) -> dict[str, Tensor]:
    """The tensors of a checkpoint in several files, of which a JSON file tells the names."""
    try:
        table: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in table.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of shards: {error!r}.") from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which is not a file beside it.")
        tensors.update(_shard(index.parent / name, values=values))
    missing = [key for key in table if key not in tensors]
    more = [key for key in tensors if key not in table]
    if missing or more:
        raise CheckpointError(
            f"{index} does not fit its files: they lack {some(missing) or 'nothing'}, and hold "
            f"besides {some(more) or 'nothing'}."
        )
    return tensors


def _shard(file: Path, *, values: bool) -> Iterator[tuple[str, Tensor]]:
    if file.suffix == ".safetensors" and not values:
        yield from _header(file).items()
        return
    found = read_source(file)
    if found.peeled:
        raise CheckpointError(f"{file}: a shard must hold plain tensors, not {found.peeled}.")
    yield from found.tensors.items()


def _hints(path: Path) -> dict[str, Any]:
    """What stands beside the weights, where the file's name says that something does."""
    file = _weights_file(path)
    hints: dict[str, Any] = {}
    if file.name in WEIGHT_FILES and (config := _config(file.parent)):
        hints["config"] = config
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            hints["header"] = dict(opened.metadata() or {})
    return hints


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
