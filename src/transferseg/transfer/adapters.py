"""Adapters: named ways to make a tensor of one shape into one of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from transferseg.errors import TransferError

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Adapter:
    """A named way from a source tensor to a target tensor of another shape.

    Attributes:
        name: as it stands in the report.
        fits: (source shape, target shape) -> whether the adapter can do it.
        apply: (source, current target) -> new target; neither argument is changed.
        covers: (source shape, target shape) -> how many values of the target come from the source.
        note: what it did, for the report.
    """

    name: str
    fits: Callable[[Shape, Shape], bool]
    apply: Callable[[Tensor, Tensor], Tensor]
    covers: Callable[[Shape, Shape], int]
    note: str


def _whole(_: Shape, target: Shape) -> int:
    return prod(target)


def _channels_differ(source: Shape, target: Shape) -> bool:
    same = len(source) == len(target) == 4 and source[0] == target[0] and source[2:] == target[2:]
    return same and source[1] != target[1]


def _sum_channels(source: Tensor, _: Tensor) -> Tensor:
    return source.sum(dim=1, keepdim=True)


def _mean_channels(source: Tensor, target: Tensor) -> Tensor:
    return source.mean(dim=1, keepdim=True).expand(target.shape).contiguous()


def _repeat_channels(source: Tensor, target: Tensor) -> Tensor:
    given, wanted = source.shape[1], target.shape[1]
    cyclic = torch.arange(wanted) % given
    return source[:, cyclic] * (given / wanted)


def _first_channels(source: Tensor, target: Tensor) -> Tensor:
    return source[:, : target.shape[1]].clone()


#: The adapters that need nothing but the two shapes, by the name that `adapt=` takes.
ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        Adapter(
            "sum_input_channels",
            lambda source, target: _channels_differ(source, target) and target[1] == 1,
            _sum_channels,
            _whole,
            "one channel: the sum, so that a grey image acts as its RGB copy did",
        ),
        Adapter(
            "mean_input_channels",
            _channels_differ,
            _mean_channels,
            _whole,
            "every channel: the mean of the source's",
        ),
        Adapter(
            "repeat_input_channels",
            _channels_differ,
            _repeat_channels,
            _whole,
            "the source's channels in turn, scaled so that the response keeps its size",
        ),
        Adapter(
            "first_input_channels",
            lambda source, target: _channels_differ(source, target) and target[1] < source[1],
            _first_channels,
            _whole,
            "the source's first channels",
        ),
    )
}


def zero_skip_slice(main_channels: int) -> Adapter:
    """Open a decoder convolution for a skip connection without changing what it computes.

    The target's input is `cat(upsampled, skip)`; the source had the upsampled path alone. Its
    weights fill the first `main_channels` input channels, the skip's slice is set to 0. The output
    is the source's exactly, and the slice gets a gradient from the first step, since the gradient
    of a weight depends on its input and not on its value.

    Args:
        main_channels: channels of the upsampled path.

    Example:
        >>> adapter = zero_skip_slice(2)
        >>> adapter.fits((4, 2, 3, 3), (4, 5, 3, 3)), adapter.fits((4, 3, 3, 3), (4, 5, 3, 3))
        (True, False)
    """

    def fits(source: Shape, target: Shape) -> bool:
        return _channels_differ(source, target) and source[1] == main_channels < target[1]

    def apply(source: Tensor, target: Tensor) -> Tensor:
        opened = torch.zeros_like(target)
        opened[:, :main_channels] = source
        return opened

    return Adapter(
        "zero_skip_slice", fits, apply, lambda source, _: prod(source), "skip slice set to 0"
    )


def class_rows(
    source_classes: Sequence[str],
    target_classes: Sequence[str],
    renamed: Mapping[str, str] | None = None,
) -> Adapter:
    """Copy the rows of a head class by class name; rows of new classes stay as initialised.

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
    row_of = {renamed.get(name, name): row for row, name in enumerate(source_classes)}
    if len(row_of) != len(source_classes):
        raise TransferError(f"classes= makes two source classes one: {renamed}.")
    common = [name for name in target_classes if name in row_of]
    if not common:
        raise TransferError(
            f"no class of the source {list(source_classes)} has the name of one of the target's "
            f"{list(target_classes)}; say which is which with classes={{'source': 'target'}}, or "
            "leave the head out of parts."
        )
    rows = [(row, row_of[name]) for row, name in enumerate(target_classes) if name in row_of]

    def fits(source: Shape, target: Shape) -> bool:
        heads = (len(source_classes), len(target_classes))
        return (source[:1] + target[:1]) == heads and source[1:] == target[1:]

    def apply(source: Tensor, target: Tensor) -> Tensor:
        chosen = target.clone()
        for row, source_row in rows:
            chosen[row] = source[source_row]
        return chosen

    new = [name for name in target_classes if name not in row_of]
    note = f"rows by name: {', '.join(common)}"
    note += f"; left at initialisation: {', '.join(new)}" if new else ""
    return Adapter("class_rows", fits, apply, lambda _, target: len(rows) * prod(target[1:]), note)
