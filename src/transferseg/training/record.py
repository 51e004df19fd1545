"""The losses of an epoch: kept on the device, read once, checked when read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from transferseg.errors import TrainingError, some


@dataclass(frozen=True, eq=False)
class BatchLoss:
    """The loss of one batch, and where it stands.

    Attributes:
        terms: detached scalars on the device, "loss" among them.
        images: in the batch, of this process; the weight of its loss.
        step: the update that it takes part in, counted from 1.
        epoch: counted from 1.
        batch: of the epoch, counted from 1.
        ids: of its samples, empty where they have none.
    """

    terms: Mapping[str, Tensor]
    images: int
    step: int
    epoch: int
    batch: int
    ids: tuple[str, ...]

    @property
    def place(self) -> str:
        """Which batch it was, as text."""
        samples = f", samples {some(self.ids)}" if self.ids else ""
        return f"epoch {self.epoch}, batch {self.batch}{samples}"


class EpochRecord:
    """Running means of the loss and its terms over the batches of one epoch.

    `add` keeps device tensors and synchronises nothing. `settle` moves all of them to the host in
    one copy and raises on the first loss that is not finite. The sums are kept in batch order as
    Python floats, so that when they are settled changes no bit of the means.
    """

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.weight = 0
        self._pending: list[BatchLoss] = []

    def add(self, loss: BatchLoss) -> None:
        """Keep one batch's detached scalars, weighted by its images."""
        self._pending.append(loss)

    def settle(self) -> None:
        """Read what is pending, in one copy from the device.

        Raises:
            TrainingError: a loss that is not finite; names the update, the epoch, the batch and
                its samples. It stays pending, so that no later save passes over it.
        """
        pending = self._pending
        if not pending:
            return
        scalars = [value for loss in pending for value in loss.terms.values()]
        stacked = torch.stack([value.reshape(()).to(torch.float32) for value in scalars])
        values = iter(stacked.cpu().tolist())
        read = [{name: next(values) for name in loss.terms} for loss in pending]
        for loss, own in zip(pending, read, strict=True):
            if not math.isfinite(own["loss"]):
                raise TrainingError(_not_finite(own, loss))
        for loss, own in zip(pending, read, strict=True):
            for name, value in own.items():
                self.totals[name] = self.totals.get(name, 0.0) + value * loss.images
            self.weight += loss.images
        self._pending = []

    def reduced(self, accelerator: Accelerator) -> tuple[dict[str, float], int]:
        """The settled sums and the number of samples over all processes."""
        if accelerator.num_processes == 1:
            return dict(self.totals), self.weight
        own = torch.tensor(
            [*self.totals.values(), self.weight], dtype=torch.float64, device=accelerator.device
        )
        summed = accelerator.reduce(own, reduction="sum").tolist()
        return dict(zip(self.totals, summed[:-1], strict=True)), int(summed[-1])

    def restore(self, totals: Mapping[str, float], weight: int) -> None:
        """Go on from saved sums."""
        self.totals, self.weight = dict(totals), weight
        self._pending = []


def _not_finite(values: Mapping[str, float], loss: BatchLoss) -> str:
    parts = {name: value for name, value in values.items() if name != "loss"}
    terms = f", its terms {parts}" if parts else ""
    return (
        f"the loss is {values['loss']} in update {loss.step} ({loss.place}){terms}. Lower the "
        "learning rate, clip gradients (clip_norm=1.0), look at those samples, or leave such "
        "updates out (skip_nonfinite=10); the last save before it can be resumed."
    )
