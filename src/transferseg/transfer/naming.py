"""Source keys become target keys: by the caller's rules, one to one, or several to one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transferseg.errors import TransferError, some
from transferseg.transfer.adapters import Shape

#: How a naming scheme writes that a tensor is one of several parts of its target.
_PART = re.compile(r"(.+)\[(\d+)/(\d+)\]")


def rename_keys(keys: Sequence[str], rules: Mapping[str, str]) -> dict[str, str]:
    r"""Apply regular expressions, each matched at the start of a key; the first that fits wins.

    Returns:
        source key -> renamed key.

    Raises:
        TransferError: a rule that matches no key, or two keys that become one.

    Example:
        >>> rename_keys(["backbone.conv1.weight"], {r"backbone\.": ""})
        {'backbone.conv1.weight': 'conv1.weight'}
    """
    renamed = {key: key for key in keys}
    idle = dict.fromkeys(rules, True)
    for key in keys:
        for rule, replacement in rules.items():
            if found := re.match(rule, key):
                renamed[key] = found.expand(replacement) + key[found.end() :]
                idle[rule] = False
                break
    if unmatched := [rule for rule, is_idle in idle.items() if is_idle]:
        raise TransferError(
            f"rename rules {unmatched} match no key of the source (rules are regular expressions "
            f"matched at the start of a key). Its keys begin: {some(keys)}."
        )
    refuse_collisions(renamed)
    return renamed


def refuse_collisions(renamed: Mapping[str, str]) -> None:
    """Refuse two source keys of the same name.

    Raises:
        TransferError: naming both.
    """
    first: dict[str, str] = {}
    for key, name in renamed.items():
        if name in first:
            raise TransferError(
                f"two source keys become one: {first[name]!r} and {key!r} both become {name!r}."
            )
        first[name] = key


def whole_name(name: str) -> str:
    """The target key in a name, whether it is of a whole tensor or of one of its parts.

    Example:
        >>> whole_name("attn.qkv.bias[2/3]"), whole_name("attn.qkv.bias")
        ('attn.qkv.bias', 'attn.qkv.bias')
    """
    found = _PART.fullmatch(name)
    return found[1] if found else name


@dataclass(frozen=True)
class Named:
    """Source keys by the target keys that they become.

    Attributes:
        names: source key -> target key; the parts of one tensor share it.
        sources: target key -> its source key, or its parts' in order.
        shapes: target key -> the shape that comes for it, parts one behind another.
        broken: target key -> why its parts make no tensor.
    """

    names: Mapping[str, str]
    sources: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, Shape]
    broken: Mapping[str, str]


def name_keys(names: Mapping[str, str], source: Mapping[str, Shape]) -> Named:
    """Sort source keys by target; a name that ends in "[i/n]" is part i, from 0, of n.

    Parts are joined along the first axis, in the order of their numbers: q, k and v of a
    transformer become one "qkv".

    Args:
        names: source key -> its name in the target.
        source: source key -> shape.

    Raises:
        TransferError: two source keys that become one.

    Example:
        >>> named = name_keys({"k": "qk[1/2]", "q": "qk[0/2]"}, {"k": (4, 8), "q": (4, 8)})
        >>> named.sources, named.shapes
        ({'qk': ('q', 'k')}, {'qk': (8, 8)})
    """
    refuse_collisions(names)
    grouped: dict[str, dict[tuple[int, int], str]] = {}
    for key, name in names.items():
        found = _PART.fullmatch(name)
        whole, part = (found[1], (int(found[2]), int(found[3]))) if found else (name, (0, 1))
        grouped.setdefault(whole, {})[part] = key
    sources, shapes, broken = {}, {}, {}
    for whole, parts in grouped.items():
        keys = [parts[part] for part in sorted(parts)]
        count = next(iter(parts))[1]
        if sorted(parts) != [(index, count) for index in range(count)]:
            broken[whole] = (
                f"{whole!r} is made of {count} tensors, but there are {some(keys)} alone"
            )
            continue
        first, *rest = (source[key] for key in keys)
        if any(not first or shape[1:] != first[1:] for shape in rest):
            broken[whole] = f"{some(keys)} cannot be joined: their shapes are {[first, *rest]}"
            continue
        sources[whole] = tuple(keys)
        shapes[whole] = (first[0] + sum(s[0] for s in rest), *first[1:]) if rest else first
    return Named({k: whole_name(n) for k, n in names.items()}, sources, shapes, broken)
