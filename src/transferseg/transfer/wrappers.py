"""Find the weights in what a training script saved, and say what else there was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from transferseg.errors import CheckpointError, some, unknown_name
from transferseg.transfer.averages import (
    EMA_BUFFERS,
    EMA_ENTRIES,
    SWAPPED,
    TWO_SETS,
    average_buffers,
    count_of_averages,
    exchanged,
)
from transferseg.transfer.inert import Inert, OddTensor, Stored, TensorInfo

#: Entries in which training scripts store the weights, in the order in which they are looked for;
#: of a self-supervised pair the teacher, which is what its authors evaluate.
WEIGHT_ENTRIES = ("state_dict", "model_state_dict", "model", "module", "net", "teacher", "student")
#: Prefixes that wrappers of a module put before every key (DataParallel and DDP, torch.compile).
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
#: Names under which a LightningModule holds its network; prefixes of every key then.
LIGHTNING_PREFIXES = ("model.", "net.", "network.")

_LIGHTNING = "pytorch-lightning_version"
_SELF_SUPERVISED = ("teacher", "student")
_DEEPEST = 8
_MOST_NODES = 20_000
_MOST_ENTRIES = 64


@dataclass(frozen=True)
class Found:
    """The weights of a file, and what was around them.

    Attributes:
        tensors: key -> tensor, or its description.
        peeled: the wrappers that were taken off, outermost first.
        others: names of the entries beside the weights.
        entries: those of them that `entry=` could choose instead.
        metadata: the plain values among the others.
        notes: sentences on which set of weights is which.
    """

    tensors: Mapping[str, Any]
    peeled: tuple[str, ...]
    others: tuple[str, ...]
    entries: tuple[str, ...]
    metadata: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def find_weights(values: Mapping[Any, Any], origin: str, *, entry: str | None = None) -> Found:
    """The weights in a dict as it was saved, without its wrappers.

    Args:
        values: names -> tensors (or descriptions), or entries one of which holds the weights.
        origin: what an error calls the source.
        entry: which entry to take, or which network of those that the tensors' names begin with;
            "ema" stands for any of `EMA_ENTRIES`, in a file of mmengine's EMAHook for `state_dict`,
            the average there; "ema_" for the buffers of mmcv's.

    Raises:
        CheckpointError: no weights, no such entry, other values among the tensors, tensors that are
            no plain arrays of numbers; it names them.

    Example:
        >>> import torch
        >>> saved = {"model": {"module.w": torch.ones(1)}, "ema": {"w": torch.ones(1)}, "epoch": 3}
        >>> found = find_weights(saved, "run.pth")
        >>> list(found.tensors), found.peeled, found.entries
        (['w'], ('model', 'module.'), ('ema',))
    """
    if entry is not None and not isinstance(entry, str):
        raise CheckpointError(f"{origin}: entry= is the name of an entry, got {entry!r}.")
    peeled: list[str] = []
    beside: dict[str, Any] = {}
    swapped = exchanged(values)
    wanted = "state_dict" if swapped and entry == "ema" else entry
    while len(peeled) < _DEEPEST:
        taken = _entry(values, wanted)
        if taken is None:
            break
        if entry is None:
            _refuse_loose(values, taken, origin)
        if wanted is not None and taken in _names(wanted):
            wanted = None
        beside |= {str(name): value for name, value in values.items() if name != taken}
        peeled.append(taken)
        values = values[taken]
    choices = tuple(name for name, value in beside.items() if _holds_tensors(value))
    networks = _networks(values)
    if wanted is not None and wanted not in networks and wanted != EMA_BUFFERS:
        dicts = (str(k) for k, v in values.items() if isinstance(v, Mapping))
        buffers = [EMA_BUFFERS] if any(str(k).startswith(EMA_BUFFERS) for k in values) else []
        known = [*choices, *peeled, *dicts, *networks, *buffers]
        raise CheckpointError(f"{origin}: {unknown_name('entry', wanted, known)}")
    tensors, extra = _weights(values, origin)
    tensors, second = _one_set(tensors, wanted, origin)
    if wanted == EMA_BUFFERS:
        peeled.append(EMA_BUFFERS)
    elif wanted is not None:  # one of the networks; the others are told as entries are
        tensors = {name: tensors[key] for name, key in networks[wanted].items()}
        peeled.append(f"{wanted}.")
        extra += [name for name in networks if name != wanted]
    tensors, prefixes = _without_prefixes(tensors, peeled, lightning=_LIGHTNING in beside)
    others = tuple(n if n.isprintable() else ascii(n) for n in (*beside, *extra, *second))
    entries = tuple(name for name in choices if name in (*WEIGHT_ENTRIES, *EMA_ENTRIES))
    notes = (SWAPPED,) * swapped + (TWO_SETS,) * (EMA_BUFFERS in second)
    return Found(tensors, (*peeled, *prefixes), others, entries, _plain_values(beside), notes)


def _one_set(
    tensors: Mapping[str, Any], wanted: str | None, origin: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tensors without those of a moving average among them, and what was left out."""
    if count := count_of_averages(tensors):
        return {name: value for name, value in tensors.items() if name != count}, (count,)
    buffers = average_buffers(tensors)
    if wanted == EMA_BUFFERS and not buffers:
        raise CheckpointError(
            f"{origin}: entry={EMA_BUFFERS!r} takes the buffers of mmcv's EMAHook, such as "
            "ema_conv1_weight beside conv1.weight; there are none."
        )
    averaged = {owner: name for name, owner in buffers.items()} if wanted == EMA_BUFFERS else {}
    kept = {k: tensors[averaged.get(k, k)] for k in tensors if k not in buffers}
    return kept, (EMA_BUFFERS,) if buffers else ()


