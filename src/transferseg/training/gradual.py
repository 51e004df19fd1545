"""What trains in an epoch: gradual unfreezing within `fit`."""

from __future__ import annotations

from typing import Any, cast

from torch.nn.parallel import DistributedDataParallel

from transferseg.errors import TrainingError
from transferseg.models.freezing import Unfreezing
from transferseg.training.state import TrainState


def release_all(state: TrainState, unfreeze: Unfreezing) -> None:
    """Before the first epoch of a `fit`: everything as it will be at the end.

    What is decided once for all epochs, such as whether a last batch of one sample can be used,
    must not depend on the epoch at which this `fit` begins.

    Raises:
        TrainingError: the processes would not exchange the gradients of what is unfrozen.
    """
    unfreeze.release(state.unwrapped)
    model = getattr(state.model, "_orig_mod", state.model)  # the compiled one, where it is
    if not isinstance(model, DistributedDataParallel):
        return
    if not model.find_unused_parameters:
        raise TrainingError(
            "over several processes, unfreezing needs Accelerator(kwargs_handlers=["
            "DistributedDataParallelKwargs(find_unused_parameters=True)]): torch would wait for "
            "the gradients of what is still frozen."
        )
    exchanged = cast(Any, model)._get_ddp_logging_data()["num_parameter_tensors"]
    training = sum(parameter.requires_grad for parameter in model.parameters())
    if exchanged < training:
        raise TrainingError(
            f"{training - exchanged} of {training} parameters were frozen when the state was "
            "prepared, so that processes would not exchange their gradients; call "
            "unfreeze.release(model) before TrainState.prepare."
        )


def begin_epoch(state: TrainState, unfreeze: Unfreezing | None) -> None:
    """Freeze and unfreeze as the epoch asks, and put the model into training mode.

    Raises:
        TrainingError: nothing would train.
    """
    if unfreeze is not None:
        unfreeze.apply(state.unwrapped, state.epoch)
    state.model.train()
    if not any(parameter.requires_grad for parameter in state.model.parameters()):
        raise TrainingError(
            f"every parameter is frozen in epoch {state.epoch + 1}, so there is nothing to train; "
            "unfreeze at least the head."
        )
