"""Propose rename rules where nothing fits; to be read and passed in, never applied."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from torch import nn

from transferseg.errors import TransferError, some
from transferseg.transfer.adapters import Shape
from transferseg.transfer.families import Family, families, modules_of
from transferseg.transfer.naming import rename_keys
from transferseg.transfer.plan import within
from transferseg.transfer.reading import Source, read_listing, unwrapped
from transferseg.transfer.sources import BESIDE, ENCODER_PREFIX

#: Parts of names of momentum copies; the network itself is preferred where both are in a file.
_COPIES = ("encoder_k", "momentum", "teacher", "target", "ema")
#: How like a name must be where names decide, and how much more so than the next.
_LIKE, _MARGIN = 0.6, 0.1


@dataclass(frozen=True)
class SuggestedRule:
    """One rule of a suggestion.

    Attributes:
        pattern: regular expression, matched at the start of a source key.
        replacement: what takes the place of the match.
        tensors: how many tensors of the source it brings to a tensor of the target.
        example: one of their keys, before and after.
    """

    pattern: str
    replacement: str
    tensors: int
    example: tuple[str, str]


@dataclass(frozen=True)
class RuleSuggestion:
    """Rules that may bring a source's names to a target's; for a person to read and pass in.

    Attributes:
        rules: in the order in which they must be tried.
        matched: source key -> target key, under the rules.
        unmatched_source: tensors of the source that find no place.
        unmatched_target: tensors of the target, within the parts, that get nothing.
        ambiguous: what fits several places equally well, so that nothing is proposed for it.
    """

    rules: tuple[SuggestedRule, ...]
    matched: Mapping[str, str]
    unmatched_source: tuple[str, ...]
    unmatched_target: tuple[str, ...]
    ambiguous: tuple[str, ...]

    @property
    def rename(self) -> dict[str, str]:
        """The rules as `transfer_weights(rename=...)` takes them."""
        return {rule.pattern: rule.replacement for rule in self.rules}

    def to_text(self) -> str:
        """The suggestion for reading."""
        lines = [f"{len(self.matched)} tensors would find a place; nothing was loaded."]
        for rule in self.rules:
            lines.append(f"  {rule.pattern!r}: {rule.replacement!r},  # {rule.tensors} tensors")
            lines.append(f"    # {rule.example[0]} -> {rule.example[1]}")
        for title, keys in (
            ("of the source without a place", self.unmatched_source),
            ("of the target without a source", self.unmatched_target),
        ):
            if keys:
                lines.append(f"{len(keys)} {title}: {some(keys)}")
        return "\n".join([*lines, *(f"ambiguous: {line}" for line in self.ambiguous)])

    __str__ = to_text


def suggest_rules(
    source: Source,
    target: nn.Module,
    *,
    parts: Sequence[str] | str = ("encoder",),
    entry: str | None = None,
) -> RuleSuggestion:
    r"""Rename rules that may bring a source's names to a target's, by names, shapes and order.

    Layers are compared in families: those whose names differ in their numbers alone. A family of
    the source belongs to one of the target where all shapes agree; among several such the one of
    the most similar name, if it is clearly so, else none. Nothing is loaded: read the rules, and
    pass them to `transfer_weights(rename=suggestion.rename)`, which checks everything.

    Args:
        source: as `read_source` takes it; no tensor is read.
        target: the model that would get the weights.
        parts: the scope in the target, as for `transfer_weights`.
        entry: as `read_source` takes it.

    Raises:
        CheckpointError: the source cannot be read.
        TransferError: the target has no such part.

    Example:
        >>> target = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))})
        >>> source = {f"net.layers.{k}": v for k, v in target["encoder"].state_dict().items()}
        >>> suggest_rules(source, target).rename
        {'net\\.layers\\.': 'encoder.'}
    """
    shapes = read_listing(source, entry=entry).shapes
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    state = {key: tuple(value.shape) for key, value in unwrapped(target).state_dict().items()}
    scope = {key: shape for key, shape in state.items() if within(key, parts)}
    if not scope:
        there = sorted({key.split(".")[0] for key in state})
        raise TransferError(f"the target has none of the parts {list(parts)}; it has {there}.")
    beside = (pattern.removesuffix("*") for pattern in BESIDE)
    short = all(key.startswith((ENCODER_PREFIX, *beside)) for key in scope)
    # timm's names, so that what is said of timm's files (heads that go nowhere) applies
    wanted = {key.removeprefix(ENCODER_PREFIX) if short else key: s for key, s in scope.items()}
    pairs, ambiguous = _pair(_without_copies(shapes), wanted)
    matched = _matched(pairs, shapes, wanted)
    rules = _rules(pairs, matched, list(shapes))
    found = set(matched.values())
    return RuleSuggestion(
        rules,
        matched,
        tuple(key for key in shapes if key not in matched),
        tuple(key for key in wanted if key not in found),
        tuple(ambiguous),
    )


def _without_copies(shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
    kept = {key: shape for key, shape in shapes.items() if not set(key.split(".")) & set(_COPIES)}
    return kept or shapes


def _pair(
    source: Mapping[str, Shape], target: Mapping[str, Shape]
) -> tuple[list[tuple[Family, Family]], list[str]]:
    """Families that belong together, and what is undecided between several."""
    rest, wanted = modules_of(source), modules_of(target)
    pairs: list[tuple[Family, Family]] = []
    for name in [name for name in rest if rest[name] == wanted.get(name)]:  # already in place
        one = families({name: rest.pop(name)}, literal=99)[0]
        wanted.pop(name)
        pairs.append((one, one))
    undecided: dict[str, list[str]] = {}
    for literal in (0, 1, 2, 99):  # how many of a name's last numbers are taken as part of it
        ours, theirs = families(rest, literal=literal), families(wanted, literal=literal)
        fitting = {one: [other for other in theirs if one.fits(other)] for one in ours}
        for one, others in fitting.items():
            chosen = _best(one, others, fitting)
            if chosen is not None:
                pairs.append((one, chosen))
                for name in one.names:
                    rest.pop(name)
                for name in chosen.names:
                    wanted.pop(name)
            elif others:
                undecided.setdefault(one.text, [other.text for other in others])
    lines = [
        f"{text} fits {some(others, limit=4)}"
        for text, others in undecided.items()
        if any(family.text == text for n in (0, 1, 2, 99) for family in families(rest, literal=n))
    ]
    return pairs, lines


def _best(
    one: Family, others: Sequence[Family], fitting: Mapping[Family, Sequence[Family]]
) -> Family | None:
    """The family that this one belongs to, if each is clearly the best for the other."""
    chosen = _clear(one, others)
    if chosen is None:
        return None
    rivals = [family for family, options in fitting.items() if chosen in options]
    return chosen if _clear(chosen, rivals) == one else None


def _clear(one: Family, others: Sequence[Family]) -> Family | None:
    if len(others) < 2:
        return others[0] if others else None
    ranked = sorted(others, key=lambda other: _likeness(one, other), reverse=True)
    first, second = ranked[:2]
    tails = {tuple(family.tokens[1:]) for family in ranked[:2]}
    twins = len(tails) == 1 and len(first.tokens) > 1  # two networks of one kind, side by side
    best = _likeness(one, first)
    clear = best >= _LIKE and best - _likeness(one, second) >= _MARGIN
    return first if clear and not twins else None


def _likeness(one: Family, other: Family) -> float:
    """How alike two names are, their numbers aside, 0 to 1; most at their ends."""
    words, others = one.words, other.words
    whole = SequenceMatcher(None, ".".join(words), ".".join(others)).ratio()
    last = SequenceMatcher(None, "".join(words[-1:]), "".join(others[-1:])).ratio()
    return (whole + last) / 2


def _matched(
    pairs: Sequence[tuple[Family, Family]],
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
) -> dict[str, str]:
    """Source key -> target key, tensor by tensor."""
    names = {a: b for one, other in pairs for a, b in one.names_with(other)}
    keys = {}
    for name, wanted in names.items():
        for key in (name, *(f"{name}.{leaf}" for leaf in modules_of(source).get(name, {}))):
            renamed = wanted + key.removeprefix(name)
            if key in source and renamed in target:
                keys[key] = renamed
    return keys


def _rules(
    pairs: Sequence[tuple[Family, Family]], matched: Mapping[str, str], keys: Sequence[str]
) -> tuple[SuggestedRule, ...]:
    """The fewest rules that do it: a changed beginning of names where that is all, else in full."""
    for cut in (True, False):
        found = {rule for one, other in pairs for rule in one.rules_to(other, cut=cut)}
        chosen = {old: new for old, new in found if old != re.escape(new)}
        if cut is False or any(old == re.escape(new) for old, new in found):
            # a name that stays needs a rule of its own only where another would change it
            chosen = dict(found)
        ordered = dict(sorted(chosen.items(), key=lambda rule: (-len(rule[0]), rule[0])))
        for rules in (_pruned(ordered, matched, keys), ordered):
            if _does(rules, matched, keys):
                return _described(rules, matched)
    return ()


def _pruned(
    rules: Mapping[str, str], matched: Mapping[str, str], keys: Sequence[str]
) -> dict[str, str]:
    """Without the rules that change nothing and guard nothing."""
    kept = dict(rules)
    for old, new in rules.items():
        fewer = {key: value for key, value in kept.items() if key != old}
        if old == re.escape(new) and _does(fewer, matched, keys):
            kept = fewer
    return kept


def _does(rules: Mapping[str, str], matched: Mapping[str, str], keys: Sequence[str]) -> bool:
    try:
        renamed = rename_keys(keys, rules)
    except TransferError:
        return False
    return all(renamed[key] == wanted for key, wanted in matched.items())


def _described(rules: Mapping[str, str], matched: Mapping[str, str]) -> tuple[SuggestedRule, ...]:
    """Each rule with the tensors that it, being the first to match, brings to their places."""
    first = {key: next((rule for rule in rules if re.match(rule, key)), None) for key in matched}
    counts = Counter(first.values())
    examples = {rule: key for key, rule in reversed(first.items())}
    return tuple(
        SuggestedRule(old, new, counts[old], (examples[old], matched[examples[old]]))
        for old, new in rules.items()
        if old in examples
    )
