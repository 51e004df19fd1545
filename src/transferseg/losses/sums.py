"""The sums that every region loss and cross-entropy is made of, with an analytic gradient.

Dice, Jaccard, Tversky and both cross-entropies depend on the logits through a handful of sums per
image and class. `pixel_sums` computes these in one pass over logits and target, block by block, and
saves nothing but the two; its backward computes the probabilities again and writes the gradient,
block by block too. What is made of the sums is plain autograd on (B, K) numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transferseg.losses.binary_sums import BinarySums
from transferseg.losses.class_sums import ClassSums
from transferseg.losses.inputs import (
    check_segmentation,
    check_smoothing,
    per_class_weight,
)
from transferseg.types import TargetMode


@dataclass(frozen=True)
class PixelSums:
    """Sums over the counted pixels, with y the ground truth and p the probability.

    Attributes:
        entropy: the cross-entropies, (B, K); with a gradient.
        weight: what they weigh, (B, K): the number of pixels, multiclass their weights.
        linear: sum of p, (B, K); with a gradient.
        square: sum of p^2, (B, K); with a gradient.
        overlap: sum of y p, (B, K); with a gradient.
        truth: sum of y, or of y^2 if squares were asked for, (B, K).
        number: counted pixels, (B, K).
    """

    entropy: Tensor
    weight: Tensor
    linear: Tensor
    square: Tensor
    overlap: Tensor
    truth: Tensor
    number: Tensor


def pixel_sums(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TargetMode,
    ignore_index: int | None,
    entropy: bool,
    region: bool,
    squared: bool,
    class_weight: Tensor | Sequence[float] | None = None,
    pos_weight: Tensor | Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> PixelSums:
    """The sums of one batch; those that are not asked for are 0.

    Args:
        logits: raw scores, (B, K, H, W), any float dtype; computed in at least float32.
        target: class indices (B, H, W) or probabilities (B, K, H, W) for multiclass; (B, K, H, W)
            else.
        mode: "binary" (K = 1), "multiclass" or "multilabel".
        ignore_index: target value that counts nowhere, or None.
        entropy: sum the cross-entropies.
        region: sum what the region losses are made of.
        squared: sum p^2, and y^2 in place of y.
        class_weight: K values, of the cross-entropy; multiclass only (elsewhere a factor of rows).
        pos_weight: K values, of the positives; binary and multilabel only.
        label_smoothing: of the cross-entropy's target, 0 to 1.

    Returns:
        The sums, in float32, or float64 for float64 logits. Autocast lowers nothing: what is
        on its lists here (exponentials, softmax) stands there for float32.

    Raises:
        SpecError: a shape, dtype or option that does not fit.

    Example:
        >>> sums = pixel_sums(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), mode="binary",
        ...                   ignore_index=None, entropy=True, region=True, squared=False)
        >>> sums.linear, sums.number
        (tensor([[2.]]), tensor([[4.]]))
    """
    check_segmentation(logits, target, mode, ignore_index)
    check_smoothing(label_smoothing)
    wanted = (ignore_index, label_smoothing, entropy, region, squared)
    x, y = logits.flatten(2), target.detach().flatten(1 if target.ndim == 3 else 2)
    if mode == "multiclass":
        weight = None
        if class_weight is not None:
            weight = per_class_weight("class_weight", class_weight, logits)
        return PixelSums(*ClassSums.apply(x, y, weight, *wanted))
    extra = None
    if pos_weight is not None:
        extra = per_class_weight("pos_weight", pos_weight, logits)[:, None] - 1
    sums = BinarySums.apply(x, y, extra, *wanted)
    return PixelSums(sums[0], sums[-1], *sums[1:])


def mean_entropy(sums: PixelSums, class_weight: Tensor | Sequence[float] | None = None) -> Tensor:
    """The mean of the cross-entropies over what counts; 0, with a graph, where nothing does.

    Args:
        sums: of `pixel_sums`.
        class_weight: K values, for binary and multilabel sums: a weighted mean over the classes.

    Example:
        >>> sums = pixel_sums(torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2), mode="multilabel",
        ...                   ignore_index=None, entropy=True, region=False, squared=False)
        >>> mean_entropy(sums)  # log 2
        tensor(0.6931)
    """
    entropy, weight = sums.entropy, sums.weight
    if class_weight is not None:
        classes = per_class_weight("class_weight", class_weight, entropy)
        entropy, weight = entropy * classes, weight * classes
    total = weight.sum()
    # Smoothed entropies may be above 0 where the weights of all pixels are 0: these count nothing.
    return torch.where(total > 0, entropy.sum(), 0.0) / torch.where(total > 0, total, 1.0)
