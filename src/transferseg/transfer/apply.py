"""Carry out a plan: all tensors or none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from transferseg.errors import TransferError
from transferseg.transfer.plan import Move, TransferPlan


def apply_plan(plan: TransferPlan, tensors: Mapping[str, Tensor], target: nn.Module) -> None:
    """Copy and adapt the tensors of a plan into the target, all of them or none.

    Every new value is computed and checked before the first is written. Values take the dtype and
    device of the target; the source's tensors are not changed.

    Raises:
        TransferError: NaN or infinite values, or an adapter that gives another shape; nothing was
            changed.

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
            value = _new_value(move, tensors[move.source].detach(), state[move.target])
            # A source that is the target itself, or a part of it, must not change while it is read.
            aliased = value.untyped_storage().data_ptr() in shared
            new[move.target] = value.clone() if aliased else value
        new |= {key: start.begin(state[key]) for key, start in plan.start.items()}
        for key, value in new.items():
            state[key].copy_(value)


def _new_value(move: Move, source: Tensor, here: Tensor) -> Tensor:
    """The target's new tensor, computed in the wider of both dtypes and checked."""
    wide = source.to(here.device, torch.promote_types(source.dtype, here.dtype))
    value = wide
    if move.adapter is not None:
        value = move.adapter.apply(wide, here.to(wide.dtype))
    value = value.to(here.dtype)
    for tensor in (wide, value):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TransferError(
                f"nothing was changed: {move.source!r} holds NaN or infinite values in "
                f"{tensor.dtype}; the checkpoint is broken, or was saved in a wider type."
            )
    if value.shape != here.shape:
        name = move.adapter.name if move.adapter else "no adapter"
        raise TransferError(
            f"nothing was changed: {name} made {move.source!r} into {tuple(value.shape)}, but "
            f"{move.target!r} is {tuple(here.shape)}."
        )
    return value
