"""The two formats of `torch.save`: where their program is, and where a tensor's numbers are."""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, UntypedStorage

from transferseg.errors import CheckpointError
from transferseg.transfer.inert import (
    MalformedError,
    StorageRef,
    Stored,
    UnknownGlobalError,
    storage_ref,
)
from transferseg.transfer.unpickling import run_program

#: A longer zip directory (a tensor has about 100 bytes in it), or a longer program, is an attack.
MOST_DIRECTORY_BYTES = 2**24
MOST_PROGRAM_BYTES = 2**28

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


@dataclass(frozen=True)
class TorchFile:
    """What a file of `torch.save` holds, its tensors not read yet.

    Attributes:
        path: the file.
        values: what was saved; tensors are `Stored`, or mapped where torch read them.
        skipped: globals of known writers whose objects were not made.
        ordinary: whether torch's own reader may be given it.
        starts: key of a storage -> its first byte in the file.
    """

    path: Path
    values: Any
    skipped: tuple[str, ...]
    ordinary: bool
    starts: Mapping[str, int]

    def tensors(self, stored: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of descriptions, their numbers in the mapped file (copy on write)."""
        if not any(isinstance(value, Stored) for value in stored.values()):
            return dict(stored)
        size = self.path.stat().st_size
        whole = cast(UntypedStorage, UntypedStorage.from_file(str(self.path), False, size))
        storages: dict[str, UntypedStorage] = {}
        return {
            key: self._tensor(value, whole, storages) if isinstance(value, Stored) else value
            for key, value in stored.items()
        }

    def _tensor(
        self, stored: Stored, whole: UntypedStorage, storages: dict[str, UntypedStorage]
    ) -> Tensor:
        ref, width = stored.storage, stored.storage.dtype.itemsize
        if ref.key not in storages:
            begin = self.starts[ref.key]
            part = whole[begin : begin + ref.count * width]
            # Files from before torch 1.6 put numbers at any byte; kernels want whole multiples.
            storages[ref.key] = part.clone() if begin % stored.dtype.itemsize else part
        view = storages[ref.key][ref.start * width : (ref.start + ref.length) * width]
        empty = torch.empty(0, dtype=stored.dtype)
        return empty.set_(view, stored.offset, stored.shape, stored.stride)


def read_torch_file(path: Path, *, tensors: bool) -> TorchFile:
    """What a file of `torch.save` holds.

    Our own reader goes over the program, in which every global is inert. The tensors of a zip file
    that names nothing but tensors are then read by torch (`weights_only`); where it refuses, and of
    all other files, by ours.

    Args:
        path: a file in torch's zip format, or in the one from before torch 1.6.
        tensors: whether the tensors will be wanted, and not only their shapes.

    Raises:
        CheckpointError: it names the file, and what it is instead.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
            if head[:2] != b"PK":
                return _read_legacy(path, file)
        read = _read_zip(path)
    except UnknownGlobalError as error:
        raise CheckpointError(
            f"{path} holds Python objects besides tensors, which would have to be unpickled and "
            f"could run any code: {error} is of no writer that is known here. Nothing of it was "
            "run. Save its state dict alone (torch.save(model.state_dict(), path)) where you "
            "trust it, and pass that file."
        ) from None
    except MalformedError as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}.") from error
    except (OSError, RuntimeError, ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {type(error).__name__}: {error}."
        ) from error
    return _with_torch(read) if tensors and read.ordinary else read


