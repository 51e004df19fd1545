"""Adapters: named ways to make a tensor of one shape into one of another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from transferseg.errors import TransferError

Shape: TypeAlias = tuple[int, ...]
InputChannels: TypeAlias = Literal["sum", "mean", "repeat", "first"]


class Adapter(ABC):
    """A named way from a source tensor to a target tensor of another shape (abstract).

    Attributes:
        name: as it stands in the report.
        note: what it does, for the report.

    Example:
        >>> class Halve(Adapter):
        ...     name, note = "halve", "half of every value"
        ...     def fits(self, source, target):
        ...         return source == target
        ...     def apply(self, source, target):
        ...         return source / 2
        >>> Halve().apply(torch.ones(2), torch.zeros(2))
        tensor([0.5000, 0.5000])
    """

    name: str
    note: str

    @abstractmethod
    def fits(self, source: Shape, target: Shape) -> bool:
        """Whether it can make the one shape into the other."""

    @abstractmethod
    def apply(self, source: Tensor, target: Tensor) -> Tensor:
        """The new target from the source and the current target; neither is changed."""

    def covers(self, source: Shape, target: Shape) -> int:  # noqa: ARG002
        """How many values of the target come from the source: all, unless overridden."""
        return prod(target)

    def beside(self, offered: Adapter | None) -> Adapter:  # noqa: ARG002
        """Itself, knowing what the target's own layout offers for the tensor, where that tells."""
        return self


def _channels_differ(source: Shape, target: Shape) -> bool:
    same = len(source) == len(target) == 4 and source[0] == target[0] and source[2:] == target[2:]
    return same and source[1] != target[1]


