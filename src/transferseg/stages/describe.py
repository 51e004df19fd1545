"""Any setting as JSON values: equal settings have equal keys, and different ones never do."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from transferseg.errors import TrainingError

#: What every module of torch has, and so says nothing of one.
_TORCHS = frozenset(vars(nn.Module()))


def describe_value(value: Any, *, what: str = "the value") -> Any:  # noqa: ANN401 - any setting
    """A setting as JSON values that are the same in every process and differ where it differs.

    Numbers, texts, lists and mappings stand for themselves; a frozen dataclass for its class and
    fields; a function for its module, name and source; `functools.partial` for function and
    arguments; a module of torch (a loss) for its class, attributes, parts and tensors; a `Path`
    for the content of its file; anything with `describe()` for what that gives. The source of
    classes and functions counts where it is neither transferseg's nor torch's; other functions
    that they call are not followed.

    Args:
        value: the setting.
        what: its name, for the error.

    Returns:
        JSON values.

    Raises:
        TrainingError: a lambda or a function within another (their captured values cannot be seen,
            nor can they be sent to another process), or an object of which nothing is known.

    Example:
        >>> from functools import partial
        >>> from transferseg.training import adamw
        >>> describe_value({"optimizer": partial(adamw, lr=1e-3)})["optimizer"]["keywords"]
        {'lr': 0.001}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Path):
        return {"file": file_digest(value)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, enum.Enum):
        return f"{_name(type(value))}.{value.name}"
    if isinstance(value, Mapping):
        return {str(k): describe_value(v, what=f"{what}[{k!r}]") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [describe_value(v, what=f"{what}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(describe_value(v, what=what), sort_keys=True) for v in value)
    return _described_object(value, what)


def _described_object(value: Any, what: str) -> Any:  # noqa: ANN401
    if isinstance(value, partial):
        return {
            "partial": describe_value(value.func, what=what),
            "arguments": describe_value(value.args, what=what),
            "keywords": describe_value(value.keywords, what=what),
        }
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return _described_function(value, what)
    if callable(getattr(value, "describe", None)):
        return {**_described_class(type(value)), "is": value.describe()}
    if isinstance(value, nn.Module):
        return _described_module(value, what)
    if is_dataclass(value):
        shown = [f.name for f in fields(value) if not f.name.startswith("_")]
        described = {n: describe_value(getattr(value, n), what=f"{what}.{n}") for n in shown}
        return {**_described_class(type(value)), "is": described}
    if isinstance(value, np.ndarray | torch.Tensor):
        array = np.asarray(value)
        return {"array": str(array.dtype), "shape": list(array.shape), "is": _bytes_digest(array)}
    raise TrainingError(
        f"{what} is a {type(value).__name__}, of which a stage cannot tell whether it is the same "
        "next time; use plain values, a frozen dataclass, or give the class a method describe() "
        "that returns JSON values."
    )


def _described_function(value: Any, what: str) -> dict[str, str]:  # noqa: ANN401
    name = _name(value)
    if "<" in name:
        raise TrainingError(
            f"{what} is {name}: a lambda or a function within a function, whose captured values "
            "cannot be seen; define it at the top of a module, and bind values with "
            "functools.partial."
        )
    return {"function": name, **_source(value)}


def _described_class(kind: type) -> dict[str, Any]:
    """A class by its name and the sources of itself and what it inherits from."""
    sources = {_name(base): found for base in kind.__mro__ if (found := _source(base))}
    return {"type": _name(kind), **({"sources": sources} if sources else {})}


def _described_module(value: nn.Module, what: str) -> dict[str, Any]:
    """A module of torch by all that it holds: few losses tell their options in their `repr`."""
    own = {n: v for n, v in vars(value).items() if n not in _TORCHS}
    return {
        **_described_class(type(value)),
        "own": {n: describe_value(v, what=f"{what}.{n}") for n, v in own.items()},
        "parts": {
            n: describe_value(part, what=f"{what}.{n}") for n, part in value.named_children()
        },
        "tensors": tensors_digest(value),
    }


def _source(value: Any) -> dict[str, str]:  # noqa: ANN401
    """The digest of a user's own text; a text that nobody can read (typed in, compiled) is none."""
    if value.__module__.split(".")[0] in ("transferseg", "torch", "builtins", "typing", "abc"):
        return {}
    with contextlib.suppress(OSError, TypeError):
        return {"source": _digest(inspect.getsource(value).encode())}
    return {}


def _name(value: Any) -> str:  # noqa: ANN401
    return f"{value.__module__}.{value.__qualname__}"


def key_of(described: Any) -> str:  # noqa: ANN401
    """64 hexadecimal digits of described values.

    Example:
        >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
        True
    """
    return _digest(json.dumps(described, sort_keys=True, allow_nan=False).encode())


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names.

    Raises:
        TrainingError: it does not exist.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return key_of([[file.relative_to(path).as_posix(), file_digest(file)] for file in files])
    if not path.is_file():
        raise TrainingError(f"{path} does not exist: expected a checkpoint file or folder.")
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tensors_digest(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and values of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _bytes_digest(array: np.ndarray[Any, Any]) -> str:
    return _digest(np.ascontiguousarray(array).tobytes())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
