"""Layers of a network in families: those whose names differ in their numbers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from transferseg.transfer.adapters import Shape

#: What the tensors of a layer are called; any other tensor is a layer of its own.
LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

#: Of up to nine digits and without zeros before it: others would not come back as they were.
_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")
#: What stands for a number in a name; no name of a tensor has it.
_PLACE = "\0"
#: A layer: leaf -> shape; "" stands for the layer itself.
Leaves = dict[str, Shape]


def modules_of(shapes: Mapping[str, Shape]) -> dict[str, Leaves]:
    """Layer -> leaf -> shape; batch counters, which some files lack, apart.

    Example:
        >>> modules_of({"a.0.weight": (2,), "a.0.bias": (2,), "token": (1,)})
        {'a.0': {'weight': (2,), 'bias': (2,)}, 'token': {'': (1,)}}
    """
    modules: dict[str, Leaves] = {}
    for key, shape in shapes.items():
        name, _, leaf = key.rpartition(".")
        if leaf in LEAVES and name:
            modules.setdefault(name, {})[leaf] = shape
        else:
            modules.setdefault(key, {})[""] = shape
    return modules


@dataclass(frozen=True, eq=False)
class Family:
    """Layers whose names are one text with other numbers in it.

    Attributes:
        parts: the text between the numbers that vary.
        modules: the numbers, in the order of the source -> the layer's name and tensors.
    """

    parts: tuple[str, ...]
    modules: Mapping[tuple[int, ...], tuple[str, Leaves]]

    @property
    def names(self) -> list[str]:
        """Of its layers."""
        return [name for name, _ in self.modules.values()]

    @cached_property
    def text(self) -> str:
        """Its name, with `*` for the numbers that vary."""
        return "*".join(self.parts)

    @property
    def tokens(self) -> list[str]:
        """The components of its name; a zero byte stands for a number that varies."""
        return _PLACE.join(self.parts).split(".")

    @property
    def words(self) -> list[str]:
        """The components of its name without their numbers."""
        words = (_NUMBER.sub("", token.replace(_PLACE, "")) for token in self.tokens)
        return [word for word in words if word]

    @cached_property
    def _values(self) -> list[list[int]]:
        """The values of each number, rising."""
        columns = zip(*self.modules, strict=True)
        return [sorted(set(column)) for column in columns]

    @cached_property
    def _ranked(self) -> dict[tuple[int, ...], tuple[str, Leaves]]:
        """The layers by the ranks of their numbers, so that 1, 2, 3 is like 0, 1, 2."""
        ranks = [{value: rank for rank, value in enumerate(values)} for values in self._values]
        return {
            tuple(rank[n] for rank, n in zip(ranks, numbers, strict=True)): module
            for numbers, module in self.modules.items()
        }

    def fits(self, other: Family) -> bool:
        """Whether the other has the same layers, number for number and shape for shape."""
        ours, theirs = self._ranked, other._ranked
        if len(self.parts) != len(other.parts) or ours.keys() != theirs.keys():
            return False
        return all(_shapes(ours[ranks][1]) == _shapes(theirs[ranks][1]) for ranks in ours)

    def names_with(self, other: Family) -> list[tuple[str, str]]:
        """Names of its layers with those of another that fits."""
        return [(module[0], other._ranked[ranks][0]) for ranks, module in self._ranked.items()]

    def rules_to(self, other: Family, *, cut: bool) -> list[tuple[str, str]]:
        """Pattern and replacement from its names to those of another that fits.

        Args:
            other: a family that fits.
            cut: whether components at the end that are the same on both sides are left out.
        """
        if self._values != other._values:  # other numbers: each layer has its own rule
            names = self.names_with(other)
            both = [(name.split("."), wanted.split(".")) for name, wanted in names]
            return [_rule(old, new, cut=cut) for old, new in both]
        return [_rule(self.tokens, other.tokens, cut=cut)]


def _shapes(leaves: Leaves) -> Leaves:
    return {leaf: shape for leaf, shape in leaves.items() if leaf != "num_batches_tracked"}


def _rule(old: list[str], new: list[str], *, cut: bool) -> tuple[str, str]:
    whole = True
    while cut and old and new and old[-1] == new[-1]:
        old, new, whole = old[:-1], new[:-1], False
    pattern = r"\.".join(re.escape(token).replace(_PLACE, r"(\d+)") for token in old)
    numbers = iter(range(1, 99))
    replacement = re.sub(_PLACE, lambda _: rf"\g<{next(numbers)}>", ".".join(new))
    if not whole:  # components follow
        return pattern + (r"\." if old else ""), replacement + ("." if new else "")
    return pattern + r"(?=\.|$)", replacement


def families(modules: Mapping[str, Leaves], *, literal: int) -> list[Family]:
    """Layers in families, in the order of their first.

    Args:
        modules: layer -> leaf -> shape.
        literal: how many numbers at the end of a name are part of its text.

    Example:
        >>> found = families({"a.0.n1": {"": (2,)}, "a.1.n1": {"": (2,)}, "b": {}}, literal=0)
        >>> [family.text for family in found]
        ['a.*.n1', 'b']
    """
    groups: dict[tuple[str, ...], dict[tuple[int, ...], tuple[str, Leaves]]] = {}
    for name, leaves in modules.items():
        pieces = _NUMBER.split(name)  # text, number, text, ..., text
        free = max(0, len(pieces) // 2 - literal)
        text = (*pieces[: 2 * free : 2], "".join(pieces[2 * free :]))
        numbers = tuple(int(number) for number in pieces[1 : 2 * free : 2])
        groups.setdefault(text, {})[numbers] = (name, leaves)
    return [_folded(text, members) for text, members in groups.items()]


def _folded(text: tuple[str, ...], members: Mapping[tuple[int, ...], tuple[str, Leaves]]) -> Family:
    """A family in which a number that is always the same is part of the text."""
    parts, kept = [text[0]], []
    for index, piece in enumerate(text[1:]):
        values = {numbers[index] for numbers in members}
        if len(values) == 1:
            parts[-1] += f"{values.pop()}{piece}"
        else:
            parts.append(piece)
            kept.append(index)
    folded = {tuple(numbers[i] for i in kept): module for numbers, module in members.items()}
    return Family(tuple(parts), folded)
