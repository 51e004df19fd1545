"""How what a target has over another layout of itself starts, so that the function is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from transferseg.transfer.adapters import Adapter, Shape


@dataclass(frozen=True)
class NeutralStart:
    """Tensors of the target that a source of another layout lacks, and how they begin neutral.

    It applies where the source has none of them, has every tensor that is to be adapted, and all
    are within the transfer's parts; a target key that the caller declared with `leave=` takes it
    out. Then the tensors are declared as left, those in `values` are set, and the adapters are used
    where the shapes fit.

    Attributes:
        keys: the tensors of the target that the source may lack.
        values: key -> the constant that it is set to; the others stay as initialised.
        adapters: key of another tensor of the target -> how it makes up for these.
        note: what they begin as, for the report.

    Example:
        >>> start = NeutralStart(("gate.bias",), {"gate.bias": 2.0}, {}, "gate half open")
        >>> start.under("decoder.").values
        {'decoder.gate.bias': 2.0}
    """

    keys: tuple[str, ...]
    values: Mapping[str, float]
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