@dataclass(frozen=True)
class ChannelAdapter(Adapter):
    """Another number of input channels of a convolution.

    Args:
        how: "sum" (to one channel: a grey image acts as its RGB copy did), "mean" (every channel
            the mean of the source's), "repeat" (the source's in turn, scaled by given / wanted, so
            that the response to equal channels keeps its size), "first" (the first of them).

    Example:
        >>> ChannelAdapter("sum").apply(torch.ones(1, 3, 1, 1), torch.zeros(1, 1, 1, 1)).item()
        3.0
    """

    how: InputChannels

    @property
    def name(self) -> str:  # type: ignore[override]
        """Such as "sum_input_channels"."""
        return f"{self.how}_input_channels"

    @property
    def note(self) -> str:  # type: ignore[override]
        """What it does."""
        return {
            "sum": "one channel, the sum: a grey image acts as its RGB copy did",
            "mean": "every channel the mean of the source's",
            "repeat": "the source's channels in turn, scaled to keep the size of the response",
            "first": "the source's first channels",
        }[self.how]

    def fits(self, source: Shape, target: Shape) -> bool:
        """Convolution weights (out, in, kh, kw) that differ in `in` alone."""
        if not _channels_differ(source, target):
            return False
        if self.how == "sum":
            return target[1] == 1
        return self.how != "first" or target[1] < source[1]

    def apply(self, source: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        given, wanted = source.shape[1], target.shape[1]
        if self.how == "sum":
            return source.sum(dim=1, keepdim=True)
        if self.how == "mean":
            return source.mean(dim=1, keepdim=True).expand(target.shape).contiguous()
        if self.how == "first":
            return source[:, :wanted].clone()
        return source[:, torch.arange(wanted) % given] * (given / wanted)


@dataclass(frozen=True)
class ZeroSkipSlice(Adapter):
    """Open a decoder convolution for a skip connection without changing what it computes.

    The target's input is `cat(upsampled, skip)`; the source had the upsampled path alone. Its
    weights fill the first `main_channels` input channels, the skip's slice is set to 0. The output
    is the source's exactly, and the slice gets a gradient from the first step, since the gradient
    of a weight depends on its input and not on its value.

    Args:
        main_channels: channels of the upsampled path.

    Example:
        >>> adapter = ZeroSkipSlice(2)
        >>> adapter.fits((4, 2, 3, 3), (4, 5, 3, 3)), adapter.fits((4, 3, 3, 3), (4, 5, 3, 3))
        (True, False)
    """

    main_channels: int
    name: str = field(default="zero_skip_slice", init=False)
    note: str = field(default="skip slice set to 0", init=False)

    def fits(self, source: Shape, target: Shape) -> bool:
        """The source has the upsampled path's channels, the target more."""
        return _channels_differ(source, target) and source[1] == self.main_channels < target[1]

    def apply(self, source: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        opened = torch.zeros_like(target)
        opened[:, : self.main_channels] = source
        return opened

    def covers(self, source: Shape, target: Shape) -> int:  # noqa: ARG002
        """The upsampled path; zeros do not count."""
        return prod(source)


@dataclass(frozen=True)
class GatedSkipSlice(Adapter):
    """Put a gate on a skip connection of a decoder convolution without changing what it computes.

    The convolution reads `cat(upsampled, skip)` on both sides; the target multiplies its skip by a
    gate that begins at one value everywhere. The skip's slice is divided by that value.

    Args:
        main_channels: channels of the upsampled path.
        gate: what the gate begins at, above 0 to 1.

    Example:
        >>> adapter = GatedSkipSlice(1, 0.5)
        >>> adapter.apply(torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)).flatten().tolist()
        [1.0, 2.0, 2.0]
    """

    main_channels: int
    gate: float
    name: str = field(default="gated_skip_slice", init=False)

    @property
    def note(self) -> str:  # type: ignore[override]
        """What it does."""
        return f"skip slice divided by the gate's start, {self.gate:.3f}"

    def fits(self, source: Shape, target: Shape) -> bool:
        """The same shape, with a skip's channels beside the upsampled path's."""
        return source == target and len(source) == 4 and source[1] > self.main_channels

    def apply(self, source: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002
        """See the class."""
        opened = source.clone()
        opened[:, self.main_channels :] /= self.gate
        return opened


@dataclass(frozen=True)
class ClassRows(Adapter):
    """The rows of a head class by class name; rows of new classes stay as initialised.

    Made by `class_rows`.

    Attributes:
        source_classes: names of the source's rows, in the target's words.
        target_classes: names of the target's rows.
    """

    source_classes: tuple[str, ...]
    target_classes: tuple[str, ...]
    name: str = field(default="class_rows", init=False)

    @property
    def _common(self) -> list[str]:
        return [name for name in self.target_classes if name in self.source_classes]

    @property
    def note(self) -> str:  # type: ignore[override]
        """Which rows came by name and which stay."""
        new = [name for name in self.target_classes if name not in self.source_classes]
        kept = f"; left at initialisation: {', '.join(new)}" if new else ""
        return f"rows by name: {', '.join(self._common)}{kept}"

    def fits(self, source: Shape, target: Shape) -> bool:
        """One row a class on both sides, rows of the same shape."""
        heads = (len(self.source_classes), len(self.target_classes))
        return source[:1] + target[:1] == heads and source[1:] == target[1:]

    def apply(self, source: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        chosen = target.clone()
        for name in self._common:
            chosen[self.target_classes.index(name)] = source[self.source_classes.index(name)]
        return chosen

    def covers(self, source: Shape, target: Shape) -> int:  # noqa: ARG002
        """The rows that came by name."""
        return len(self._common) * prod(target[1:])


@dataclass(frozen=True)
class SameValues(Adapter):
    """The same values in a shape that differs in ones alone: a linear layer as a 1x1 convolution.

    Example:
        >>> SameValues().fits((4, 2), (4, 2, 1, 1)), SameValues().fits((4, 2), (2, 4))
        (True, False)
    """

    name: str = field(default="same_values", init=False)
    note: str = field(default="the same values, ones in the shape added or left out", init=False)

    def fits(self, source: Shape, target: Shape) -> bool:
        """The same sides in the same order, ones apart."""
        return [n for n in source if n != 1] == [n for n in target if n != 1]

    def apply(self, source: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        return source.reshape(target.shape)


def class_rows(
    source_classes: Sequence[str],
    target_classes: Sequence[str],
    renamed: Mapping[str, str] | None = None,
) -> ClassRows:
    """The adapter that copies the rows of a head by class name.

    Args:
        source_classes: names of the source's rows.
        target_classes: names of the target's rows.
        renamed: source name -> target name, where they differ.

    Raises:
        TransferError: a name in `renamed` that does not exist, or no class in common.

    Example:
        >>> adapter = class_rows(["lung", "heart"], ["heart", "rib"])
        >>> adapter.apply(torch.tensor([1.0, 2.0]), torch.tensor([8.0, 9.0]))
        tensor([2., 9.])
        >>> adapter.note
        'rows by name: heart; left at initialisation: rib'
    """
    renamed = dict(renamed or {})
    unknown = [name for name in renamed if name not in source_classes]
    unknown += [name for name in renamed.values() if name not in target_classes]
    if unknown:
        raise TransferError(
            f"classes= names {unknown}, but the source has {list(source_classes)} "
            f"and the target {list(target_classes)}."
        )
    names = tuple(renamed.get(name, name) for name in source_classes)
    if len(set(names)) != len(names):
        raise TransferError(f"classes= makes two source classes one: {renamed}.")
    if not set(names) & set(target_classes):
        raise TransferError(
            f"no class of the source {list(source_classes)} has the name of one of the target's "
            f"{list(target_classes)}; say which is which with classes={{'source': 'target'}}, "
            "leave the head as initialised with leave=, or leave it out of parts."
        )
    return ClassRows(names, tuple(target_classes))


#: The adapters that need nothing but the two shapes, by the name that `adapt=` takes.
ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        ChannelAdapter("sum"),
        ChannelAdapter("mean"),
        ChannelAdapter("repeat"),
        ChannelAdapter("first"),
    )
}
