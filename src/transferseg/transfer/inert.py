"""What a checkpoint's program may name, and what it becomes: containers, tensors, inert objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch

#: torch's persistent identifier -> a storage.
Persistent: TypeAlias = Callable[[Any], Any]

#: An expanded tensor (stride 0) may stand for more values than are stored, but not for many more.
MOST_EXPANDED = 2**22
#: Items of a tuple that is a key of a dict; every look-up hashes all of them.
_LONGEST_KEY = 8


class MalformedError(Exception):
    """A file that is not what it seems; the reader adds which file."""


class UnknownGlobalError(Exception):
    """A program that names a global of no known writer."""


class Inert:
    """What stands for an object that is never made: its global's name and what it was given.

    Attributes:
        name: module and name of the global.
        given: the arguments of its call.
        state: the state that would have been set.
        items: key -> value, of what would have been a kind of dict.
        values: of what would have been a kind of list.
    """

    __slots__ = ("given", "items", "name", "state", "values")

    def __init__(self, name: str, given: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.given = given
        self.state: Any = None
        self.items: dict[Any, Any] = {}
        self.values: list[Any] = []

    def __repr__(self) -> str:
        return f"<{self.name}, not made>"


@dataclass(frozen=True)
class StorageRef:
    """A stretch of numbers in the file.

    Attributes:
        dtype: of its elements; uint8 where the file counts bytes.
        key: its name in the file.
        count: how many elements the whole storage has.
        start: where a view begins, in elements.
        length: how many elements the view has.
    """

    dtype: torch.dtype
    key: str
    count: int
    start: int
    length: int


@dataclass(frozen=True)
class Stored:
    """A tensor as the file describes it; no number of it has been read.

    Attributes:
        storage: where its numbers are.
        dtype: of its values.
        offset: of the first value, in elements of `dtype` from the view's begin.
        shape: as a tensor's.
        stride: as a tensor's.
    """

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file, its values unread.

    Attributes:
        shape: of the tensor.
        dtype: of its values.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class OddTensor:
    """A tensor that is no plain array of numbers; an error where it is among the weights.

    Attributes:
        kind: such as "quantised".
    """

    kind: str


def key_of(value: object) -> Any:  # noqa: ANN401 - any plain key
    """A key of a dict: itself if it is plain, else an `Inert`, which is equal to no other key.

    Raises:
        MalformedError: long tuples and tuples in tuples, whose hash can take forever or overflow
            the stack, and numbers so large that they cannot be written.
    """
    if isinstance(value, tuple) and len(value) > _LONGEST_KEY:
        raise MalformedError(f"a key of a dict is a tuple of {len(value):,} items")
    items = value if isinstance(value, tuple) else (value,)
    if all(isinstance(item, str | int | float | bytes | bool | None) for item in items):
        if any(isinstance(item, int) and item.bit_length() > 64 for item in items):
            raise MalformedError("a key of a dict is a number of more than 64 bits")
        return value
    if isinstance(value, tuple):
        raise MalformedError("a key of a dict is a tuple of other things than texts or numbers")
    return value if isinstance(value, Inert) else Inert(type(value).__name__)


def pairs(values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Key, value, key, value, ... as pairs."""
    if len(values) % 2:
        raise MalformedError("its program has a key without a value")
    return ((key_of(values[i]), values[i + 1]) for i in range(0, len(values), 2))


def _mapping(given: object = ()) -> dict[Any, Any]:
    if isinstance(given, dict):
        return given
    if isinstance(given, list | tuple):
        whole = all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in given)
        if whole:
            return {key_of(key): value for key, value in given}
    raise MalformedError("its program makes a dict of something else")


def _default_mapping(*given: object) -> dict[Any, Any]:
    return _mapping(*given[1:])


def _sequence(given: object = ()) -> list[Any]:
    if isinstance(given, list | tuple):
        return list(given)
    raise MalformedError("its program makes a set of something else")


def _tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> Stored:
    if not isinstance(storage, StorageRef):
        raise MalformedError("a tensor has no storage")
    return _stored(storage, storage.dtype, offset, shape, stride)


def _tensor_v3(*given: Any) -> Stored:  # noqa: ANN401 - as the file says
    storage, dtype = given[0], _DTYPES.get(getattr(given[6], "name", ""))
    if not isinstance(storage, StorageRef) or dtype is None:
        raise MalformedError("a tensor has no storage, or a dtype that this torch does not have")
    return _stored(storage, dtype, *given[1:4])


def _stored(
    storage: StorageRef, dtype: torch.dtype, offset: object, shape: object, stride: object
) -> Stored:
    """A tensor whose every value lies within its storage."""
    shape, stride = _sizes(shape), _sizes(stride)
    if len(shape) != len(stride) or len(shape) > 64:
        raise MalformedError("a tensor has other sizes than strides")
    (start,) = _sizes((offset,))
    values = prod(shape)
    last = start + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    held = storage.length * storage.dtype.itemsize // dtype.itemsize
    if values and last >= held:
        raise MalformedError(f"a tensor of shape {shape} reaches beyond its {held} stored values")
    if values > max(held, MOST_EXPANDED):
        raise MalformedError(f"a tensor of shape {shape} has only {held} stored values")
    return Stored(storage, dtype, start, shape, stride)


