"""Read the weights of any source safely: a path, a dict or a module; or their names alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from transferseg.errors import CheckpointError, some
from transferseg.spec import ModelSpec
from transferseg.transfer.files import WEIGHTS_FILE, is_ours, read_spec
from transferseg.transfer.folders import INDEX_SUFFIX, joined, shard_files, weights_file
from transferseg.transfer.inert import Inert, TensorInfo
from transferseg.transfer.torchfiles import read_torch_file
from transferseg.transfer.wrappers import Found, find_weights, is_tensor

#: Where weights come from: a checkpoint folder or file, a dict of tensors, a module.
Source: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | nn.Module"

T = TypeVar("T")

#: What a file is that begins like this, and what to do about it.
_STRANGERS = {
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"BM": "an image",
    b"\x89HDF": "an HDF5 file (Keras writes them), which is not read here",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"7z\xbc\xaf": "compressed by 7-Zip: unpack it first",
    b"%PDF": "a PDF document",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with git lfs pull",
    b"<": "a web page or XML: the download went wrong",
}


#: The dtypes of safetensors.
_SAFE_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip


@dataclass(frozen=True)
class Contents(Generic[T]):
    """What a source holds.

    Attributes:
        tensors: key -> tensor (read only; never changed by a transfer), or its shape and dtype.
        origin: the path, or the kind of object.
        spec: the source's model spec, if it is a model or checkpoint of transferseg.
        peeled: the wrappers that were taken off, outermost first.
        others: entries of the file that are not the weights, such as "optimizer".
        entries: those of the others that `entry=` would take instead, such as "state_dict_ema".
        skipped: Python objects in the file that were not made, by the names of their classes.
        metadata: the plain values among the others, and a safetensors file's own metadata.
        notes: sentences on which of several sets of weights is which.
    """

    tensors: Mapping[str, T]
    origin: str
    spec: ModelSpec | None = None
    peeled: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a report says of the rest of the source, besides the wrappers."""
        lines = list(self.notes)
        if self.others:
            lines.append(f"not read: {some(self.others, limit=12)}")
        lines += [f"{name!r} holds weights too: entry={name!r}" for name in self.entries]
        if self.skipped:
            lines.append(f"skipped objects: {some(self.skipped)}")
        return tuple(lines)


class SourceWeights(Contents[Tensor]):
    """The tensors of a source by name, and what is known of the model that they came from."""


class Listing(Contents[TensorInfo]):
    """What a source holds by names, shapes and dtypes; no tensor was read."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape."""
        return {key: info.shape for key, info in self.tensors.items()}


def read_source(source: Source, *, entry: str | None = None) -> SourceWeights:
    """The tensors of a path, a dict or a module, without changing any of them.

    Files are mapped: a tensor's numbers are read when they are used.

    Args:
        source: a folder that `save_pretrained` wrote or one of a hub repository (its weights may
            lie in several files, with their index), a `.safetensors` file, a file that
            `torch.save` wrote (no code in it is run: Python objects of known writers are skipped,
            others refuse the file), a dict of tensors, or a module.
        entry: which entry of a file to take where it holds several sets of weights: its name, such
            as "student", or "ema" for a moving average under any of its usual names.

    Raises:
        CheckpointError: the file is missing, broken, holds no tensors, or would have to be
            unpickled; it names the file.

    Example:
        >>> read_source({"module.fc.weight": torch.zeros(2, 2)}).peeled
        ('module.',)
    """
    opened = _open(source, tensors=True)
    found = find_weights(opened.values, opened.origin, entry=entry)
    try:
        tensors = opened.load(found.tensors)
    except (RuntimeError, OSError) as error:  # the file was changed in between
        raise CheckpointError(
            f"{opened.origin} cannot be read as a checkpoint: {error}."
        ) from error
    return SourceWeights(tensors, *_around(opened, found))


def read_listing(source: Source, *, entry: str | None = None) -> Listing:
    """What a source holds, by names, shapes and dtypes: no tensor is read or copied.

    Of a safetensors file the header is read; of a file of `torch.save` its program.

    Args:
        source: as `read_source` takes it.
        entry: as `read_source` takes it.

    Raises:
        CheckpointError: as `read_source` raises it.

    Example:
        >>> read_listing({"state_dict": {"fc.weight": torch.zeros(2, 3)}, "epoch": 1}).tensors
        {'fc.weight': TensorInfo(shape=(2, 3), dtype=torch.float32)}
    """
    opened = _open(source, tensors=False)
    found = find_weights(opened.values, opened.origin, entry=entry)
    infos = {k: TensorInfo(tuple(v.shape), v.dtype) for k, v in found.tensors.items()}
    return Listing(infos, *_around(opened, found))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, parallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


