"""Errors that say what was given, what was expected and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class TransfersegError(Exception):
    """Base of every error that transferseg raises on purpose."""


class SpecError(TransfersegError, ValueError):
    """A model cannot be built as it was asked for."""


class CheckpointError(TransfersegError, ValueError):
    """A checkpoint file or folder cannot be read, or does not hold what was expected."""


class TransferError(TransfersegError, ValueError):
    """A transfer of weights that is not fully declared; nothing was changed."""


class BrokenWeightsError(CheckpointError, TransferError):
    """Weights with values that no network can have (NaN, infinite, quantised); nothing changed."""


class DataError(TransfersegError, ValueError):
    """A data set, an image, a mask or a label is not as it should be; names the file."""


class TrainingError(TransfersegError, RuntimeError):
    """A training run cannot start or go on."""


def did_you_mean(name: str, options: Iterable[str], *, limit: int = 3) -> str:
    """Suggest near names, as the end of an error message.

    Args:
        name: what was given.
        options: the names that exist.
        limit: how many suggestions at most.

    Returns:
        `" Did you mean 'a' or 'b'?"`, or an empty string when nothing is near.

    Example:
        >>> did_you_mean("unte", ["unet", "fcn"])
        " Did you mean 'unet'?"
    """
    near = difflib.get_close_matches(name, list(options), n=limit, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def unknown_name(kind: str, name: str, options: Iterable[str]) -> str:
    """Describe an unknown name: what was given, what there is, what may be meant.

    Example:
        >>> unknown_name("architecture", "unte", ["fcn", "unet"])
        "unknown architecture 'unte': expected one of 'fcn', 'unet'. Did you mean 'unet'?"
    """
    options = sorted(options)
    listed = ", ".join(map(repr, options[:20])) + (", ..." if len(options) > 20 else "")
    return f"unknown {kind} {name!r}: expected one of {listed}.{did_you_mean(str(name), options)}"


def some(names: Iterable[str], *, limit: int = 6) -> str:
    """List names in a message, cut after `limit` with a count of the rest.

    Example:
        >>> some(["a", "b", "c"], limit=2)
        'a, b, ... (3 in all)'
    """
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"


def describe(array: Any) -> str:  # noqa: ANN401 - a tensor or an array; this floor imports neither
    """Shape and dtype of a tensor or an array, for an error message.

    Example:
        >>> import numpy as np
        >>> describe(np.zeros((2, 3), np.float32))
        '(2, 3) float32'
    """
    return f"{tuple(array.shape)} {str(array.dtype).removeprefix('torch.')}"
