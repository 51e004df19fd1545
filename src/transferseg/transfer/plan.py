"""rename -> match -> plan -> check: from two listings of shapes to a checked plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod

from transferseg.errors import TransferError, did_you_mean, some
from transferseg.transfer.adapters import Adapter, Shape
from transferseg.transfer.naming import Named, name_keys, rename_keys
from transferseg.transfer.sources import PARTS, SourceFormat
from transferseg.transfer.starts import NeutralStart, Start, applicable


@dataclass(frozen=True)
class Move:
    """One tensor of the source, or several joined, that becomes one tensor of the target.

    Attributes:
        source: key in the source.
        target: key in the target.
        source_shape: its shape there, of all that are joined.
        target_shape: its shape here.
        adapter: None when it is copied as it is.
        joined: further keys in the source, behind it along the first axis.
    """

    source: str
    target: str
    source_shape: Shape
    target_shape: Shape
    adapter: Adapter | None = None
    joined: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """All of its keys in the source."""
        return (self.source, *self.joined)

    @property
    def covered(self) -> int:
        """How many values of the target come from the source."""
        if self.adapter is None:
            return prod(self.target_shape)
        return self.adapter.covers(self.source_shape, self.target_shape)


@dataclass(frozen=True)
class TransferPlan:
    """Where every tensor of the source and of the target's parts goes; built from shapes alone.

    Attributes:
        parts: the scope in the target, as prefixes of its keys.
        moves: tensors that are loaded, as they are or adapted.
        left: target keys within the parts that stay as initialised -> the declaration.
        unused: source keys that go nowhere -> the declaration.
        target: shapes of the target's tensors within the parts.
        start: of those left, the ones that are set -> what they begin as.
    """

    parts: tuple[str, ...]
    moves: tuple[Move, ...]
    left: Mapping[str, str]
    unused: Mapping[str, str]
    target: Mapping[str, Shape]
    start: Mapping[str, Start] = field(default_factory=dict)


@dataclass(frozen=True)
class Declarations:
    """What the caller and the source's format declare; patterns are shell-style (`*`, `?`).

    Attributes:
        rename: regular expression on source keys, matched at their start -> replacement.
        leave: patterns on target keys that stay as initialised.
        unused: patterns on source keys that go nowhere.
        adapt: pattern on target keys -> adapter, used where the shape differs or the adapter fits.
        offered: exact target key -> adapter that the target's own layout offers when its shape
            differs.
        forced: exact target key -> adapter used whether or not the shape differs.
        starts: how what the source's layout lacks begins, used where it does lack it.
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    leave: Sequence[str] = ()
    unused: Sequence[str] = ()
    adapt: Mapping[str, Adapter] = field(default_factory=dict)
    offered: Mapping[str, Adapter] = field(default_factory=dict)
    forced: Mapping[str, Adapter] = field(default_factory=dict)
    starts: Sequence[NeutralStart] = ()


def within(key: str, parts: Sequence[str]) -> bool:
    """Whether a key lies in one of the parts (`"encoder"` holds `encoder.` and what follows)."""
    return any(key == part or key.startswith(f"{part}.") for part in parts)


