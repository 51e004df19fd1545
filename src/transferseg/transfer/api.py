"""`transfer_weights`: any source into a model, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Protocol, cast, runtime_checkable

from torch import nn

from transferseg.errors import TransferError, some, unknown_name
from transferseg.spec import ModelSpec
from transferseg.transfer.adapters import ADAPTERS, Adapter, InputChannels, class_rows
from transferseg.transfer.apply import apply_plan
from transferseg.transfer.naming import rename_keys, whole_name
from transferseg.transfer.plan import (
    Declarations,
    TransferPlan,
    make_plan,
    within,
)
from transferseg.transfer.reading import Source, SourceWeights, read_source, unwrapped
from transferseg.transfer.report import TransferReport
from transferseg.transfer.sources import ENCODER_PREFIX, SOURCES, SourceFormat, detect
from transferseg.transfer.starts import NeutralStart


@runtime_checkable
class TransferTarget(Protocol):
    """A target that says how some of its tensors take another layout's."""

    spec: ModelSpec

    def transfer_adapters(self) -> Mapping[str, Adapter]:
        """Exact target key -> adapter, used where shapes differ and the adapter fits."""
        ...

    def transfer_stem(self) -> tuple[str, ...]:
        """Target keys of the convolutions that read the image."""
        ...

    def transfer_rows(self) -> tuple[str, ...]:
        """Target keys of the tensors that have one row a class."""
        ...

    def transfer_starts(self) -> Sequence[NeutralStart]:
        """How tensors begin that a source of another layout lacks, so that the function is kept."""
        ...

    def transfer_unused(self) -> tuple[str, ...]:
        """Keys of the encoder's library that the encoder does without (heads)."""
        ...


def transfer_weights(
    source: Source,
    model: nn.Module,
    *,
    parts: Sequence[str] | str = ("encoder",),
    rename: Mapping[str, str] | None = None,
    leave: Sequence[str] | str = (),
    unused: Sequence[str] | str = (),
    adapt: Mapping[str, str | Adapter] | None = None,
    input_channels: InputChannels | None = None,
    classes: Mapping[str, str] | None = None,
    source_format: str | None = None,
    entry: str | None = None,
) -> TransferReport:
    """Move weights into a model, with every tensor loaded, adapted or declared; or change nothing.

    The source's names are recognised (ours, timm's and torchvision's). What a head's rows mean is
    taken from the class names and not from their order; a source without class names (a bare dict
    or file) is taken as it is, and the report says so.

    Args:
        source: a checkpoint folder or file, a dict of tensors, or a module; it is not changed.
        model: the target, changed in place.
        parts: the scope in the target: "encoder", "decoder", "head", "auxiliary_head", or longer
            prefixes of its keys.
        rename: regular expression, matched at the start of a source key -> replacement; applied
            before the source's names are recognised.
        leave: patterns (`*`) on target keys within the parts that stay as initialised.
        unused: patterns on source keys that go nowhere. Parts of our own checkpoints that were not
            asked for, and the classifier heads of timm's, are declared already.
        adapt: pattern on target keys -> adapter (a name in `ADAPTERS`, or an `Adapter`), for
            tensors whose shape differs or which the adapter fits.
        input_channels: how the first convolution takes another number of input channels.
        classes: source class name -> target class name, for heads, where they differ.
        source_format: a name in `SOURCES`, where recognition is not wanted.
        entry: which entry of a file to take where it holds several sets of weights, such as
            "student", or "ema" for a moving average; see `read_source`.

    Returns:
        What was done with every tensor; coverage by part.

    Raises:
        TransferError: anything undeclared, any rule or declaration that matches nothing; it names
            the keys, and neither the model nor the source was changed.
        CheckpointError: the source cannot be read.

    Example:
        >>> import transferseg as ts
        >>> classifier = ts.create_classifier("resnet10t", classes=14, in_channels=1)
        >>> model = ts.create_model("unet", "resnet10t", classes=["lung"], in_channels=1)
        >>> ts.transfer_weights(classifier, model).coverage["encoder"].fraction
        1.0
    """
    model = unwrapped(model)
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    if not parts:
        raise TransferError("parts= names nothing: give 'encoder', 'decoder', 'head' or prefixes.")
    weights = read_source(source, entry=entry)
    state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    shapes = {key: tuple(value.shape) for key, value in weights.tensors.items()}
    rename = dict(rename or {})
    leave = (leave,) if isinstance(leave, str) else tuple(leave)
    rows = _class_rows(model, parts, leave)
    renamed = rename_keys(list(shapes), rename)
    found = _source_format(source_format, renamed, state, weights)
    found.check(renamed.values(), weights.metadata, _arguments(model))
    chosen = _with_target(model, found, renamed.values())
    declared = Declarations(
        rename=rename,
        leave=leave,
        unused=(unused,) if isinstance(unused, str) else tuple(unused),
        adapt={pattern: _adapter(given) for pattern, given in (adapt or {}).items()},
        offered=_offered(model, input_channels),
        forced=_head_rows(weights.spec, model, rows, classes),
        starts=model.transfer_starts() if isinstance(model, TransferTarget) else (),
    )
    plan = make_plan(shapes, state, parts=parts, source_format=chosen, declared=declared)
    if input_channels is not None:
        _check_channels_used(plan, input_channels, model)
    apply_plan(plan, weights.tensors, model, origin=weights.origin)
    notes = (*weights.remarks, *_head_notes(weights.spec, model, rows, plan))
    return TransferReport(plan, weights.origin, chosen.name, weights.peeled, notes)


