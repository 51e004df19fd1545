"""Updates that are left out: a loss or a gradient that is not finite, float16 that overflowed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from transferseg.errors import TrainingError
from transferseg.training.record import BatchLoss
from transferseg.training.state import TrainState
from transferseg.training.targets import pick
from transferseg.types import Batch

#: Overflows in a row after which float16 is given up: torch's scale begins at 2**16 and is halved
#: at each, so that after so many of them nothing is left of a gradient.
_OVERFLOWS = 50


class Watch:
    """Looks at every update before it is made, if told to, and counts those that are left out.

    Looking costs one wait for the device an update. With a limit of 0 it does not look: such a loss
    is found when the epoch's losses are read.

    **What is undone** in an update that is left out: weights, optimizer and schedule are not
    touched, the gradients are dropped, and every buffer of the model (the running statistics of a
    BatchNorm among them) is as before its batches. **What is not:** random numbers that were drawn,
    for dropout say, stay drawn, and the batches count as seen.

    Args:
        state: what is trained.
        limit: updates in a row that may be left out; 0 looks at none.
    """

    def __init__(self, state: TrainState, limit: int) -> None:
        self._state, self._limit = state, limit
        self._in_a_row = self._overflows = 0
        self._buffers: list[Tensor] = []

    def lets_check(self, batch: Batch) -> bool:
        """Whether the first batch can be checked: one that will be left out says nothing."""
        return not self._limit or bool(pick(batch, "image").isfinite().all())

    def begin_update(self) -> None:
        """Before the first batch of an update: keep what its batches may spoil."""
        if self._limit:
            self._buffers = [buffer.clone() for buffer in self._state.unwrapped.buffers()]

    def refuses(self, losses: Sequence[BatchLoss]) -> bool:
        """Whether the update of these batches is to be left out; if so, buffers are put back.

        Every process calls it, and all get the same answer.

        Raises:
            TrainingError: too many in a row.
        """
        if not self._limit:
            return False
        *finite, gradient = self._finite(losses)
        bad = [loss for loss, good in zip(losses, finite, strict=True) if not good]
        loss_is, gradient_is = self._anywhere(bool(bad), not gradient)
        if not (loss_is or gradient_is):
            self._in_a_row = 0
            return False
        with torch.no_grad():
            for buffer, former in zip(self._state.unwrapped.buffers(), self._buffers, strict=True):
                buffer.copy_(former)
        self._in_a_row += 1
        text = _text(losses, bad, elsewhere=loss_is)
        if self._in_a_row > self._limit:
            raise TrainingError(
                f"{text} This is the update number {self._in_a_row} in a row; skip_nonfinite="
                f"{self._limit} leaves out no more. Lower the learning rate, clip gradients "
                "(clip_norm=1.0), or look at those samples."
            )
        self._state.epoch_skipped += 1
        warnings.warn(f"{text} The update is left out.", stacklevel=6)  # who iterates `fit`
        return True

    def overflowed(self) -> None:
        """Float16 gradients overflowed, and the scaler left the update out.

        Raises:
            TrainingError: too many in a row.
        """
        self._overflows += 1
        self._state.epoch_skipped += 1
        if self._overflows >= _OVERFLOWS:
            raise TrainingError(
                f"float16 gradients overflowed in {self._overflows} updates in a row, the last in "
                f"epoch {self._state.epoch + 1}; train in bfloat16 (mixed_precision='bf16'), or "
                "lower the learning rate."
            )

    def kept(self) -> None:
        """An update was made."""
        self._overflows = 0

    def _finite(self, losses: Sequence[BatchLoss]) -> list[bool]:
        """Of each loss, then of all gradients: whether it is finite; read in one copy."""
        flags = [torch.isfinite(loss.terms["loss"]).reshape(1) for loss in losses]
        gradients = [p.grad for p in self._state.trained() if p.grad is not None]
        # Those of float16 overflow now and then, and its scaler looks at them itself.
        if gradients and self._state.accelerator.scaler is None:
            largest = torch._foreach_norm(gradients, math.inf)
            flags.append(torch.stack([value.float() for value in largest]).isfinite().all()[None])
        else:
            flags.append(torch.ones_like(flags[0]))
        return [bool(flag) for flag in torch.cat(flags).tolist()]

    def _anywhere(self, *bad: bool) -> tuple[bool, ...]:
        """Each of these, as true as it is in any process."""
        accelerator = self._state.accelerator
        if accelerator.num_processes == 1:
            return bad
        own = torch.tensor([float(one) for one in bad], device=accelerator.device)
        return tuple(count > 0 for count in accelerator.reduce(own, reduction="sum").tolist())


def _text(losses: Sequence[BatchLoss], bad: Sequence[BatchLoss], *, elsewhere: bool) -> str:
    """What is not finite, and where."""
    step = losses[0].step
    if bad:
        places = "; ".join(f"{loss.place}: {loss.terms['loss'].item()}" for loss in bad)
        return f"the loss of update {step} is not finite ({places})."
    where = "; ".join(loss.place for loss in losses)
    if elsewhere:
        return f"the loss of update {step} is not finite in another process (here {where})."
    return f"a gradient of update {step} is not finite, though its loss is ({where})."
