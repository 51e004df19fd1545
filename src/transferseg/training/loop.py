"""The training loop: a generator of events over an explicit state."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from transferseg.errors import TrainingError
from transferseg.models.freezing import Unfreezing
from transferseg.training import loaders
from transferseg.training.auxiliary import Output, training_output, training_terms, weight_of
from transferseg.training.events import EpochEvent, StepEvent
from transferseg.training.gradual import begin_epoch, release_all
from transferseg.training.state import TrainState
from transferseg.training.targets import (
    Loader,
    Loss,
    check_first,
    check_target,
    pick,
    sample_ids,
    spec_of,
)
from transferseg.types import Batch, Target


def fit(
    state: TrainState,
    loader: Loader,
    *,
    loss: Loss,
    epochs: int | None = None,
    steps: int | None = None,
    target: Target = "mask",
    clip_norm: float | None = None,
    channels_last: bool = False,
    unfreeze: Unfreezing | None = None,
    auxiliary_weight: float | None = None,
) -> Iterator[StepEvent | EpochEvent]:
    """Train until the state has `epochs` epochs or `steps` updates; yield what has been done.

    A `StepEvent` follows every complete optimizer update, an `EpochEvent` every complete epoch.
    Between two events the state may be saved, evaluated, or left for good; a later `fit` goes on
    where it stands, in the middle of an epoch too. Both numbers count from the start of training:
    a state with 3 epochs does 2 more for `epochs=5`, and nothing for `epochs=3`.

    With `Accelerator(gradient_accumulation_steps=n)` an update takes the mean gradient of n
    batches, or of those that are left at the end of an epoch.

    A model with an auxiliary head is trained on main loss + `auxiliary_weight` x auxiliary loss:
    the same `loss` of the logits of both heads, at the size of the image. The events tell that sum
    as the loss, and among its terms "main_loss" and "auxiliary_loss".

    Before the first update the first batch is checked against the model's spec. A loss that is not
    finite is found when losses are read: at the end of the epoch and at every save, so that no
    step waits for the device.

    The order of every epoch follows from the state's seed: the generators of the loader and of its
    sampler are seeded from (seed, epoch), and those without one get one. Samples must not depend
    on the global random state: what is random in a data set should follow from `set_epoch(epoch)`,
    which it is told if it has it, and the index.

    Args:
        state: what is trained; changed in place.
        loader: batches as the data room makes them.
        loss: (logits, target) -> scalar; see `Loss`.
        epochs: complete epochs at which to end; this or `steps`.
        steps: complete updates at which to end, perhaps in the middle of an epoch.
        target: "mask", "label", or "image" (the normalised image itself, for autoencoders).
        clip_norm: the gradient's global norm is held below this, above 0; None leaves it.
        channels_last: lay out model and images in channels-last order, faster on recent GPUs.
        unfreeze: what begins to train at which epoch; applied at the beginning of each.
        auxiliary_weight: of the auxiliary head's loss, 0 or more; by default 0.4 where the model
            has such a head.

    Returns:
        An iterator of events; nothing is trained until it is iterated.

    Raises:
        TrainingError: neither or both of epochs and steps; a schedule that would end too early; an
            empty loader; batches of one sample that a BatchNorm cannot take; every parameter
            frozen; a loss that is not a scalar or not finite, naming the update and the samples;
            an `auxiliary_weight` for a model without an auxiliary head.
        SpecError: `unfreeze` names what the model does not have.
        DataError: the first batch does not fit the model's spec.

    Example:
        >>> from transferseg.spec import InputSpec, ModelSpec
        >>> from transferseg.training import sgd
        >>> model = torch.nn.Conv2d(1, 1, 3, padding=1)
        >>> model.spec = ModelSpec("unet", "none", ["lesion"], "binary", input=InputSpec(1))
        >>> image = torch.rand(6, 1, 8, 8)
        >>> samples = [{"image": x, "mask": (x > 0.5).to(torch.uint8)} for x in image]
        >>> loader = torch.utils.data.DataLoader(samples, batch_size=2, shuffle=True)
        >>> def loss(logits, target):
        ...     return torch.nn.functional.binary_cross_entropy_with_logits(logits, target.float())
        >>> state = TrainState.prepare(model, optimizer=sgd)
        >>> events = list(fit(state, loader, loss=loss, epochs=2))
        >>> len(events), events[-1].step, events[-1].samples_seen
        (8, 6, 12)
    """
    check_target(target)
    for name, value in (("epochs", epochs), ("steps", steps)):
        if value is not None and value < 0:
            raise TrainingError(f"{name} must be 0 or more, got {value}.")
    if (epochs is None) == (steps is None):
        raise TrainingError(f"give one of epochs and steps, got epochs={epochs}, steps={steps}.")
    if clip_norm is not None and clip_norm <= 0:
        raise TrainingError(f"clip_norm must be above 0, or None, got {clip_norm}.")
    if unfreeze is not None and not isinstance(unfreeze, Unfreezing):
        raise TrainingError(
            f"unfreeze must be an Unfreezing, got {type(unfreeze).__name__}; give "
            "unfreeze=models.Unfreezing({epoch: names})."
        )
    spec_of(state.unwrapped)
    weight = weight_of(state.unwrapped, auxiliary_weight)
    plan = _Plan(loss, target, clip_norm, channels_last, epochs, steps, unfreeze, weight)
    return _run(state, loader, plan)


@dataclass(frozen=True)
class _Plan:
    loss: Loss
    target: Target
    clip_norm: float | None
    channels_last: bool
    epochs: int | None
    steps: int | None
    unfreeze: Unfreezing | None
    auxiliary_weight: float | None

    def reached(self, state: TrainState) -> bool:
        if self.steps is not None:
            return state.step >= self.steps
        return self.epochs is not None and state.epoch >= self.epochs

    def last_step(self, state: TrainState, batches: int | None) -> int | None:
        """The number of updates at the end, None if it cannot be known."""
        if self.steps is not None or batches is None or self.epochs is None:
            return self.steps
        each = math.ceil(batches / state.accumulation)
        begun = math.ceil(state.batches / state.accumulation)  # of the epoch under way
        return state.step - begun + max(0, self.epochs - state.epoch) * each


def _run(state: TrainState, loader: Loader, plan: _Plan) -> Iterator[StepEvent | EpochEvent]:
    if plan.reached(state):
        return
    accelerator = state.accelerator
    # Any Accelerator made since, by anyone, has changed this number: accelerate's state is global.
    accelerator.gradient_accumulation_steps = state.accumulation
    if plan.channels_last:
        state.unwrapped.to(memory_format=torch.channels_last)
    loaders.own_generators(loader)
    if plan.unfreeze is not None:
        release_all(state, plan.unfreeze)
    with loaders.without_lone_samples(accelerator, loader, state.unwrapped):
        ready = loaders.prepared(accelerator, loader, even_batches=accelerator.even_batches)
        batches = loaders.length(ready)
        _check_length(state, batches)
        state.lay_schedule(plan.last_step(state, batches))
        checked = False
        while not plan.reached(state):
            yield from _epoch(state, ready, plan, check=not checked)
            checked = True


def _check_length(state: TrainState, batches: int | None) -> None:
    if batches == 0:
        raise TrainingError(
            "the loader has no batches; an empty split, or drop_last on a tiny one?"
        )
    if state.batches and state.epoch_length != batches:
        raise TrainingError(
            f"{state.batches} batches of an epoch of {state.epoch_length} are done, but this "
            f"loader has {batches} batches an epoch; go on with the same data and batch size."
        )
    state.epoch_length = batches


def _epoch(
    state: TrainState,
    loader: Any,  # noqa: ANN401
    plan: _Plan,
    *,
    check: bool,
) -> Iterator[StepEvent | EpochEvent]:
    """The rest of the epoch under way; returns early when the plan's last update is done."""
    clock = _Clock(state)
    begin_epoch(state, plan.unfreeze)
    batches = loaders.epoch_of(loader, seed=state.seed, epoch=state.epoch, skip=state.batches)
    group: list[dict[str, Tensor]] = []
    try:
        for batch in batches:
            if check:
                check_first(batch, state.unwrapped, plan.target)
                check = False
            rate = state.learning_rate
            if _batch(state, batch, plan, group):
                tensors = _mean(group)
                group.clear()
                clock.stop()
                yield StepEvent(state.step, state.epoch + 1, tensors, rate)
                if plan.reached(state) and not batches.end_of_dataloader:
                    return
                clock.start()
    finally:
        batches.end()  # left early, it would stay accelerate's current loader
    if state.batches == 0:
        raise TrainingError("the loader gave no batches; an empty data set?")
    clock.stop()
    yield _finish_epoch(state)


