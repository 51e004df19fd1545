"""Distribution losses: cross-entropy, averaged over what counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from transferseg.losses.inputs import per_class_weight
from transferseg.losses.sums import mean_entropy, pixel_sums


def binary_cross_entropy_of(
    logits: Tensor, target: Tensor, counted: Tensor, pos_weight: Tensor | Sequence[float] | None
) -> Tensor:
    """Mean binary cross-entropy of logits (B, K, ...) over the entries that count."""
    if pos_weight is not None:
        pos_weight = per_class_weight("pos_weight", pos_weight, logits)
        pos_weight = pos_weight.reshape(-1, *[1] * (logits.ndim - 2))
    loss = F.binary_cross_entropy_with_logits(
        logits, target, pos_weight=pos_weight, reduction="none"
    )
    return torch.where(counted, loss, 0.0).sum() / counted.sum().clamp(min=1)


def binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    pos_weight: Tensor | Sequence[float] | None = None,
    class_weight: Tensor | Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = 255,
) -> Tensor:
    """Binary cross-entropy of logits, the mean over pixels and classes that count.

    -(w y log p + (1 - y) log(1 - p)) with p = sigmoid(logit) and w the class's `pos_weight`; for
    one class ("binary") or several that may overlap ("multilabel").

    Args:
        logits: raw scores, (B, K, H, W), any float dtype; computed in at least float32.
        target: (B, K, H, W), 0 to 1 in any real dtype, soft values allowed (not checked here).
        pos_weight: K values, the weight of the positives of each class.
        class_weight: K values, 0 or more: a weighted mean over the classes.
        label_smoothing: s from 0 to 1; y becomes (1 - s) y + s / 2.
        ignore_index: entries with this target value count in no sum; None for none.

    Returns:
        A scalar, 0 or more; 0, with a graph, when nothing counts.

    Raises:
        SpecError: a shape or dtype that does not fit, naming both.

    Source: Khadka 2020, section 3.4; the definition is torch's `binary_cross_entropy_with_logits`.

    Example:
        >>> binary_cross_entropy(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))  # log 2
        tensor(0.6931)
    """
    return mean_entropy(
        pixel_sums(
            logits, target, mode="multilabel", ignore_index=ignore_index, entropy=True,
            region=False, squared=False, pos_weight=pos_weight, label_smoothing=label_smoothing,
        ),
        class_weight,
    )  # fmt: skip


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = 255,
) -> Tensor:
    """Cross-entropy of logits over exclusive classes, the mean over pixels that count.

    With `class_weight` the mean is the weighted one: the sum of w[y] times the loss, over the sum
    of w[y], as in torch for class indices; for probabilities torch divides by the number of pixels.

    Args:
        logits: raw scores, (B, K, H, W), K of 2 or more, any float dtype; computed in at least
            float32.
        target: class indices, (B, H, W), integers in 0..K-1 or `ignore_index` (not checked here),
            or probabilities (B, K, H, W) of a floating dtype.
        class_weight: K values, the weight of each class.
        label_smoothing: s from 0 to 1; y becomes (1 - s) y + s / K, as in torch.
        ignore_index: pixels with this label count in no sum; None for none.

    Returns:
        A scalar, 0 or more; 0, with a graph, when nothing counts (torch gives NaN).

    Raises:
        SpecError: a shape or dtype that does not fit, naming both.

    Source: the definition is torch's `cross_entropy`; the several-class form of the cross-entropy
    in Khadka 2020, section 3.4.

    Example:
        >>> cross_entropy(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2).long())  # log 3
        tensor(1.0986)
    """
    return mean_entropy(
        pixel_sums(
            logits, target, mode="multiclass", ignore_index=ignore_index, entropy=True,
            region=False, squared=False, class_weight=class_weight, label_smoothing=label_smoothing,
        )
    )  # fmt: skip
