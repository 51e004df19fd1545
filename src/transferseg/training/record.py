"""The losses of an epoch: kept on the device, read once, checked when read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor

from transferseg.errors import TrainingError, some


class EpochRecord:
    """Running means of the loss and its terms over the batches of one epoch.

    `add` keeps device tensors and synchronises nothing. `settle` moves all of them to the host in
    one copy and raises on the first loss that is not finite. The sums are kept in batch order as
    Python floats, so that when they are settled changes no bit of the means.
    """

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.weight = 0
        self._pending: list[tuple[dict[str, Tensor], int, _Place]] = []

    def add(
        self,
        terms: Mapping[str, Tensor],
        *,
        weight: int,
        step: int,
        epoch: int,
        batch: int,
        ids: Sequence[str],
    ) -> None:
        """Keep one batch's detached scalars, "loss" among them, weighted by its samples."""
        self._pending.append((dict(terms), weight, (step, epoch, batch, tuple(ids))))

    def settle(self) -> None:
        """Read what is pending, in one copy from the device.

        Raises:
            TrainingError: a loss that is not finite; names the update, the epoch, the batch and
                its samples.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        scalars = [value for terms, _, _ in pending for value in terms.values()]
        stacked = torch.stack([value.reshape(()).to(torch.float32) for value in scalars])
        values = iter(stacked.cpu().tolist())
        for terms, weight, place in pending:
            own = {name: next(values) for name in terms}
            if not math.isfinite(own["loss"]):
                raise TrainingError(_not_finite(own, place))
            for name, value in own.items():
                self.totals[name] = self.totals.get(name, 0.0) + value * weight
            self.weight += weight

    def reduced(self, accelerator: Accelerator) -> tuple[dict[str, float], int]:
        """The settled sums and the number of samples over all processes."""
        if accelerator.num_processes == 1:
            return dict(self.totals), self.weight
        own = torch.tensor(
            [*self.totals.values(), self.weight], dtype=torch.float64, device=accelerator.device
        )
        summed = accelerator.reduce(own, reduction="sum").tolist()
        return dict(zip(self.totals, summed[:-1], strict=True)), int(summed[-1])

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the samples of the epoch so far, over all processes."""
        totals, weight = self.reduced(accelerator)
        return {name: total / weight for name, total in totals.items()}

    def restore(self, totals: Mapping[str, float], weight: int) -> None:
        """Go on from saved sums."""
        self.totals, self.weight = dict(totals), weight
        self._pending = []


#: Step, epoch, batch (each counted from 1) and the ids of the samples.
_Place: TypeAlias = tuple[int, int, int, tuple[str, ...]]


def _not_finite(values: Mapping[str, float], place: _Place) -> str:
    step, epoch, batch, ids = place
    parts = {name: value for name, value in values.items() if name != "loss"}
    terms = f", its terms {parts}" if parts else ""
    samples = f", samples {some(ids)}" if ids else ""
    return (
        f"the loss is {values['loss']} in update {step} (epoch {epoch}, batch {batch}{samples})"
        f"{terms}. Lower the learning rate, clip gradients (clip_norm=1.0), or look at those "
        "samples; the last save before it can be resumed."
    )
