"""One update: forward and backward of its batches, then the optimizer's step or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor

from transferseg.errors import TrainingError
from transferseg.training.auxiliary import Output, training_output, training_terms
from transferseg.training.nonfinite import Watch
from transferseg.training.plan import Plan
from transferseg.training.record import BatchLoss
from transferseg.training.state import TrainState
from transferseg.training.targets import pick, sample_ids
from transferseg.types import Batch


def train_batch(
    state: TrainState, batch: Batch, plan: Plan, watch: Watch, group: list[BatchLoss]
) -> bool:
    """Forward and backward of one batch; True if it completed an optimizer update.

    The batch is added to `group`, the batches of the update under way; where that update is left
    out, the group is emptied.

    Raises:
        TrainingError: a batch or a loss that cannot be trained on; too many updates left out.
    """
    accelerator, model = state.accelerator, state.model
    if not (model.training and state.unwrapped.training):  # left so by the loop around
        model.train()
        state.unwrapped.train()  # compiled in parts, the one does not reach all of the other
    image = pick(batch, "image")
    target = image if plan.target == "image" else pick(batch, plan.target)
    if plan.channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    if not group:
        watch.begin_update()
    with accelerator.accumulate(model):
        output = _forward(state, image, auxiliary=plan.auxiliary_weight is not None)
        value, terms = training_terms(plan.loss, output, target, plan.auxiliary_weight)
        accelerator.backward(value)
        state.batches += 1
        state.samples_seen += len(image) * accelerator.num_processes
        group.append(
            BatchLoss(
                terms, len(image), state.step + 1, state.epoch + 1, state.batches, sample_ids(batch)
            )
        )
        return bool(accelerator.sync_gradients) and _update(state, plan, watch, group)


def _forward(state: TrainState, image: Tensor, *, auxiliary: bool) -> Output:
    try:
        return training_output(state.model, image, auxiliary=auxiliary)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"a batch of {len(image)} sample(s) gives a BatchNorm one value a channel; leave such "
            "batches out of the loader (drop_last=True), or freeze that layer."
        ) from error


def _update(state: TrainState, plan: Plan, watch: Watch, group: list[BatchLoss]) -> bool:
    """The optimizer update of a group of batches; False if it was left out."""
    if watch.refuses(group):
        state.optimizer.zero_grad()
        group.clear()
        return False
    with _whole_or_none(state):
        _finish_gradient(state, plan, len(group))
        _step(state)
    for loss in group:
        state.record.add(loss)
    if state.accelerator.optimizer_step_was_skipped:  # float16 gradients overflowed
        group.clear()
        watch.overflowed()
        return False
    watch.kept()
    state.step += 1
    state.step_schedule()
    if state.ema is not None:
        state.ema.update()
    return True


@contextmanager
def _whole_or_none(state: TrainState) -> Iterator[None]:
    """Let float16's scaler forget an update that is cut short (Ctrl-C, an error).

    It remembers until its own update that gradients are unscaled, and would take those of the next
    update for unscaled as well: an error where they are clipped, and a far too large step where
    they are not.
    """
    try:
        yield
    except BaseException:
        scaler = state.accelerator.scaler
        if scaler is not None:
            scaler.update(scaler.get_scale())  # the same: only ends the update
        raise


def _step(state: TrainState) -> None:
    """One step of the optimizer, and no gradients after it.

    accelerate's wrapper looks for a package twice and reads a signature at every update, which is
    most of what a loop costs; where it does nothing but pass on, it is passed by.
    """
    optimizer: Any = state.optimizer
    accelerator = state.accelerator
    passes_on = type(optimizer) is AcceleratedOptimizer and accelerator.scaler is None
    if passes_on and accelerator.distributed_type != DistributedType.XLA:
        optimizer = optimizer.optimizer
    optimizer.step()
    optimizer.zero_grad()


def _finish_gradient(state: TrainState, plan: Plan, batches: int) -> None:
    """Make an incomplete accumulation a mean as well, and clip."""
    if batches < state.accumulation:
        # accelerate divides each loss by the full number, though an epoch may end before it
        gradients = [p.grad for p in state.trained() if p.grad is not None]
        torch._foreach_mul_(gradients, state.accumulation / batches)
    if plan.clip_norm is not None:
        state.accelerator.clip_grad_norm_(state.trained(), plan.clip_norm)