def _arguments(model: nn.Module) -> Mapping[str, Any]:
    """What timm's builder was given for the target's encoder."""
    options = model.spec.encoder_options if isinstance(model, TransferTarget) else {}
    arguments: Mapping[str, Any] = options.get("arguments", {})
    return arguments


def _adapter(given: str | Adapter) -> Adapter:
    if isinstance(given, Adapter):
        return given
    if given not in ADAPTERS:
        raise TransferError(unknown_name("adapter", given, ADAPTERS))
    return ADAPTERS[given]


def _source_format(
    name: str | None,
    renamed: Mapping[str, str],
    state: Mapping[str, tuple[int, ...]],
    weights: SourceWeights,
) -> SourceFormat:
    if name is not None:
        if name not in SOURCES:
            raise TransferError(unknown_name("source format", name, SOURCES))
        return SOURCES[name]
    found = detect(list(renamed.values()), list(state))
    if found is None:
        raise TransferError(
            f"{weights.origin}: no key becomes a key of the target under any known naming "
            f"({', '.join(SOURCES)}). The source's keys begin: {some(renamed.values())}. The "
            f"target's: {some(state)}. Say how they correspond with rename=; nothing was changed."
        )
    return found


def _offered(model: nn.Module, input_channels: InputChannels | None) -> dict[str, Adapter]:
    if not isinstance(model, TransferTarget):
        if input_channels is not None:
            raise TransferError(
                f"input_channels= needs a transferseg model, got {type(model).__name__}; "
                "use adapt={key: adapter name}."
            )
        return {}
    offered = dict(model.transfer_adapters())
    if input_channels is not None:
        adapter = _adapter(f"{input_channels}_input_channels")
        offered |= dict.fromkeys(model.transfer_stem(), adapter)
    return offered


def _with_target(model: nn.Module, chosen: SourceFormat, keys: Collection[str]) -> SourceFormat:
    """The format's table, and the heads that this encoder's library has and the encoder has not."""
    if not isinstance(model, TransferTarget):
        return chosen
    heads = {ENCODER_PREFIX + key for key in model.transfer_unused()}
    given = tuple(key for key in keys if whole_name(chosen.target_key(key)) in heads)
    return replace(chosen, unused=(*chosen.unused, *given))


def _check_channels_used(plan: TransferPlan, how: InputChannels, model: nn.Module) -> None:
    name = f"{how}_input_channels"
    if not any(move.adapter is not None and move.adapter.name == name for move in plan.moves):
        stem = model.transfer_stem() if isinstance(model, TransferTarget) else ()
        raise TransferError(
            f"nothing was changed: input_channels={how!r} adapts nothing, since {some(stem)} has "
            "the same input channels on both sides; leave it out."
        )


def _class_rows(model: nn.Module, parts: Sequence[str], leave: Sequence[str]) -> tuple[str, ...]:
    """Keys with one row a class that this transfer fills."""
    keys = model.transfer_rows() if isinstance(model, TransferTarget) else ()
    asked = [key for key in keys if within(key, parts)]
    return tuple(key for key in asked if not any(fnmatchcase(key, p) for p in leave))


def _head_notes(
    source_spec: ModelSpec | None, model: nn.Module, rows: Sequence[str], plan: TransferPlan
) -> tuple[str, ...]:
    """What to know of rows of a head that were moved."""
    if not any(move.target in rows for move in plan.moves):
        return ()
    if source_spec is None:
        return ("head rows copied by position: the source names no classes",)
    modes = source_spec.mode, cast(TransferTarget, model).spec.mode
    if len(set(modes)) == 1:
        return ()
    return (f"head rows of a {modes[0]} model in a {modes[1]} one: other probabilities",)


def _head_rows(
    source_spec: ModelSpec | None,
    model: nn.Module,
    rows: Sequence[str],
    classes: Mapping[str, str] | None,
) -> dict[str, Adapter]:
    """The adapter for every tensor with one row a class, where class names differ."""
    if not rows or source_spec is None:
        if classes:
            raise TransferError(
                "classes= needs a head among parts=, and class names on both sides "
                "(a source that transferseg saved)."
            )
        return {}
    target = cast(TransferTarget, model).spec
    if source_spec.classes == target.classes and not classes:
        return {}
    return dict.fromkeys(rows, class_rows(source_spec.classes, target.classes, classes))
