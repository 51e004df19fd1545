"""Deep supervision: one loss of the logits of several depths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from transferseg.errors import SpecError
from transferseg.losses.inputs import at_least_float32, full_precision


class DeepSupervisionLoss(nn.Module):
    """The weighted sum of a loss over several logits, each resized to the target.

    Logits of another size than the target are resized in at least float32. For two, main
    and auxiliary with weights (1, 0.4), it is what `fit` computes for a model with an auxiliary
    head.

    Args:
        loss: (logits, target) -> scalar, such as `BCEDiceLoss`. If it has `terms`, those of the
            first logits are logged.
        weights: one for each logits, 0 or more, the first of the main ones; None halves the weight
            from each to the next, and all add up to 1 (Isensee et al. 2021).

    Raises:
        SpecError: a weight below 0; when called, no logits or another number of them.

    Source: Lee et al. 2015.

    Example:
        >>> import torch
        >>> loss = DeepSupervisionLoss(nn.BCEWithLogitsLoss(), weights=(1.0, 0.4))
        >>> logits = [torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)]
        >>> loss(logits, torch.ones(1, 1, 8, 8))  # 1.4 log 2
        tensor(0.9704)
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if weights is not None and not all(0 <= weight < math.inf for weight in weights):
            raise SpecError(f"weights must be finite and 0 or more, got {tuple(weights)}.")
        self.loss = loss
        self.weights = None if weights is None else tuple(weights)

    def terms(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> dict[str, Tensor]:
        """The scalars "loss" (with its graph), "main_loss", "auxiliary_loss" and the loss's parts.

        With more than two logits the others are "auxiliary_loss_1", "auxiliary_loss_2" and so on,
        all without their weights. One tensor in place of a sequence, as in evaluation, is the main
        one alone, with weight 1.
        """
        if isinstance(logits, Tensor):
            return self._parts(logits, target)
        weights = self._weights(len(logits))
        main = self._parts(logits[0], target)
        others = [self.loss(resized(each, target), target) for each in logits[1:]]
        total = weights[0] * main["loss"]
        for weight, other in zip(weights[1:], others, strict=True):
            total = total + weight * other
        found = {"loss": total, "main_loss": main.pop("loss").detach()}
        for number, other in enumerate(others, start=1):
            name = "auxiliary_loss" if len(others) == 1 else f"auxiliary_loss_{number}"
            found[name] = other.detach()
        return {**found, **main}  # `|` is beyond torch.compile of torch 2.5

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """The scalar loss of logits, the main ones first, and the target of them all."""
        return self.terms(logits, target)["loss"]

    def extra_repr(self) -> str:
        """The weights, for `repr`."""
        return f"weights={self.weights}"

    def _parts(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        logits = resized(logits, target)
        terms = getattr(self.loss, "terms", None)
        return dict(terms(logits, target)) if terms else {"loss": self.loss(logits, target)}

    def _weights(self, number: int) -> tuple[float, ...]:
        if not number:
            raise SpecError(
                "DeepSupervisionLoss was given no logits: give one or more, main first."
            )
        if self.weights is None:
            whole = 2 - 0.5 ** (number - 1)
            return tuple(0.5**depth / whole for depth in range(number))
        if len(self.weights) != number:
            raise SpecError(
                f"DeepSupervisionLoss has {len(self.weights)} weights and was given {number} "
                "logits; give a weight for each."
            )
        return self.weights


def resized(logits: Tensor, target: Tensor) -> Tensor:
    """Logits at the height and width of the target, bilinear; where resized, in at least float32.

    Example:
        >>> import torch
        >>> resized(torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 8)).shape
        torch.Size([1, 2, 8, 8])
    """
    size = target.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    with full_precision(logits):
        wide = at_least_float32(logits)
        return F.interpolate(wide, size=size, mode="bilinear", align_corners=False)