def make_plan(
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    *,
    parts: Sequence[str],
    source_format: SourceFormat,
    declared: Declarations,
) -> TransferPlan:
    """Decide where every tensor goes, and refuse anything that nobody declared.

    Args:
        source: shapes of the source's tensors by key.
        target: shapes of the target's tensors by key.
        parts: the scope in the target, prefixes of its keys: "encoder", "decoder.blocks.0".
        source_format: the source's naming scheme.
        declared: renaming, left-overs and adapters.

    Raises:
        TransferError: listing every problem with its keys: parts that do not exist, rules and
            declarations that match nothing, two keys that become one, shapes that differ without
            an adapter, target tensors that nothing fills, source tensors that go nowhere.

    Example:
        >>> from transferseg.transfer.sources import SOURCES
        >>> plan = make_plan(
        ...     {"conv1.weight": (8, 3, 7, 7), "fc.bias": (10,)},
        ...     {"encoder.model.conv1.weight": (8, 3, 7, 7)},
        ...     parts=["encoder"], source_format=SOURCES["timm"], declared=Declarations(),
        ... )
        >>> plan.moves[0].target, dict(plan.unused)
        ('encoder.model.conv1.weight', {'fc.bias': 'timm table: fc.*'})
    """
    for part in parts:
        if not any(within(key, [part]) for key in target):
            there = {key.split(".")[0] for key in target}
            raise TransferError(
                f"the target has no part {part!r}; it has {sorted(there)}."
                f"{did_you_mean(part, there)}"
            )
    renamed = rename_keys(list(source), declared.rename)
    asked = {key: source_format.target_key(name) for key, name in renamed.items()}
    named = name_keys(asked, source)
    names = named.names
    scope = {key: shape for key, shape in target.items() if within(key, parts)}
    declared = _with_adapters(declared, renamed, names, source_format)
    declared = _with_starts(declared, named.shapes, scope)
    problems: list[str] = []
    moves, kept = _match(named, scope, declared, problems)
    moved = {move.target for move in moves}
    left = _declare_left([key for key in scope if key not in moved], declared, source_format)
    used = {key for move in moves for key in move.sources}
    rest = {key: name for key, name in names.items() if key not in used}
    unused = _declare_unused(rest, renamed, parts, declared, source_format)
    problems += _left_over(scope, moved, left, kept, unused, rest, names)
    problems += _idle(declared, scope, source, moves)
    if problems:
        raise TransferError("nothing was changed:\n- " + "\n- ".join(problems))
    begun = {key: value for start in declared.starts for key, value in start.values.items()}
    return TransferPlan(tuple(parts), tuple(moves), left, unused, scope, begun)


def _with_adapters(
    declared: Declarations,
    renamed: Mapping[str, str],
    names: Mapping[str, str],
    source_format: SourceFormat,
) -> Declarations:
    """The adapters of the source's naming scheme, among the forced."""
    adapters = {names[key]: source_format.adapter_for(name) for key, name in renamed.items()}
    offered = declared.offered.get
    own = {name: one.beside(offered(name)) for name, one in adapters.items() if one is not None}
    return replace(declared, forced={**own, **declared.forced})


def _with_starts(
    declared: Declarations, given: Mapping[str, Shape], scope: Mapping[str, Shape]
) -> Declarations:
    """Only the starts that apply here, and their adapters among the forced."""
    starts = applicable(declared.starts, given, scope, declared.leave)
    adapters = {k: a for start in starts for k, a in start.fitting(given, scope).items()}
    return replace(declared, starts=starts, forced={**adapters, **declared.forced})


def _match(
    named: Named, scope: Mapping[str, Shape], declared: Declarations, problems: list[str]
) -> tuple[list[Move], set[str]]:
    """The moves, and the target keys whose own problem has been told already."""
    moves, told = [], set()
    for name in dict.fromkeys(named.names.values()):
        if name not in scope or any(fnmatchcase(name, p) for p in declared.leave):
            continue
        if name in named.broken:
            problems.append(f"{named.broken[name]}.")
            told.add(name)
            continue
        given, (key, *more) = named.shapes[name], named.sources[name]
        adapter = _adapter_for(name, given, scope[name], declared)
        if adapter is None and given != scope[name]:
            problems.append(
                f"{key!r} is {given}, {name!r} is {scope[name]}: name an adapter "
                f"(input_channels=, adapt={{{name!r}: ...}}), or leave={name!r}."
            )
            told.add(name)
        elif adapter is not None and not adapter.fits(given, scope[name]):
            problems.append(
                f"adapter {adapter.name!r} cannot make {key!r}, {given}, "
                f"into {name!r}, {scope[name]}."
            )
            told.add(name)
        else:
            moves.append(Move(key, name, given, scope[name], adapter, tuple(more)))
    return moves, told


