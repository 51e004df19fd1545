"""What one call of `fit` is to do: its options, checked, and where it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

from transferseg.errors import TrainingError
from transferseg.models.freezing import Unfreezing
from transferseg.training.state import TrainState
from transferseg.training.targets import Loss, check_target
from transferseg.types import Target


def whole(name: str, value: object, least: int) -> int:
    """A number of epochs, updates or images, as Python's own: NumPy's do not go to JSON.

    Raises:
        TrainingError: it is not whole (True is no number either), or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TrainingError(f"{name} must be a whole number, got {value!r}.")
    if value < least:
        raise TrainingError(f"{name} must be {least} or more, got {value}.")
    return int(value)


@dataclass(frozen=True)
class Plan:
    """The options of `fit`; see there.

    Raises:
        TrainingError: an option out of range, or options that do not fit each other.
    """

    loss: Loss
    target: Target
    clip_norm: float | None
    channels_last: bool
    epochs: int | None
    steps: int | None
    unfreeze: Unfreezing | None
    auxiliary_weight: float | None
    skip_nonfinite: int

    def __post_init__(self) -> None:
        check_target(self.target)
        numbers = {
            "epochs": self.epochs, "steps": self.steps, "skip_nonfinite": self.skip_nonfinite,
        }  # fmt: skip
        for name, value in numbers.items():
            if value is not None:
                object.__setattr__(self, name, whole(name, value, 0))
        if (self.epochs is None) == (self.steps is None):
            raise TrainingError(
                f"give one of epochs and steps, got epochs={self.epochs}, steps={self.steps}."
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise TrainingError(f"clip_norm must be above 0, or None, got {self.clip_norm}.")
        if self.unfreeze is not None and not isinstance(self.unfreeze, Unfreezing):
            raise TrainingError(
                f"unfreeze must be an Unfreezing, got {type(self.unfreeze).__name__}; give "
                "unfreeze=models.Unfreezing({epoch: names})."
            )

    def reached(self, state: TrainState) -> bool:
        """Whether the state is where this plan ends."""
        if self.steps is not None:
            # An epoch all of whose batches are done has an event to come, perhaps after a kill.
            complete = 0 < state.batches == state.epoch_length
            return state.step >= self.steps and not complete
        return self.epochs is not None and state.epoch >= self.epochs

    def last_step(self, state: TrainState, batches: int | None) -> int | None:
        """The number of updates at the end, None if it cannot be known."""
        if self.steps is not None or batches is None or self.epochs is None:
            return self.steps
        each = math.ceil(batches / state.accumulation)
        begun = math.ceil(state.batches / state.accumulation)  # of the epoch under way
        return state.step - begun + max(0, self.epochs - state.epoch) * each
