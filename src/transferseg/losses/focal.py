"""Focal loss: cross-entropy in which the easy pixels weigh little."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from transferseg.errors import SpecError
from transferseg.losses.inputs import (
    Pixels,
    check_class_weight,
    full_precision,
    per_class_weight,
    prepare,
)
from transferseg.types import TargetMode


def check_focal_options(mode: TargetMode, gamma: float, alpha: float | None) -> None:
    """Raise `SpecError` on a `gamma` or `alpha` that does not exist or does not fit the mode."""
    if not 0 <= gamma < math.inf:
        raise SpecError(f"gamma must be finite and 0 or more, got {gamma!r}.")
    if alpha is None:
        return
    if mode == "multiclass":
        raise SpecError("alpha is for modes 'binary' and 'multilabel'; give class_weight.")
    if not 0 <= alpha <= 1:
        raise SpecError(f"alpha must lie between 0 and 1, got {alpha!r}.")


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TargetMode,
    gamma: float = 2.0,
    alpha: float | None = None,
    ignore_index: int | None = 255,
    class_weight: Tensor | Sequence[float] | None = None,
) -> Tensor:
    r"""The mean of $(1 - p_t)^\gamma$ times the cross-entropy, over what counts.

    $p_t$ is the probability of what is there; for soft binary and multilabel targets $1 - p_t$ is
    $|y - p|$. With gamma 0 it is `binary_cross_entropy` or `cross_entropy`. There are no sums over
    a class, so neither `per_image` nor an empty class needs a policy.

    segmentation_models_pytorch agrees for binary and for overlapping classes, of which it can
    ignore no pixel. For exclusive classes it is another loss there: a sigmoid for each class
    against the rest, where this is the softmax that the source describes. With every pixel ignored
    it is NaN there and 0 here, and it computes in half precision where the logits are.

    Args:
        logits: raw scores, (B, K, H, W), any float dtype; computed in at least float32.
        target: class indices (B, H, W) for multiclass, else (B, K, H, W), 0 to 1.
        mode: "binary" (K = 1), "multiclass" or "multilabel".
        gamma: 0 or more: how little the easy pixels weigh. Below 1 it is for targets of 0 and 1:
            a soft one has an infinite slope at $p = y$ (0 is taken there, not beside it).
        alpha: weight of the positives, 1 - alpha that of the negatives; None weighs both 1. Binary
            and multilabel only.
        ignore_index: pixels with this target value count in no sum; None for none.
        class_weight: K values, 0 or more: a weighted mean over the classes; not for binary.

    Returns:
        A scalar, 0 or more; 0, with a graph, when nothing counts.

    Raises:
        SpecError: a shape, dtype or option that does not fit.

    Source: Lin et al. 2017, eq. 5.

    Example:
        >>> logits, mask = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
        >>> focal_loss(logits, mask, mode="binary")  # log 2 / 4
        tensor(0.1733)
    """
    check_focal_options(mode, gamma, alpha)
    check_class_weight(mode, class_weight)
    with full_precision(logits):
        pixels = prepare(logits, target, mode=mode, ignore_index=ignore_index)
        weight = pixels.counted.to(pixels.logits.dtype)
        classes = pixels.logits.new_ones(pixels.logits.shape[1])
        if class_weight is not None:
            classes = per_class_weight("class_weight", class_weight, pixels.logits)
        if mode == "multiclass":
            loss = _exclusive(pixels, gamma)
            weight = weight * classes[pixels.hard_target()].unsqueeze(1)
        else:
            loss = _independent(pixels, gamma, alpha)
            weight = weight * classes[:, None, None]
        total = weight.sum()
        return (loss * weight).sum() / torch.where(total > 0, total, 1.0)


def _independent(pixels: Pixels, gamma: float, alpha: float | None) -> Tensor:
    x, y = pixels.logits, pixels.target
    loss = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    if gamma:
        loss = loss * _power((y - x.sigmoid()).abs(), gamma)
    return loss if alpha is None else loss * (alpha * y + (1 - alpha) * (1 - y))


def _exclusive(pixels: Pixels, gamma: float) -> Tensor:
    # gather, not F.cross_entropy, which would skip the label -100 although nobody asked for it
    log_p = pixels.logits.log_softmax(1).gather(1, pixels.hard_target().unsqueeze(1))
    return -log_p * _power(-log_p.expm1(), gamma) if gamma else -log_p


def _power(error: Tensor, gamma: float) -> Tensor:
    """error^gamma, with a slope of 0 at 0 in place of an infinite one (gamma below 1).

    The slope to a logit is 0 there: an error of 0 is a probability that no longer moves.
    """
    if gamma < 1:  # below the cut no slope goes on; that of the power stays finite at it
        error = error.clamp_min(torch.finfo(error.dtype).tiny)
    power: Tensor = error**gamma
    return power
