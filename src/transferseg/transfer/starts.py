"""How what a target has over another layout of itself starts, so that the function is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from transferseg.transfer.adapters import Adapter, Shape


class Start(ABC):
    """What a tensor begins as, made from what it was initialised to (abstract)."""

    @abstractmethod
    def begin(self, initial: Tensor) -> Tensor:
        """The tensor as initialised -> a new one of its shape; the given one is not changed."""


@dataclass(frozen=True)
class Constant(Start):
    """One value everywhere.

    Attributes:
        value: the value.

    Example:
        >>> Constant(2.0).begin(torch.zeros(2))
        tensor([2., 2.])
    """

    value: float

    def begin(self, initial: Tensor) -> Tensor:
        """See the class."""
        return torch.full_like(initial, self.value)


@dataclass(frozen=True)
class TwinRows(Start):
    """Rows in pairs, both as the first was initialised; of an odd number the last three are alike.

    Example:
        >>> TwinRows().begin(torch.arange(5.0))
        tensor([0., 0., 2., 2., 2.])
    """

    def begin(self, initial: Tensor) -> Tensor:
        """See the class."""
        count = len(initial)
        return initial[[min(row - row % 2, count - 2 - count % 2) for row in range(count)]]


@dataclass(frozen=True)
class OpposedTwins(Start):
    """What weighs channels that `TwinRows` made alike: of a pair `value` and `-value`.

    So the weighted sum is 0 whatever the channels hold, and yet a gradient reaches each of them. Of
    an odd number the last three weigh 1, 1/2 and -3/2 times `value`: no two alike, which no
    training could tell apart.

    Attributes:
        value: of the first of a pair; a power of two keeps rounding out of the sum.

    Example:
        >>> OpposedTwins(1.0).begin(torch.zeros(1, 5))
        tensor([[ 1.0000, -1.0000,  1.0000,  0.5000, -1.5000]])
    """

    value: float

    def begin(self, initial: Tensor) -> Tensor:
        """(1, channels, ...), at least two channels -> the same shape."""
        begun = torch.full_like(initial, self.value)
        begun[:, 1::2] = -self.value
        if begun.shape[1] % 2:
            begun[:, -2] = self.value / 2
            begun[:, -1] = -self.value * 3 / 2
        return begun


@dataclass(frozen=True)
class NeutralStart:
    """Tensors of the target that a source of another layout lacks, and how they begin neutral.

    It applies where the source has none of them, has every tensor that is to be adapted, and all
    are within the transfer's parts; a target key that the caller declared with `leave=` takes it
    out. Then the tensors are declared as left, those in `values` are set, and the adapters are used
    where the shapes fit.

    Attributes:
        keys: the tensors of the target that the source may lack.
        values: key -> what it begins as; the others stay as initialised.
        adapters: key of another tensor of the target -> how it makes up for these.
        note: what they begin as, for the report.

    Example:
        >>> start = NeutralStart(("gate.bias",), {"gate.bias": Constant(2.0)}, {}, "gate open")
        >>> start.under("decoder.").values
        {'decoder.gate.bias': Constant(value=2.0)}
    """

    keys: tuple[str, ...]
    values: Mapping[str, Start]
    adapters: Mapping[str, Adapter]
    note: str

    def under(self, prefix: str) -> NeutralStart:
        """The same for a module that holds this one under a prefix."""
        return NeutralStart(
            tuple(prefix + key for key in self.keys),
            {prefix + key: value for key, value in self.values.items()},
            {prefix + key: adapter for key, adapter in self.adapters.items()},
            self.note,
        )

    def fitting(self, given: Mapping[str, Shape], scope: Mapping[str, Shape]) -> dict[str, Adapter]:
        """The adapters whose shapes fit."""
        return {k: a for k, a in self.adapters.items() if a.fits(given[k], scope[k])}


def applicable(
    starts: Sequence[NeutralStart],
    given: Mapping[str, Shape],
    scope: Mapping[str, Shape],
    leave: Sequence[str],
) -> list[NeutralStart]:
    """Those that apply to this transfer.

    Args:
        starts: what the target offers.
        given: target key -> shape of what the source has for it.
        scope: target key within the parts -> its shape.
        leave: the caller's patterns on target keys.

    Example:
        >>> start = NeutralStart(("gate.bias",), {}, {}, "")
        >>> scope = {"gate.bias": (1,)}
        >>> len(applicable([start], {}, scope, [])), len(applicable([start], {}, scope, ["gate.*"]))
        (1, 0)
    """
    free = {key for key in scope if not any(fnmatchcase(key, pattern) for pattern in leave)}
    return [
        start
        for start in starts
        if free.issuperset(start.keys)
        and given.keys().isdisjoint(start.keys)
        and (free & given.keys()).issuperset(start.adapters)
    ]