def _with_torch(read: TorchFile) -> TorchFile:
    """The same with the tensors as torch's own reader maps them, if it takes the file."""
    try:
        with warnings.catch_warnings():
            # torch warns of unusual pickle protocols; what it cannot read raises all the same.
            warnings.simplefilter("ignore", UserWarning)
            values = torch.load(read.path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        return read
    except Exception as error:  # a broken pickle can raise anything (KeyError, IndexError, ...)
        raise CheckpointError(
            f"{read.path} cannot be read as a checkpoint: {type(error).__name__}: {error}."
        ) from error
    return replace(read, values=values)


def _read_zip(path: Path) -> TorchFile:
    _check_directory(path)
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises whatever a wrong byte makes wrong
        raise MalformedError(f"its zip directory is broken ({error})") from error
    with archive, path.open("rb") as file:
        entries = {info.filename: info for info in archive.infolist()}
        # torch's reader looks names up whatever their case, and takes one of several
        if len({name.casefold() for name in entries}) < len(archive.infolist()):
            raise MalformedError("two entries of its zip directory have the same name")
        programs = [n for n in entries if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(programs) != 1:
            raise MalformedError(
                "it is a zip file, but not one that torch.save wrote (it has no data.pkl)"
            )
        root = programs[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in entries:
            raise MalformedError(
                "it is a TorchScript archive, which is code: where you trust it, load it with "
                "torch.jit.load and save its state_dict()"
            )
        order = entries.get(f"{root}byteorder")
        if order and _content(file, order).decode("ascii", "replace") != sys.byteorder:
            raise MalformedError("it was written on a machine with another order of bytes")
        return _run_zip(path, file, entries, root)


def _run_zip(
    path: Path, file: IO[bytes], entries: Mapping[str, zipfile.ZipInfo], root: str
) -> TorchFile:
    starts: dict[str, int] = {}

    def persistent(identifier: object) -> Any:  # noqa: ANN401 - a storage, or inert
        ref = storage_ref(identifier)
        if isinstance(ref, StorageRef):
            entry = entries.get(f"{root}data/{ref.key}")
            if entry is None:
                raise MalformedError(f"the numbers of storage {ref.key!r} are missing")
            if entry.file_size < ref.count * ref.dtype.itemsize:
                raise MalformedError(f"storage {ref.key!r} is shorter than the file says")
            if ref.key not in starts:
                starts[ref.key] = _start(file, entry)
        return ref

    program = io.BytesIO(_content(file, entries[f"{root}data.pkl"]))
    made = run_program(program, persistent)
    return TorchFile(path, made.value, made.skipped, made.ordinary, starts)


def _check_directory(path: Path) -> None:
    """Refuse a zip file that is cut short, or whose directory is made to fill the memory."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 2**16 - 22))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise MalformedError(
            "it is cut short: a zip file has its directory at its end, and this has none. "
            "Download or copy it again"
        )
    (length,) = struct.unpack("<I", tail[at + 12 : at + 16])
    lengths = [] if length == 2**32 - 1 else [length]
    for long in (at - 76, tail.rfind(b"PK\x06\x06", 0, at)):  # where it is, where it may seem
        if long >= 0 and at - long >= 56 and tail[long : long + 4] == b"PK\x06\x06":
            lengths += struct.unpack("<Q", tail[long + 40 : long + 48])
    if max(lengths, default=2**32) > MOST_DIRECTORY_BYTES:
        raise MalformedError(f"its zip directory has {max(lengths, default=2**32):,} bytes")


def _start(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin; they must be there, and be stored as they are."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise MalformedError(
            f"its entry {entry.filename!r} is compressed or encrypted, which torch.save never does"
        )
    file.seek(entry.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04" or len(header) < 30:
        raise MalformedError(f"its entry {entry.filename!r} is not where its directory says")
    names: tuple[int, int] = struct.unpack("<HH", header[26:30])
    begin = entry.header_offset + 30 + sum(names)
    if begin + entry.file_size > file.seek(0, io.SEEK_END):
        raise MalformedError(f"it is cut short: its entry {entry.filename!r} goes beyond its end")
    return begin


def _content(file: IO[bytes], entry: zipfile.ZipInfo) -> bytes:
    begin = _start(file, entry)
    if entry.file_size > MOST_PROGRAM_BYTES:
        raise MalformedError(f"its entry {entry.filename!r} has {entry.file_size:,} bytes")
    file.seek(begin)
    return file.read(entry.file_size)


def _read_legacy(path: Path, file: IO[bytes]) -> TorchFile:
    """Five pickles one after the other, then each storage: its number of elements, its numbers."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        source = cast(IO[bytes], mapped)
        if _plain(source, what="magic number") != _LEGACY_MAGIC:
            raise MalformedError("it is a pickle, but not one that torch.save wrote")
        if _plain(source, what="version") != _LEGACY_VERSION:
            raise MalformedError("it is of a version of torch's format that is not known")
        system = _plain(source, what="header")
        if not isinstance(system, dict) or not system.get("little_endian", True):
            raise MalformedError("it was written on a machine with another order of bytes")
        refs: dict[str, StorageRef] = {}
        made = run_program(source, _remembering(refs))
        keys = _plain(source, what="list of storages")
        whole = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not whole or not set(refs) <= set(keys):
            raise MalformedError("its list of storages is not whole")
        starts = _legacy_starts(mapped, keys, refs)
        # torch cannot map this format
        return TorchFile(path, made.value, made.skipped, ordinary=False, starts=starts)


def _plain(source: IO[bytes], *, what: str) -> Any:  # noqa: ANN401 - whatever the file has there
    return run_program(source, lambda _: _refuse_storage(what)).value


def _refuse_storage(what: str) -> None:
    raise MalformedError(f"its {what} names a storage")


def _remembering(refs: dict[str, StorageRef]) -> Callable[[Any], Any]:
    def persistent(identifier: object) -> Any:  # noqa: ANN401 - a storage, or inert
        ref = storage_ref(identifier)
        if isinstance(ref, StorageRef):
            known = refs.setdefault(ref.key, ref)
            if (known.dtype, known.count) != (ref.dtype, ref.count):
                raise MalformedError(f"storage {ref.key!r} is described in two ways")
        return ref

    return persistent


def _legacy_starts(
    mapped: mmap.mmap, keys: list[str], refs: Mapping[str, StorageRef]
) -> dict[str, int]:
    starts, at = {}, mapped.tell()
    for key in keys:
        if key not in refs:
            raise MalformedError(f"it has numbers of a storage {key!r} that no tensor has")
        if len(mapped) < at + 8:
            raise MalformedError("it is cut short: storages are missing. Download or copy it again")
        (count,) = struct.unpack("<q", mapped[at : at + 8])
        if count != refs[key].count:
            raise MalformedError(f"storage {key!r} is of another length than the file says")
        starts[key] = at + 8
        at += 8 + count * refs[key].dtype.itemsize
    if len(mapped) < at:
        raise MalformedError("it is cut short: numbers are missing. Download or copy it again")
    return starts
