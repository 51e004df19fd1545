"""What a checkpoint file holds: names, shapes, dtypes and hints, none of its values.

All reading of files in this room goes through here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch

from transferseg import transfer
from transferseg.spec import ModelSpec
from transferseg.transfer import Contents, SourceWeights
from transferseg.transfer.folders import WEIGHT_FILES, weights_file

Shape: TypeAlias = tuple[int, ...]
#: Files that hub repositories have beside the weights -> what they are called in the metadata.
BESIDE = {"config.json": "config", "preprocessor_config.json": "preprocessor"}


@dataclass(frozen=True)
class Listing:
    """A checkpoint by names and shapes.

    Attributes:
        origin: the path.
        shapes: key -> shape, the wrappers taken off.
        dtypes: key -> dtype.
        peeled: the wrappers that were taken off, outermost first.
        others: what else the file holds: optimizer state, an average of the weights, objects.
        metadata: hints: the plain values that were saved beside the weights ("meta" of OpenMMLab,
            "hyper_parameters" of Lightning), the texts of a safetensors header, and "config" and
            "preprocessor", the config.json and preprocessor_config.json of a folder.
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


def read_listing(path: str | os.PathLike[str], *, entry: str | None = None) -> Listing:
    """The listing of a file or folder; no tensor is read.

    Args:
        path: of a checkpoint.
        entry: which of several sets of weights, such as "ema".

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
    return listing_of(transfer.read_listing(path, entry=entry), path)


def read_weights(path: str | os.PathLike[str], *, entry: str | None = None) -> SourceWeights:
    """The tensors of a file or folder, their wrappers taken off as in its listing."""
    return transfer.read_source(path, entry=entry)


def listing_of(contents: Contents[Any], path: str | os.PathLike[str]) -> Listing:
    """The listing of what was read from a path."""
    tensors = contents.tensors
    averages = (f"{name} (weights too: entry={name!r})" for name in contents.entries)
    plain = (name for name in contents.others if name not in contents.entries)
    return Listing(
        contents.origin,
        {key: tuple(value.shape) for key, value in tensors.items()},
        {key: value.dtype for key, value in tensors.items()},
        contents.peeled,
        (*plain, *averages, *contents.notes, *(f"object {name}" for name in contents.skipped)),
        {**contents.metadata, **_config(Path(path))},
        contents.spec,
    )


def _config(path: Path) -> dict[str, Any]:
    """What describes the weights beside them, where the file's name says that it belongs to it."""
    file = weights_file(path)
    found = {}
    for name, key in BESIDE.items() if file.name in WEIGHT_FILES else ():
        try:
            values = json.loads((file.parent / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            found[key] = values
    return found