def _batch(state: TrainState, batch: Batch, plan: _Plan, group: list[dict[str, Tensor]]) -> bool:
    """Forward and backward of one batch; True if it completed an optimizer update."""
    accelerator, model = state.accelerator, state.model
    if not model.training:  # left in evaluation mode by the loop around
        model.train()
    image = pick(batch, "image")
    target = image if plan.target == "image" else pick(batch, plan.target)
    if plan.channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    with accelerator.accumulate(model):
        output = _forward(state, image, auxiliary=plan.auxiliary_weight is not None)
        value, terms = training_terms(plan.loss, output, target, plan.auxiliary_weight)
        accelerator.backward(value)
        group.append(terms)
        complete = bool(accelerator.sync_gradients)
        if complete:
            _finish_gradient(state, plan, len(group))
        state.optimizer.step()
        state.optimizer.zero_grad()
    state.batches += 1
    state.samples_seen += len(image) * accelerator.num_processes
    state.record.add(
        terms,
        weight=len(image),
        step=state.step + 1,
        epoch=state.epoch + 1,
        batch=state.batches,
        ids=sample_ids(batch),
    )
    if complete and accelerator.optimizer_step_was_skipped:  # float16 gradients overflowed
        group.clear()
        return False
    if complete:
        state.step += 1
        state.step_schedule()
    return complete


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


def _finish_gradient(state: TrainState, plan: _Plan, batches: int) -> None:
    """Make an incomplete accumulation a mean as well, and clip."""
    if batches < state.accumulation:
        # accelerate divides each loss by the full number, though an epoch may end before it
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, state.accumulation / batches)
    if plan.clip_norm is not None:
        state.accelerator.clip_grad_norm_(state.model.parameters(), plan.clip_norm)


def _mean(group: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(group) == 1:
        return dict(group[0])
    return {name: torch.stack([terms[name] for terms in group]).mean() for name in group[0]}


def _finish_epoch(state: TrainState) -> EpochEvent:
    state.record.settle()
    means = state.record.means(state.accelerator)
    seconds = state.epoch_seconds
    state.epoch += 1
    state.batches, state.epoch_seconds = 0, 0.0
    state.record.restore({}, 0)
    loss = means.pop("loss")
    return EpochEvent(
        epoch=state.epoch,
        step=state.step,
        loss=loss,
        terms=means,
        learning_rate=state.learning_rate,
        seconds=seconds,
        samples_seen=state.samples_seen,
    )


class _Clock:
    """Adds the time between its start and its stop to the state."""

    def __init__(self, state: TrainState) -> None:
        self._state = state
        self.start()

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        passed = time.perf_counter() - self._since
        self._state.seconds += passed
        self._state.epoch_seconds += passed
