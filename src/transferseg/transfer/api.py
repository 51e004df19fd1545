"""`transfer_weights`: any source into a model, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias, cast, runtime_checkable

from torch import nn

from transferseg.errors import TransferError, some, unknown_name
from transferseg.spec import ModelSpec
from transferseg.transfer.adapters import ADAPTERS, Adapter, class_rows
from transferseg.transfer.files import Source, SourceWeights, read_source
from transferseg.transfer.plan import Declarations, apply_plan, make_plan, rename_keys, within
from transferseg.transfer.report import TransferReport
from transferseg.transfer.sources import SOURCES, SourceFormat, detect

InputChannels: TypeAlias = Literal["sum", "mean", "repeat", "first"]


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


def transfer_weights(
    source: Source,
    model: nn.Module,
    *,
    parts: Sequence[str] = ("encoder",),
    rename: Mapping[str, str] | None = None,
    leave: Sequence[str] | str = (),
    unused: Sequence[str] | str = (),
    adapt: Mapping[str, str | Adapter] | None = None,
    input_channels: InputChannels | None = None,
    classes: Mapping[str, str] | None = None,
    source_format: str | None = None,
) -> TransferReport:
    """Move weights into a model, with every tensor loaded, adapted or declared; or change nothing.

    The source's names are recognised (ours, timm's and torchvision's); what a head's rows mean is
    taken from the class names, never from their order.

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
            tensors whose shape differs.
        input_channels: how the first convolution takes another number of input channels.
        classes: source class name -> target class name, for heads, where they differ.
        source_format: a name in `SOURCES`, where recognition is not wanted.

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
    weights = read_source(source)
    state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    shapes = {key: tuple(value.shape) for key, value in weights.tensors.items()}
    rename = dict(rename or {})
    chosen = _source_format(source_format, rename_keys(list(shapes), rename), state, weights)
    declared = Declarations(
        rename=rename,
        leave=(leave,) if isinstance(leave, str) else tuple(leave),
        unused=(unused,) if isinstance(unused, str) else tuple(unused),
        adapt={pattern: _adapter(given) for pattern, given in (adapt or {}).items()},
        offered=_offered(model, input_channels),
        forced=_head_rows(weights.spec, model, parts, classes),
    )
    plan = make_plan(shapes, state, parts=parts, source_format=chosen, declared=declared)
    apply_plan(plan, weights.tensors, model)
    return TransferReport(plan, weights.origin, chosen.name, weights.peeled)


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


def _head_rows(
    source_spec: ModelSpec | None,
    model: nn.Module,
    parts: Sequence[str],
    classes: Mapping[str, str] | None,
) -> dict[str, Adapter]:
    """The adapter for every tensor with one row a class, where class names differ."""
    rows = model.transfer_rows() if isinstance(model, TransferTarget) else ()
    asked = [key for key in rows if within(key, parts)]
    if not asked or source_spec is None:
        if classes:
            raise TransferError(
                "classes= needs a head among parts=, and class names on both sides "
                "(a source that transferseg saved)."
            )
        return {}
    target = cast(TransferTarget, model).spec
    if source_spec.classes == target.classes and not classes:
        return {}
    return dict.fromkeys(asked, class_rows(source_spec.classes, target.classes, classes))