@dataclass(frozen=True)
class _Opened:
    """A source before its weights are looked for; `load` makes tensors of their descriptions."""

    values: Mapping[Any, Any]
    origin: str
    spec: ModelSpec | None = None
    skipped: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    load: Callable[[Mapping[str, Any]], Mapping[str, Tensor]] = dict


def _around(opened: _Opened, found: Found) -> tuple[Any, ...]:
    """The fields of `Contents` after its tensors."""
    metadata = {**opened.metadata, **found.metadata}
    about = (found.peeled, found.others, found.entries, opened.skipped, metadata, found.notes)
    return (opened.origin, opened.spec, *about)


def _open(source: Source, *, tensors: bool) -> _Opened:
    if isinstance(source, nn.Module):
        source = unwrapped(source)
        spec = getattr(source, "spec", None)
        known = spec if isinstance(spec, ModelSpec) else None
        return _Opened(source.state_dict(), f"{type(source).__name__} in memory", known)
    if isinstance(source, Mapping):
        return _Opened(source, "dict in memory")
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(
            f"a source is a path, a dict or a module, got {type(source).__name__}."
        )
    path = Path(source)
    try:
        file = weights_file(path)
    except OSError as error:  # a folder that may not be read, a name that is too long
        raise CheckpointError(f"{path} cannot be opened: {error}.") from error
    spec = read_spec(file.parent) if file.name == WEIGHTS_FILE and is_ours(file.parent) else None
    open_whole = _open_shards if file.name.endswith(INDEX_SUFFIX) else _open_file
    opened = open_whole(file, tensors=tensors)
    return replace(opened, origin=str(path), spec=spec)


def _open_file(path: Path, *, tensors: bool) -> _Opened:
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist: expected a checkpoint file or folder.")
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error}.") from error
    if path.suffix == ".safetensors" or head[8:10] == b'{"':
        return _open_safetensors(path, tensors=tensors)
    if stranger := _stranger(head):
        raise CheckpointError(f"{path} is no checkpoint: it is {stranger}.")
    read = read_torch_file(path, tensors=tensors)
    if not isinstance(read.values, Mapping):
        kind = read.values.name if isinstance(read.values, Inert) else type(read.values).__name__
        raise CheckpointError(
            f"{path} holds a {kind}, expected a dict of tensors: where you trust it, load it and "
            "save the model's state_dict()."
        )
    return _Opened(read.values, str(path), None, read.skipped, load=read.tensors)


def _open_shards(index: Path, *, tensors: bool) -> _Opened:
    """Several files as one."""
    opened = [_open_file(file, tensors=tensors) for file in shard_files(index)]
    values = joined(index, [one.values for one in opened])
    if wrapped := [str(key) for key, value in values.items() if not is_tensor(value)]:
        raise CheckpointError(f"{index}: {some(wrapped)} of its files are no tensors.")
    owner = {id(value): one for one in opened for value in one.values.values()}

    def load(found: Mapping[str, Any]) -> Mapping[str, Tensor]:
        loaded: dict[str, Tensor] = {}
        for one in opened:
            loaded |= one.load({k: v for k, v in found.items() if owner[id(v)] is one})
        return {key: loaded[key] for key in found}

    skipped = tuple(dict.fromkeys(name for one in opened for name in one.skipped))
    return _Opened(values, str(index), skipped=skipped, load=load)


def _stranger(head: bytes) -> str | None:
    """What a file is that begins like this, if it cannot be a checkpoint."""
    if not head:
        return "empty"
    for begin, kind in _STRANGERS.items():
        if head.startswith(begin):
            return kind
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "a text file"
    return None


def _open_safetensors(path: Path, *, tensors: bool) -> _Opened:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if tensors:
                return _Opened(load_file(path), str(path), metadata=metadata)
            infos = {key: _info(path, file.get_slice(key)) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from error
    return _Opened(infos, str(path), metadata=metadata)


def _info(path: Path, part: Any) -> TensorInfo:  # noqa: ANN401 - safetensors' slice is not typed
    name = part.get_dtype()
    if name not in _SAFE_DTYPES:
        raise CheckpointError(f"{path} holds values of type {name}, which are not read here.")
    return TensorInfo(tuple(part.get_shape()), _SAFE_DTYPES[name])