def _adapter_for(name: str, source: Shape, target: Shape, declared: Declarations) -> Adapter | None:
    if name in declared.forced:
        return declared.forced[name]
    for pattern, adapter in declared.adapt.items():
        if fnmatchcase(name, pattern) and (source != target or adapter.fits(source, target)):
            return adapter
    if source == target:
        return None
    offered = declared.offered.get(name)
    return offered if offered is not None and offered.fits(source, target) else None


def _declare_left(
    missing: Sequence[str], declared: Declarations, source_format: SourceFormat
) -> dict[str, str]:
    left: dict[str, str] = {}
    for key in missing:
        for pattern in declared.leave:
            if fnmatchcase(key, pattern):
                left.setdefault(key, f"leave={pattern!r}")
        for start in declared.starts:
            if key in start.keys:
                left.setdefault(key, start.note)
        for pattern in source_format.leave:
            if fnmatchcase(key, pattern):
                left.setdefault(key, f"{source_format.name} files may lack {pattern}")
    return left


def _declare_unused(
    rest: Mapping[str, str],
    renamed: Mapping[str, str],
    parts: Sequence[str],
    declared: Declarations,
    source_format: SourceFormat,
) -> dict[str, str]:
    unused: dict[str, str] = {}
    for key, name in rest.items():
        for pattern in declared.unused:
            if fnmatchcase(key, pattern):
                unused.setdefault(key, f"unused={pattern!r}")
        if (why := source_format.why_unused(renamed[key])) is not None:
            unused.setdefault(key, why)
        for pattern in declared.leave:
            if fnmatchcase(name, pattern):
                unused.setdefault(key, f"its target stays as initialised: leave={pattern!r}")
        # Our own checkpoints name their parts, so a part that was not asked for is declared.
        part = name.split(".")[0]
        if part in PARTS and not any(within(asked, [part]) for asked in parts):
            unused.setdefault(key, f"part {part!r} was not asked for")
        elif part in PARTS and part not in parts and not within(name, parts):
            unused.setdefault(key, f"outside the parts {list(parts)}")
    return unused


def _left_over(
    scope: Mapping[str, Shape],
    moved: set[str],
    left: Mapping[str, str],
    told: set[str],
    unused: Mapping[str, str],
    rest: Mapping[str, str],
    names: Mapping[str, str],
) -> list[str]:
    problems = []
    unfilled = [key for key in scope if key not in moved and key not in left and key not in told]
    if unfilled:
        problems.append(
            f"{len(unfilled)} tensors of the target get nothing: {some(unfilled)}. Declare them "
            f"with leave=, or rename the source's keys, which begin {some(names, limit=3)}."
        )
    idle = [key for key in rest if key not in unused and names[key] not in told]
    if idle:
        problems.append(
            f"{len(idle)} tensors of the source go nowhere: {some(idle)}. Declare them with "
            "unused=, or rename them to keys of the target."
        )
    return problems


def _idle(
    declared: Declarations,
    scope: Mapping[str, Shape],
    source: Mapping[str, Shape],
    moves: Sequence[Move],
) -> list[str]:
    problems = []
    used = [k for m in moves for k in m.sources if any(fnmatchcase(k, p) for p in declared.unused)]
    if used:
        problems.append(
            f"unused= names tensors that are used: {some(used)}. To keep the target's own values, "
            "declare its keys with leave=."
        )
    adapters = {id(move.adapter) for move in moves}
    for pattern, adapter in declared.adapt.items():
        if id(adapter) not in adapters and any(fnmatchcase(key, pattern) for key in scope):
            problems.append(f"adapt={pattern!r} adapts nothing: no shape there differs.")
    for what, patterns, keys in (
        ("leave", declared.leave, list(scope)),
        ("unused", declared.unused, list(source)),
        ("adapt", list(declared.adapt), list(scope)),
    ):
        for pattern in patterns:
            if not any(fnmatchcase(key, pattern) for key in keys):
                problems.append(f"{what}={pattern!r} matches nothing.{did_you_mean(pattern, keys)}")
    return problems
