"""The training loop: a generator of events over an explicit state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from transferseg.errors import TrainingError
from transferseg.models.freezing import Unfreezing
from transferseg.training import loaders, saves
from transferseg.training.auxiliary import weight_of
from transferseg.training.clock import Clock
from transferseg.training.events import EpochEvent, StepEvent
from transferseg.training.gradual import begin_epoch, release_all
from transferseg.training.nonfinite import Watch
from transferseg.training.plan import Plan
from transferseg.training.record import BatchLoss
from transferseg.training.state import TrainState
from transferseg.training.targets import Loader, Loss, check_first, spec_of
from transferseg.training.update import train_batch
from transferseg.types import Target


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
    skip_nonfinite: int = 0,
) -> Iterator[StepEvent | EpochEvent]:
    """Train until the state has `epochs` epochs or `steps` updates; yield what has been done.

    A `StepEvent` follows every complete optimizer update, an `EpochEvent` every complete epoch.
    Between two events the state may be saved, loaded, evaluated, or left for good; a later `fit`
    goes on where it stands, in the middle of an epoch too. An update that is cut short (Ctrl-C, an
    error) has not been made: its batches come again. Both numbers count from the start of training:
    a state with 3 epochs does 2 more for `epochs=5`, and nothing for `epochs=3`.

    With `Accelerator(gradient_accumulation_steps=n)` an update takes the mean gradient of n
    batches, or of those that are left at the end of an epoch.

    A model with an auxiliary head is trained on main loss + `auxiliary_weight` x auxiliary loss:
    the same `loss` of the logits of both heads, at the size of the image. The events tell that sum
    as the loss, and among its terms "main_loss" and "auxiliary_loss".

    Precision and compilation are the accelerator's: `Accelerator(mixed_precision="bf16")`,
    `Accelerator(dynamo_backend="inductor")`. Logits come in float32, and so is the loss. An update
    whose float16 gradients overflow is left out and counted (`EpochEvent.skipped`).

    Before the first update the first batch is checked against the model's spec. A loss that is not
    finite is found when losses are read: at the end of the epoch and of the run and at every save,
    so that no step waits for the device. With `skip_nonfinite` every update is looked at before it
    is made, which waits for the device each time: one whose loss or gradient is not finite is left
    out, with a warning that names batch and samples. Weights, optimizer, schedule and buffers
    (BatchNorm's statistics) are then as if its batches had not been there; random numbers that they
    drew, for dropout say, stay drawn.

    The order of every epoch follows from the state's seed: the generators of the loader and of its
    sampler are seeded from (seed, epoch), and those without one get one. Samples must not depend
    on the global random state: what is random in a data set should follow from `set_epoch(epoch)`,
    which it is told if it has it, and the index.

    Args:
        state: what is trained; changed in place.
        loader: batches as the data room makes them.
        loss: (logits, target) -> scalar; see `Loss`.
        epochs: complete epochs at which to end, a whole number from 0; this or `steps`.
        steps: complete updates at which to end, perhaps in the middle of an epoch.
        target: "mask", "label", or "image" (the normalised image itself, for autoencoders).
        clip_norm: the global norm of the gradient, of all that the optimizer changes, is held below
            this, above 0; None leaves it.
        channels_last: lay out model and images in channels-last order, faster on recent GPUs.
        unfreeze: what begins to train at which epoch; applied at the beginning of each.
        auxiliary_weight: of the auxiliary head's loss, 0 or more; by default 0.4 where the model
            has such a head.
        skip_nonfinite: updates in a row that are left out because their loss or gradient is not
            finite; one more is an error. 0 leaves none out.

    Returns:
        An iterator of events; nothing is trained until it is iterated.

    Raises:
        TrainingError: neither or both of epochs and steps, or one that is not a whole number; a
            schedule that would end too early; an empty loader; batches of one sample that a
            BatchNorm cannot take; every parameter frozen; a loss that is not a scalar or not
            finite, naming the update and the samples (or too many such in a row); an
            `auxiliary_weight` for a model without such a head.
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
    spec_of(state.unwrapped)
    plan = Plan(
        loss=loss, target=target, clip_norm=clip_norm, channels_last=channels_last, epochs=epochs,
        steps=steps, unfreeze=unfreeze, skip_nonfinite=skip_nonfinite,
        auxiliary_weight=weight_of(state.unwrapped, auxiliary_weight),
    )  # fmt: skip
    return _run(state, loader, plan)


def _run(state: TrainState, loader: Loader, plan: Plan) -> Iterator[StepEvent | EpochEvent]:
    if plan.reached(state):
        return
    accelerator = state.accelerator
    if plan.channels_last:
        state.unwrapped.to(memory_format=torch.channels_last)
    loaders.own_generators(loader)
    if plan.unfreeze is not None:
        release_all(state, plan.unfreeze)
    watch = Watch(state, plan.skip_nonfinite)
    with loaders.without_lone_samples(accelerator, loader, state.unwrapped) as lending:
        ready = loaders.prepared(accelerator, loader, even_batches=accelerator.even_batches)
        batches = loaders.length(ready)
        checked = False
        while not plan.reached(state):  # what is loaded within the loop is looked at as well
            _check_length(state, batches)
            state.lay_schedule(plan.last_step(state, batches))
            yield from lending(_epoch(state, ready, plan, watch, check=not checked))
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
    plan: Plan,
    watch: Watch,
    *,
    check: bool,
) -> Iterator[StepEvent | EpochEvent]:
    """The rest of the epoch under way; returns early when the plan's last update is done."""
    clock = Clock(state)
    begin_epoch(state, plan.unfreeze)
    state.model.zero_grad()  # an update that was cut short has left some
    state.accelerator.step = 0
    batches = loaders.epoch_of(loader, seed=state.seed, epoch=state.epoch, skip=state.batches)
    group: list[BatchLoss] = []
    try:
        for batch in clock.waiting(batches):
            if check and watch.lets_check(batch):
                check_first(batch, state.unwrapped, plan.target)
                check = False
            rate = state.learning_rate
            _claim(state, batches)
            if train_batch(state, batch, plan, watch, group):
                clock.stop()
                event, place = _step_event(state, group, rate, clock), _place(state)
                group.clear()
                yield event
                if _place(state) != place:  # it was loaded, or trained by another `fit`
                    return
                if plan.reached(state) and not batches.end_of_dataloader:
                    saves.together(state.accelerator, state.record.settle)
                    return
                clock.start()
    finally:
        batches.end()  # left early, it would stay accelerate's current loader
        state.batches -= len(group)  # of an update that was cut short
        state.samples_seen -= _images(state, group)
    if state.batches == 0:
        raise TrainingError("the loader gave no batches; an empty data set?")
    # waits for the device, which is time of this epoch
    saves.together(state.accelerator, state.record.settle)
    clock.stop()
    yield _finish_epoch(state)


