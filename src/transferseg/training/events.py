"""What `fit` yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class StepEvent:
    """One complete optimizer update.

    Its losses stay on the device until they are asked for: each read of `loss` or `terms` waits
    for the device, so read them every now and then, not at every step.

    Attributes:
        step: updates so far, this one included.
        epoch: the epoch under way, counted from 1.
        tensors: the loss ("loss") and its terms, detached scalars on the device: means over the
            batches of this process that were accumulated into the update.
        learning_rate: the highest of the parameter groups, as this update used it.
    """

    step: int
    epoch: int
    tensors: Mapping[str, Tensor]
    learning_rate: float

    @property
    def loss(self) -> float:
        """The loss of this process; waits for the device."""
        return float(self.tensors["loss"].item())

    @property
    def terms(self) -> dict[str, float]:
        """The logged parts of the loss by name; waits for the device."""
        return {name: float(t.item()) for name, t in self.tensors.items() if name != "loss"}


@dataclass(frozen=True)
class EpochEvent:
    """One complete epoch.

    Attributes:
        epoch: complete epochs, this one included.
        step: complete updates so far.
        loss: mean over the epoch's samples and all processes, each with the weights of its moment.
        terms: means of the loss's logged parts.
        learning_rate: the highest of the parameter groups, for the update to come.
        seconds: spent in `fit` in this epoch (not in the loop around it).
        samples_seen: over all processes, since the start of training.
    """

    epoch: int
    step: int
    loss: float
    terms: Mapping[str, float]
    learning_rate: float
    seconds: float
    samples_seen: int
