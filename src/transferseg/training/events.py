"""What `fit` yields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class StepEvent:
    """One complete optimizer update.

    Its losses stay on the device until they are asked for: each read of `loss` or `terms` waits
    for the device, so read them every now and then, not at every step. Its times are the host's:
    work that a device still has to do is not in them, but in those of a later event.

    Attributes:
        step: updates so far, this one included.
        epoch: the epoch under way, counted from 1.
        tensors: the loss ("loss") and its terms, detached scalars on the device: means over the
            batches of this process that were accumulated into the update.
        learning_rate: the highest of the parameter groups, as this update used it.
        images: in the update, over all processes.
        seconds: spent in `fit` since the event before.
        data_seconds: of these, what this process waited for batches.
    """

    step: int
    epoch: int
    tensors: Mapping[str, Tensor]
    learning_rate: float
    images: int
    seconds: float
    data_seconds: float

    @property
    def loss(self) -> float:
        """The loss of this process; waits for the device."""
        return float(self.tensors["loss"].item())

    @property
    def terms(self) -> dict[str, float]:
        """The logged parts of the loss by name; waits for the device."""
        return {name: float(t.item()) for name, t in self.tensors.items() if name != "loss"}

    @property
    def images_per_second(self) -> float:
        """Images over seconds, all processes together."""
        return _rate(self.images, self.seconds)


@dataclass(frozen=True)
class EpochEvent:
    """One complete epoch.

    Attributes:
        epoch: complete epochs, this one included.
        step: complete updates so far.
        loss: mean over the epoch's samples and all processes, each with the weights of its moment;
            NaN when every update of the epoch was left out.
        terms: means of the loss's logged parts.
        learning_rate: the highest of the parameter groups, for the update to come.
        seconds: spent in `fit` in this epoch (not in the loop around it), until the device was
            done.
        samples_seen: over all processes, since the start of training.
        images: in the updates of this epoch, over all processes.
        data_seconds: of the seconds, what this process waited for batches: near 0 where loading
            keeps up with training, near `seconds` where training waits for more `num_workers`.
        skipped: updates of this epoch that were left out, because float16 gradients overflowed or
            the loss was not finite (`skip_nonfinite`).
    """

    epoch: int
    step: int
    loss: float
    terms: Mapping[str, float]
    learning_rate: float
    seconds: float
    samples_seen: int
    images: int
    data_seconds: float
    skipped: int

    @property
    def images_per_second(self) -> float:
        """Images over seconds, all processes together."""
        return _rate(self.images, self.seconds)


def _rate(images: int, seconds: float) -> float:
    return images / seconds if seconds > 0 else math.nan


def event_row(event: StepEvent | EpochEvent) -> dict[str, Any]:
    """An event as a flat row of JSON values, for a logger or a tracker.

    Of a `StepEvent` it reads the loss, and so waits for the device: call it at every n-th step.

    Args:
        event: what `fit` yields.

    Returns:
        "event" ("step" or "epoch"), "epoch", "step", "loss" and its terms, "learning_rate",
        "seconds", "data_seconds", "images_per_second"; of an epoch "samples_seen" and "skipped".

    Example:
        >>> event = EpochEvent(
        ...     epoch=1, step=9, loss=0.5, terms={"dice": 0.3}, learning_rate=0.01, seconds=4.0,
        ...     samples_seen=36, images=36, data_seconds=1.0, skipped=0,
        ... )
        >>> row = event_row(event)
        >>> row["event"], row["dice"], row["images_per_second"]
        ('epoch', 0.3, 9.0)
    """
    row = {
        "event": "step" if isinstance(event, StepEvent) else "epoch",
        "epoch": event.epoch,
        "step": event.step,
        "loss": event.loss,
        **event.terms,
        "learning_rate": event.learning_rate,
        "seconds": event.seconds,
        "data_seconds": event.data_seconds,
        "images_per_second": event.images_per_second,
    }
    if isinstance(event, EpochEvent):
        row |= {"samples_seen": event.samples_seen, "skipped": event.skipped}
    return row


def plain_number(value: Any) -> Any:  # noqa: ANN401 - a cell of a row
    """Python's own number of one of NumPy's or of a tensor without dimensions; others as they are.

    Example:
        >>> import numpy as np
        >>> plain_number(np.float32(0.5)), plain_number("text")
        (0.5, 'text')
    """
    return value.item() if getattr(value, "ndim", None) == 0 else value