def _networks(values: Mapping[Any, Any]) -> dict[str, dict[str, str]]:
    """The parts of a dict of tensors, of which self-supervised trainings save a network each.

    Such as `encoder_q` and `encoder_k`: part -> name behind it -> key in the dict.
    """
    parts: dict[str, dict[str, str]] = {}
    for key, value in values.items():
        part, dot, name = str(key).removeprefix("module.").partition(".")
        if is_tensor(value) and dot:
            parts.setdefault(part, {})[name] = str(key)
    return parts


def _names(entry: str) -> tuple[str, ...]:
    return (entry, *EMA_ENTRIES) if entry == "ema" else (entry,)


def _entry(values: Mapping[Any, Any], wanted: str | None) -> str | None:
    """The entry to go down into, or None where the weights are."""
    asked = _names(wanted) if wanted is not None else ()
    if wanted == "ema":  # the usual names before the short one
        asked = (*EMA_ENTRIES,)
    for name in (*asked, *WEIGHT_ENTRIES, *EMA_ENTRIES):
        if _holds_tensors(values.get(name)):
            return name
    return None


def _refuse_loose(values: Mapping[Any, Any], taken: str, origin: str) -> None:
    """Refuse weights beside an entry of weights; a best score or a random state is none."""
    loose = [
        str(name)
        for name, value in values.items()
        if is_tensor(value)
        and value.dtype.is_floating_point
        and ("." in str(name) or len(value.shape) > 1)
    ]
    if loose:
        raise CheckpointError(
            f"{origin}: tensors stand beside the entry {taken!r}: {some(loose)}. Where they are no "
            f"part of the network, say entry={taken!r}; else save them with the others."
        )


def _holds_tensors(value: object) -> bool:
    """Whether a value is a dict with tensors in it, or in an entry of weights."""
    seen: set[int] = set()
    level = [value]
    for _ in range(_DEEPEST):
        dicts = [one for one in level if isinstance(one, Mapping) and id(one) not in seen]
        if any(
            is_tensor(item) or isinstance(item, OddTensor) for one in dicts for item in one.values()
        ):
            return True
        seen |= {id(one) for one in dicts}
        level = [one.get(name) for one in dicts for name in (*WEIGHT_ENTRIES, *EMA_ENTRIES)]
    return False


def is_tensor(value: object) -> bool:
    """Whether a value is a tensor or the description of one."""
    return isinstance(value, Tensor | Stored | TensorInfo)