def _place(state: TrainState) -> tuple[int, int, int]:
    return state.step, state.epoch, state.batches


def _images(state: TrainState, group: Sequence[BatchLoss]) -> int:
    """How many images these batches have, over all processes."""
    processes: int = state.accelerator.num_processes
    return sum(loss.images for loss in group) * processes


def _claim(state: TrainState, batches: Any) -> None:  # noqa: ANN401
    """Tell accelerate how many batches accumulate, and whose last one ends an accumulation.

    Its state is global: an Accelerator that was made since, by anyone, has changed the number, and
    a loader that was begun and left, or another training, stands as the current one.
    """
    shared = state.accelerator.gradient_state
    # the second as `prepare` has checked it: without it the last, incomplete update would be lost
    shared.plugin_kwargs.update(num_steps=state.accumulation, sync_with_dataloader=True)
    if shared.active_dataloader is not batches:
        shared._remove_dataloader(batches)  # once: two trainings in turn would fill the list
        shared._add_dataloader(batches)


def _step_event(
    state: TrainState, group: Sequence[BatchLoss], rate: float, clock: Clock
) -> StepEvent:
    terms = [loss.terms for loss in group]
    means = dict(terms[0])
    if len(terms) > 1:
        means = {name: torch.stack([one[name] for one in terms]).mean() for name in means}
    images = _images(state, group)
    return StepEvent(state.step, state.epoch + 1, means, rate, images, *clock.lap())


def _finish_epoch(state: TrainState) -> EpochEvent:
    totals, images = state.record.reduced(state.accelerator)
    means = {name: total / images for name, total in totals.items()} if images else {}
    loss = means.pop("loss", math.nan)
    seconds, data_seconds, skipped = (
        state.epoch_seconds, state.epoch_data_seconds, state.epoch_skipped,
    )  # fmt: skip
    state.epoch += 1
    state.batches, state.epoch_skipped = 0, 0
    state.epoch_seconds = state.epoch_data_seconds = 0.0
    state.record.restore({}, 0)
    return EpochEvent(
        epoch=state.epoch,
        step=state.step,
        loss=loss,
        terms=means,
        learning_rate=state.learning_rate,
        seconds=seconds,
        samples_seen=state.samples_seen,
        images=images,
        data_seconds=data_seconds,
        skipped=skipped,
    )
