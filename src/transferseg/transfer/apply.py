"""Carry out a plan: all tensors or none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from transferseg.errors import BrokenWeightsError, TransferError, describe
from transferseg.transfer.plan import Move, TransferPlan

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def apply_plan(
    plan: TransferPlan,
    tensors: Mapping[str, Tensor],
    target: nn.Module,
    *,
    origin: str = "the source",
) -> None:
    """Copy and adapt the tensors of a plan into the target, all of them or none.

    Every new value is computed and checked before the first is written. Values take the dtype and
    device of the target; the source's tensors are not changed. Only adapted tensors are held
    besides: what is copied as it is goes from the source (a mapped file, say) into the target.

    Args:
        plan: made for these tensors and this target.
        tensors: source key -> tensor.
        target: changed in place.
        origin: what an error calls the source, such as its path.

    Raises:
        BrokenWeightsError: NaN or infinite values, or whole numbers where the target has fractions;
            nothing was changed.
        TransferError: an adapter that gives another shape; nothing was changed.

    Example:
        >>> target = nn.Linear(1, 1, bias=False)
        >>> move = Move("w", "weight", (1, 1), (1, 1))
        >>> plan = TransferPlan(("weight",), (move,), {}, {}, {"weight": (1, 1)})
        >>> apply_plan(plan, {"w": torch.tensor([[2.0]])}, target)
        >>> target.weight.item()
        2.0
    """
    state = target.state_dict()
    shared = {value.untyped_storage().data_ptr() for value in state.values()}
    new = {}
    with torch.no_grad():
        for move in plan.moves:
            source = _joined([tensors[key].detach() for key in move.sources])
            value = _new_value(move, source, state[move.target], origin)
            # A source that is the target itself, or a part of it, must not change while it is read.
            aliased = value.untyped_storage().data_ptr() in shared
            new[move.target] = value.clone() if aliased else value
        new |= {key: start.begin(state[key]) for key, start in plan.start.items()}
        for key, value in new.items():
            state[key].copy_(value)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor as it is, several one behind another."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _new_value(move: Move, source: Tensor, here: Tensor, origin: str) -> Tensor:
    """What is to be copied into the target's tensor, checked in the type that it will have."""
    if here.is_floating_point() and source.dtype not in _FLOATS:
        raise BrokenWeightsError(
            f"nothing was changed: {origin} holds {move.source!r} as {describe(source)}, but "
            f"{move.target!r} is {describe(here)}. Quantised weights must be turned into floating-"
            "point ones first, where they were made."
        )
    value = source
    _refuse_broken(move, value, value.dtype, origin)
    if move.adapter is not None:  # in the wider of both types
        wide = source.to(here.device, torch.promote_types(source.dtype, here.dtype))
        value = move.adapter.apply(wide, here.to(wide.dtype)).to(here.dtype)
    if value is not source or _narrower(here.dtype, source.dtype):
        _refuse_broken(move, value, here.dtype, origin)
    if value.shape != here.shape:
        name = move.adapter.name if move.adapter else "no adapter"
        raise TransferError(
            f"nothing was changed: {name} made {move.source!r} into {tuple(value.shape)}, but "
            f"{move.target!r} is {tuple(here.shape)}."
        )
    return value


def _narrower(dtype: torch.dtype, than: torch.dtype) -> bool:
    """Whether finite values of one floating-point type may not be so in another."""
    if not (dtype.is_floating_point and than.is_floating_point):
        return False
    return torch.finfo(dtype).max < torch.finfo(than).max


def _refuse_broken(move: Move, value: Tensor, dtype: torch.dtype, origin: str) -> None:
    if value.is_floating_point() and not _all_finite(value, dtype):
        raise BrokenWeightsError(
            f"nothing was changed: {move.source!r} holds NaN or infinite values in {dtype}; "
            f"{origin} is broken, or was saved in a wider type."
        )


def _all_finite(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether every value is finite once it is of that type."""
    # One pass without a copy: a NaN or an infinite value leaves no finite sum. A sum that is not
    # finite may also be of very large values, which the exact test tells apart.
    quick = value.dtype == dtype and dtype in (torch.float32, torch.float64)
    if quick and math.isfinite(value.sum().item()):
        return True
    return bool(torch.isfinite(value.to(dtype)).all())
