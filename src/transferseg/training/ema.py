"""An exponential moving average of the weights, kept beside the weights that train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from accelerate import DistributedType
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from transferseg.errors import TrainingError

if TYPE_CHECKING:
    from transferseg.training.state import TrainState

_Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class EMA:
    """Averaged weights of a state: average = decay x average + (1 - decay) x weights.

    It belongs to the state from then on: `fit` updates it after every optimizer update (not after
    one that was left out), and `TrainState.save` and `load` keep it, so that a resumed run averages
    as the straight one. Make it right after `TrainState.prepare`, before `TrainState.load`. The
    first update takes the weights as they are.

    Floating-point buffers, the running statistics of a BatchNorm among them, are averaged like the
    weights, as torchvision's and timm's trainings do; whole numbers (the count of its batches) are
    copied. Nothing waits for the device.

    Args:
        state: whose weights are averaged; its `ema` is then this.
        decay: 0 to below 1. An average looks back on about 1 / (1 - decay) updates: let that be a
            small part of the training.
        warmup: begin with a smaller decay, min(decay, (1 + n) / (10 + n)) at the update number
            n + 1, so that the first weights do not stay in the average of a short training.

    Attributes:
        decay: as given.
        warmup: as given.
        averaged: torch's `AveragedModel`; its `module` is a copy of the model with these weights.

    Raises:
        TrainingError: a decay out of range, a state that has an average already, weights that are
            spread over processes (FSDP, DeepSpeed).

    Source: Polyak and Juditsky 1992 (averaging); the warm-up is that of TensorFlow's
    `ExponentialMovingAverage(num_updates=...)`.

    Example:
        >>> from transferseg.training import TrainState, sgd
        >>> state = TrainState.prepare(nn.Linear(1, 1, bias=False), optimizer=sgd)
        >>> ema = EMA(state, decay=0.9, warmup=False)
        >>> for weight in (1.0, 2.0):  # what `fit` does after every update
        ...     _ = nn.init.constant_(state.unwrapped.weight, weight)
        ...     ema.update()
        >>> with ema.applied():  # evaluate, or save, here
        ...     print(round(state.unwrapped.weight.item(), 4))
        1.1
        >>> state.unwrapped.weight.item()
        2.0
    """

    def __init__(self, state: TrainState, *, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise TrainingError(f"decay must lie in 0 <= decay < 1, got {decay}.")
        if state.ema is not None:
            raise TrainingError(f"the state has an average already: {state.ema!r}.")
        if state.accelerator.distributed_type in _SHARDED:
            raise TrainingError(
                "EMA needs the whole weights in every process, but here they are spread over them "
                f"({state.accelerator.distributed_type}); train without it, or with DDP."
            )
        self.decay, self.warmup = decay, warmup
        self._model = state.unwrapped
        self._swapped = False
        # Without a device of its own the count stays on the CPU, where reading it waits for none.
        self.averaged = AveragedModel(self._model, multi_avg_fn=self._average, use_buffers=True)
        self.averaged.requires_grad_(False)
        state.ema = self
        state.accelerator.register_for_checkpointing(self)

    def __repr__(self) -> str:
        return f"EMA(decay={self.decay}, warmup={self.warmup})"

    def update(self) -> None:
        """Take in the weights after one more optimizer update; `fit` calls it.

        Raises:
            TrainingError: within `applied`.
        """
        self._check_apart()
        self.averaged.update_parameters(self._model)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights and buffers for a moment, to evaluate or save it.

        Its own come back at the end, to the bit; what changes them within is lost. Before the first
        update the average is the model as it was when this was made.

        Raises:
            TrainingError: within itself.
        """
        self._check_apart()
        own = [tensor.clone() for tensor in _tensors(self._model)]
        self._swapped = True
        try:
            self.copy_to_model()
            yield
        finally:
            self._swapped = False
            _copy(own, self._model)

    def copy_to_model(self) -> None:
        """Give the model the averaged weights and buffers for good, at the end of a training."""
        _copy(_tensors(self.averaged.module), self._model)

    def state_dict(self) -> dict[str, Any]:
        """The average and its count; saved with the state.

        Raises:
            TrainingError: within `applied`, where the state would be saved with other weights.
        """
        self._check_apart()
        return dict(self.averaged.state_dict())

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Go on from a saved average."""
        self.averaged.load_state_dict(values)

    def _average(self, averaged: _Tensors, current: _Tensors, _: Tensor | int) -> None:
        """One group of tensors of one dtype, as `AveragedModel` asks for it."""
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        count = int(self.averaged.n_averaged)
        decay = min(self.decay, (1 + count) / (10 + count)) if self.warmup else self.decay
        average: Any = get_ema_multi_avg_fn  # torch has no types for it
        average(decay)(averaged, current, count)

    def _check_apart(self) -> None:
        if self._swapped:
            raise TrainingError(
                "the model has its averaged weights at the moment (EMA.applied): train and save "
                "the state outside of that block."
            )


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]


@torch.no_grad()
def _copy(values: list[Tensor], model: nn.Module) -> None:
    for tensor, value in zip(_tensors(model), values, strict=True):
        tensor.copy_(value)
