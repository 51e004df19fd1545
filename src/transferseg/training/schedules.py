"""Learning-rate schedules as values: factors on the learning rate, update by update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from transferseg.errors import TrainingError, unknown_name

#: Anything that lays a schedule over an optimizer, given the number of optimizer updates in all.
ScheduleLike: TypeAlias = Callable[[Optimizer, int], LRScheduler]

_Shape: TypeAlias = Literal["constant", "cosine", "polynomial"]


@dataclass(frozen=True)
class Schedule:
    """A factor on every group's learning rate, a function of the number of updates done.

    With `w` warm-up updates, `n` updates in all and the share `p = (step - w) / (n - w)` of the way
    after the warm-up, held between 0 and 1, the factor of the update after `step` updates is

    - `(step + 1) / (w + 1)` while `step < w`, then
    - constant: 1
    - cosine: `final + (1 - final) * (1 + cos(pi * p)) / 2`
    - polynomial: `final + (1 - final) * (1 - p) ** power`

    Build it with `cosine`, `polynomial` or `constant`; call it with an optimizer and the number of
    updates for a torch scheduler, stepped once after every complete optimizer update.

    Attributes:
        shape: "constant", "cosine" or "polynomial".
        warmup_steps: updates of linear warm-up, 0 or more.
        final: the factor at the end, 0 to 1.
        power: of the polynomial, above 0.

    Raises:
        TrainingError: a value outside its range, an unknown shape.

    Example:
        >>> [round(cosine(warmup_steps=1, final=0.0).factor(step, 5), 3) for step in range(6)]
        [0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """

    shape: _Shape
    warmup_steps: int = 0
    final: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.shape not in get_args(_Shape):
            raise TrainingError(unknown_name("shape of a schedule", self.shape, get_args(_Shape)))
        if self.warmup_steps < 0:
            raise TrainingError(f"warmup_steps must be 0 or more, got {self.warmup_steps}.")
        if not 0.0 <= self.final <= 1.0:
            raise TrainingError(f"final must lie in 0..1, got {self.final}.")
        if self.power <= 0:
            raise TrainingError(f"power must be above 0, got {self.power}.")

    @property
    def bounded(self) -> bool:
        """Whether the schedule depends on the number of updates in all."""
        return self.shape != "constant"

    def factor(self, step: int, total_steps: int) -> float:
        """What the learning rate is multiplied with once `step` updates are done."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.shape == "constant":
            return 1.0
        way = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        left = 1.0 - min(1.0, way)
        if self.shape == "cosine":
            # (1 - cos(pi * left)) / 2, not (1 + cos(pi * way)) / 2: exactly 0 at the end
            return self.final + (1.0 - self.final) * (1.0 - math.cos(math.pi * left)) / 2.0
        return float(self.final + (1.0 - self.final) * left**self.power)

    def __call__(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Lay the schedule over an optimizer; `total_steps` counts complete updates."""
        if self.bounded and total_steps <= self.warmup_steps:
            raise TrainingError(
                f"{self.warmup_steps} warm-up updates leave nothing of {total_steps} updates in "
                "all; shorten the warm-up or train for longer."
            )
        return LambdaLR(optimizer, partial(self.factor, total_steps=total_steps))


@dataclass(frozen=True)
class Plateau:
    """Multiply the learning rate by `factor` when the score has not improved for a while.

    It is stepped with a score after each evaluation (`train` does; in a loop of one's own,
    `state.step_plateau(score)`), not with the updates.

    Attributes:
        factor: above 0, below 1.
        patience: evaluations without improvement that are waited through.
        mode: "max" where higher scores are better, "min" where lower ones are.
        minimum: the learning rate is not reduced below.

    Raises:
        TrainingError: a value outside its range.

    Example:
        >>> plateau(factor=0.5, patience=3, mode="min")
        Plateau(factor=0.5, patience=3, mode='min', minimum=0.0)
    """

    factor: float = 0.1
    patience: int = 10
    mode: Literal["max", "min"] = "max"
    minimum: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.factor < 1.0:
            raise TrainingError(f"factor must lie between 0 and 1, got {self.factor}.")
        if self.patience < 0:
            raise TrainingError(f"patience must be 0 or more, got {self.patience}.")
        if self.mode not in ("max", "min"):
            raise TrainingError(unknown_name("mode", self.mode, ("max", "min")))
        if self.minimum < 0:
            raise TrainingError(f"minimum must be 0 or more, got {self.minimum}.")

    @property
    def bounded(self) -> bool:
        """Whether the schedule depends on the number of updates in all: it does not."""
        return False

    def __call__(self, optimizer: Optimizer, total_steps: int) -> ReduceLROnPlateau:  # noqa: ARG002
        """Lay the schedule over an optimizer; the number of updates does not matter."""
        return ReduceLROnPlateau(
            optimizer,
            mode=self.mode,
            factor=self.factor,
            patience=self.patience,
            min_lr=self.minimum,
            threshold=0.0,  # any improvement counts, as it does for the best checkpoint
        )


def cosine(*, warmup_steps: int = 0, final: float = 0.0) -> Schedule:
    """Half a cosine from 1 down to `final`.

    Source: Loshchilov & Hutter 2017, eq. 5, one cycle.

    Example:
        >>> cosine().factor(100, 100), cosine(final=0.5).factor(0, 100)
        (0.0, 1.0)
    """
    return Schedule("cosine", warmup_steps=warmup_steps, final=final)


def polynomial(*, power: float = 0.9, final: float = 0.0, warmup_steps: int = 0) -> Schedule:
    """A polynomial from 1 down to `final`, the "poly" policy of segmentation.

    Source: Chen et al. 2018 (DeepLab), section 4.1, power 0.9.

    Example:
        >>> polynomial(power=1.0).factor(25, 100)
        0.75
    """
    return Schedule("polynomial", warmup_steps=warmup_steps, final=final, power=power)


def constant(*, warmup_steps: int = 0) -> Schedule:
    """The learning rate as it is, after a linear warm-up.

    Example:
        >>> constant(warmup_steps=3).factor(1, 100)
        0.5
    """
    return Schedule("constant", warmup_steps=warmup_steps)


def plateau(
    *,
    factor: float = 0.1,
    patience: int = 10,
    mode: Literal["max", "min"] = "max",
    minimum: float = 0.0,
) -> Plateau:
    """Reduce the learning rate by `factor` after `patience` evaluations without improvement.

    Example:
        >>> plateau().bounded
        False
    """
    return Plateau(factor=factor, patience=patience, mode=mode, minimum=minimum)


#: Schedules by name: functions of their options -> a value that lays itself over an optimizer.
SCHEDULES: dict[str, Callable[..., Schedule | Plateau]] = {
    "constant": constant,
    "cosine": cosine,
    "plateau": plateau,
    "polynomial": polynomial,
}