def _weights(values: Mapping[Any, Any], origin: str) -> tuple[dict[str, Any], list[str]]:
    """The tensors of the dict of weights, and what may stand beside them."""
    wrong = [n for n, v in values.items() if is_tensor(v) and not _is_name(n)]
    if wrong:
        raise CheckpointError(
            f"{origin}: names of tensors are printable texts, got {some(map(ascii, wrong))}."
        )
    tensors = {str(name): value for name, value in values.items() if is_tensor(value)}
    odd = {str(n): v.kind for n, v in values.items() if isinstance(v, OddTensor)}
    odd |= {name: kind for name, value in tensors.items() if (kind := _odd_kind(value))}
    if odd:
        name, kind = next(iter(odd.items()))
        raise CheckpointError(
            f"{origin}: {name!r} is a {kind} tensor ({len(odd)} in all); expected plain tensors. "
            "Turn them into plain ones where the file was written (dequantize(), to_dense())."
        )
    rest = [str(name) for name in values if str(name) not in tensors]
    extra = [name for name in rest if name.endswith("_extra_state") or name == "_metadata"]
    others = [name for name in rest if name not in extra]
    if not tensors or others:
        dicts = [str(name) for name, value in values.items() if isinstance(value, Mapping)]
        hint = f" with entry=, such as entry={dicts[0]!r}" if dicts else ""
        raise CheckpointError(
            f"{origin}: expected a dict of tensors, got {len(tensors)} tensors and "
            f"{len(others)} other values ({some(others)}). Pass the entry that holds the "
            f"weights{hint}."
        )
    return tensors, extra


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isprintable()


def _odd_kind(value: Tensor | Stored | TensorInfo) -> str | None:
    if value.dtype.is_complex:
        return "complex"
    if not isinstance(value, Tensor):
        return None
    if value.is_quantized:
        return "quantised"
    return None if value.layout is torch.strided else str(value.layout).removeprefix("torch.")


def _without_prefixes(
    tensors: dict[str, Any], entries: list[str], *, lightning: bool
) -> tuple[dict[str, Any], list[str]]:
    peeled: list[str] = []
    candidates = WRAPPER_PREFIXES + (LIGHTNING_PREFIXES if lightning else ())
    while len(peeled) < _DEEPEST and (prefix := _common_prefix(tensors, candidates)):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        peeled.append(prefix)
        if prefix in LIGHTNING_PREFIXES:  # what follows is the network's own
            candidates = WRAPPER_PREFIXES
    # DINO holds its network as `backbone` beside a projection `head`; a network alone has no head.
    if set(entries) & set(_SELF_SUPERVISED):
        inner = {name.removeprefix("backbone."): value for name, value in tensors.items()}
        parts = {name.split(".")[0] for name in tensors}
        if "backbone" in parts and parts <= {"backbone", "head"} and len(inner) == len(tensors):
            return inner, [*peeled, "backbone."]
    return tensors, peeled


def _common_prefix(tensors: Mapping[str, Any], prefixes: tuple[str, ...]) -> str | None:
    for prefix in prefixes:
        if all(name.startswith(prefix) and name != prefix for name in tensors):
            return prefix
    return None


def _plain_values(beside: Mapping[str, Any]) -> dict[str, Any]:
    """What of the other entries is plain: numbers, texts, lists and dicts, of no endless size."""
    plain = {}
    for name, value in list(beside.items())[:_MOST_ENTRIES]:
        if (kept := _plain(value, iter(range(_MOST_NODES)), _DEEPEST)) is not None:
            plain[name] = kept
    return plain


def _plain(value: object, budget: Iterator[int], depth: int) -> Any:  # noqa: ANN401 - JSON-like
    """A value without what is not plain; each item costs one of the budget, whatever it is."""
    if isinstance(value, str | int | float | bool):
        return value
    if depth == 0:
        return None
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, Mapping) else {}
        if not state and not value.items:
            return _plain(value.values, budget, depth)
        return _plain_dict(chain(state.items(), value.items.items()), budget, depth)
    if isinstance(value, Mapping):
        return _plain_dict(value.items(), budget, depth)
    if isinstance(value, list | tuple):
        return [_plain(item, budget, depth - 1) for item, _ in zip(value, budget, strict=False)]
    return None


def _plain_dict(
    items: Iterable[tuple[Any, Any]], budget: Iterator[int], depth: int
) -> dict[str, Any]:
    within = zip(items, budget, strict=False)
    inner = {str(key): _plain(item, budget, depth - 1) for (key, item), _ in within}
    return {name: kept for name, kept in inner.items() if kept is not None}