def _sizes(values: object) -> tuple[int, ...]:
    whole = isinstance(values, list | tuple) and all(type(v) is int for v in values)
    sizes: tuple[int, ...] = tuple(values) if whole else (-1,)  # type: ignore[arg-type]
    if any(not 0 <= size < 2**63 for size in sizes):
        raise MalformedError("a tensor has sizes, strides or an offset that are no whole numbers")
    return sizes


def _typed(maker: object, _: object, given: object, *__: object) -> Any:  # noqa: ANN401
    """A tensor of a class of its own: the plain tensor in it."""
    build = BUILDERS.get(getattr(maker, "name", ""))
    if build is None or not isinstance(given, tuple):
        return OddTensor("other kind of")
    return build(*given)


def _of_class(maker: object, *_: object) -> Inert:
    return Inert(getattr(maker, "name", "object"))


#: Global -> what calling it stands for.
BUILDERS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _default_mapping,
    "builtins.dict": _mapping,
    "builtins.list": _sequence,
    "builtins.set": _sequence,
    "builtins.frozenset": _sequence,
    "torch.Size": lambda given=(): tuple(given),
    "copyreg._reconstructor": _of_class,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch._utils._rebuild_qtensor": lambda *_: OddTensor("quantised"),
    "torch._utils._rebuild_sparse_tensor": lambda *_: OddTensor("sparse"),
    "torch._utils._rebuild_nested_tensor": lambda *_: OddTensor("nested"),
    "torch._utils._rebuild_wrapper_subclass": lambda *_: OddTensor("wrapped"),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda *_: OddTensor("empty (meta device)"),
    "torch._utils._rebuild_device_tensor_from_numpy": lambda *_: OddTensor("other device's"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda data, *_: data,
}

_PLAIN_BUILTINS = (
    "object", "dict", "list", "tuple", "set", "frozenset", "int", "long", "float", "str", "unicode",
    "bool", "complex", "bytes", "bytearray", "slice", "range",
)  # fmt: skip
_WRITERS = (
    "mmengine", "mmcv", "mmcls", "mmdet", "mmpretrain", "mmseg", "addict", "omegaconf", "argparse",
    "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "torchmetrics",
    "numpy", "pathlib", "datetime", "yacs", "fvcore", "types.SimpleNamespace",
    "detectron2.config.config.CfgNode",
)  # fmt: skip

#: Modules, or single globals, whose objects become inert; any other refuses the file. "plain" ones
#: go without saying; "skipped" ones stand in the report.
INERT: Mapping[str, str] = {
    **dict.fromkeys(("torch", "collections", "typing"), "plain"),
    **dict.fromkeys(("copyreg._reconstructor", "_codecs.encode"), "plain"),
    **dict.fromkeys((f"builtins.{name}" for name in _PLAIN_BUILTINS), "plain"),
    **dict.fromkeys(_WRITERS, "skipped"),
}

#: What torch.save itself writes for a dict of tensors. Programs that name anything else are not
#: given to torch's own reader: some that it takes exhaust the memory, or crash the interpreter.
ORDINARY = re.compile(
    r"collections\.OrderedDict|torch\.(cuda\.)?\w+Storage|torch\.storage\.UntypedStorage"
    r"|torch\._utils\._rebuild_(tensor(_v2|_v3)?|parameter)|torch\.(b?float|u?int|bool)\w*"
)

_DTYPES: Mapping[str, torch.dtype] = {
    f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
_STORAGES: Mapping[str, torch.dtype] = {
    f"torch.{name}Storage": getattr(torch, dtype)
    for name, dtype in {
        "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
        "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
        "Bool": "bool", "ComplexDouble": "complex128", "ComplexFloat": "complex64",
        "QInt8": "int8", "QInt32": "int32", "QUInt8": "uint8",
    }.items()
} | {"torch.storage.UntypedStorage": torch.uint8, "torch.UntypedStorage": torch.uint8}  # fmt: skip


def storage_ref(identifier: object) -> StorageRef | Inert:
    """The storage of torch's persistent identifier.

    Args:
        identifier: ("storage", type, key, location, number of elements), and in files from before
            torch 1.6 None or (key, offset, elements) of a view.

    Raises:
        MalformedError: anything else.
    """
    if isinstance(identifier, tuple) and identifier[:1] == ("module",):  # a module's source code
        return Inert("torch.nn.Module")
    if not isinstance(identifier, tuple) or len(identifier) not in (5, 6):
        raise MalformedError("a storage is not named as torch names them")
    kind, maker, key, _, count = identifier[:5]
    dtype = _STORAGES.get(getattr(maker, "name", "").replace("torch.cuda.", "torch."))
    if kind != "storage" or dtype is None or not isinstance(key, str | int):
        raise MalformedError("a storage is not named as torch names them")
    (size,) = _sizes((count,))
    view = identifier[5] if len(identifier) == 6 else None
    if view is None:
        return StorageRef(dtype, str(key), size, 0, size)
    start, length = _sizes(view[1:3])
    if start + length > size:
        raise MalformedError("a view reaches beyond its storage")
    return StorageRef(dtype, str(key), size, start, length)
