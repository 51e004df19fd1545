"""How images go through a model: the options that prediction shares, checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, Final, Literal, TypeAlias, TypedDict, get_args

import torch
from torch import nn

from transferseg.errors import DataError, TrainingError, unknown_name
from transferseg.training.windows import Blend

#: What the forward pass computes in: float32, or autocast to a half precision.
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]

#: Reflections of test-time augmentation: left to right, top to bottom, both (half a turn).
Flip: TypeAlias = Literal["horizontal", "vertical", "both"]

#: flip -> dimensions of (B, C, H, W) that are reversed
FLIP_DIMS: Final[Mapping[str, tuple[int, ...]]] = {
    "horizontal": (-1,),
    "vertical": (-2,),
    "both": (-2, -1),
}
_DTYPES: Final[Mapping[str, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class PredictOptions(TypedDict, total=False):
    """The options of `predict` by name and type, for type checkers: see `Inference`."""

    size: int | tuple[int, int] | None
    window: int | tuple[int, int] | None
    overlap: float
    blend: Blend
    batch_size: int
    stitch: torch.device | str | None
    flips: Flip | Sequence[Flip]
    swap: Sequence[tuple[str, str]] | None
    scales: Sequence[float]
    precision: Precision
    channels_last: bool
    device: torch.device | str | None


@dataclass(frozen=True)
class Inference:
    """How images go through a model; `predict` documents each option.

    Raises:
        DataError: an option out of its range.

    Example:
        >>> how = Inference(window=512, flips="horizontal", scales=(1.0, 1.5))
        >>> how.window, how.views, how.seen((600, 800), 1.5)
        (512, 4, (900, 1200))
    """

    size: int | tuple[int, int] | None = None
    window: int | tuple[int, int] | None = None
    overlap: float = 0.5
    blend: Blend = "gaussian"
    batch_size: int = 4
    stitch: torch.device | str | None = None
    flips: Flip | Sequence[Flip] = ()
    swap: Sequence[tuple[str, str]] | None = None
    scales: Sequence[float] = (1.0,)
    precision: Precision = "fp32"
    channels_last: bool = False
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        check_pair("size", self.size)
        check_pair("window", self.window)
        if not (isinstance(self.overlap, int | float) and 0 <= self.overlap < 1):
            raise DataError(f"overlap must lie in 0..1, 1 excluded, got {self.overlap!r}.")
        if self.blend not in get_args(Blend):
            raise DataError(unknown_name("blend", str(self.blend), get_args(Blend)))
        if not _whole(self.batch_size):
            raise DataError(f"batch_size must be a whole number from 1, got {self.batch_size!r}.")
        given = (self.flips, self.scales)
        if not all(isinstance(value, str | tuple | list) for value in given):
            raise DataError(f"flips and scales are tuples or lists, got {given!r}.")
        for flip in self.reflections:
            if flip not in FLIP_DIMS:
                raise DataError(unknown_name("flip", str(flip), FLIP_DIMS))
        if len(set(self.reflections)) != len(self.reflections):
            raise DataError(f"each flip once, got flips={self.flips!r}.")
        scales = tuple(self.scales)
        if not scales or not all(_above_zero(scale) for scale in scales):
            raise DataError(f"scales are numbers above 0, one or more, got {self.scales!r}.")
        check_precision(self.precision)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Inference:
        """The options of a call, by name.

        Raises:
            TrainingError: an option that does not exist.
            DataError: an option out of its range.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise TrainingError(unknown_name("option", name, known))
        return cls(**options)

    @property
    def reflections(self) -> tuple[str, ...]:
        """The flips, by name."""
        return (self.flips,) if isinstance(self.flips, str) else tuple(self.flips)

    @property
    def views(self) -> int:
        """In how many ways each image is seen: every scale as it is and with every flip."""
        return len(self.scales) * (1 + len(self.reflections))

    def seen(self, own: tuple[int, int], scale: float) -> tuple[int, int]:
        """Height and width at which an image of its own size goes in."""
        height, width = both_sides(self.size) or own
        return max(round(height * scale), 1), max(round(width * scale), 1)

    def slides(self, seen: tuple[int, int]) -> bool:
        """Whether an image of that size needs more than one window."""
        window = both_sides(self.window)
        return window is not None and (window[0] < seen[0] or window[1] < seen[1])


def both_sides(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width of a size given as one or two numbers.

    Example:
        >>> both_sides(256), both_sides((256, 320)), both_sides(None)
        ((256, 256), (256, 320), None)
    """
    if size is None or not isinstance(size, int):
        return None if size is None else (size[0], size[1])
    return size, size


def _whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


def _above_zero(number: object) -> bool:
    return isinstance(number, int | float) and isfinite(number) and number > 0


def check_pair(name: str, size: object) -> None:
    """Refuse what is not one or two whole numbers from 1, nor None."""
    pair = size if isinstance(size, tuple | list) else (size, size)
    if size is not None and not (len(pair) == 2 and all(map(_whole, pair))):
        raise DataError(f"{name} must be a whole number from 1 or (height, width), got {size!r}.")


def check_precision(precision: str) -> None:
    """Refuse a precision that does not exist."""
    if precision not in get_args(Precision):
        raise DataError(unknown_name("precision", str(precision), get_args(Precision)))


def dtype_of(model: nn.Module) -> torch.dtype:
    """What a model's weights are in, and so what goes into it; float32 for one without weights.

    Example:
        >>> dtype_of(nn.Conv2d(1, 1, 1).half())
        torch.float16
    """
    weights = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(weights, torch.float32)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is; the CPU for one without parameters.

    Example:
        >>> device_of(nn.Conv2d(1, 1, 1, device="meta"))
        device(type='meta')
    """
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Autocast on a device; "fp32" leaves everything as it is.

    Example:
        >>> with autocast(torch.device("cpu"), "bf16"):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, dtype=_DTYPES[precision]):
        yield
