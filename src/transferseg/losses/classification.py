"""Classification losses: several labels an image or exclusive classes, some of them missing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transferseg.errors import SpecError, describe
from transferseg.losses.distribution import binary_cross_entropy_of
from transferseg.losses.inputs import (
    at_least_float32,
    check_pair,
    check_smoothing,
    full_precision,
    per_class_weight,
    weight_buffer,
)


def multilabel_loss(
    logits: Tensor, label: Tensor, *, pos_weight: Tensor | Sequence[float] | None = None
) -> Tensor:
    """Binary cross-entropy over the labels that are known, the mean over them.

    Args:
        logits: raw scores, (B, K), any float dtype; computed in at least float32.
        label: (B, K), 0 to 1 in any real dtype, NaN where missing; soft values allowed (not checked
            here). A missing label counts in no sum, and its logit gets no gradient.
        pos_weight: K values, the weight of the positives of each label.

    Returns:
        A scalar, 0 or more; 0, with a graph, when every label of the batch is missing.

    Raises:
        SpecError: a shape or dtype that does not fit, naming both.

    Example:
        >>> multilabel_loss(torch.zeros(1, 2), torch.tensor([[1.0, torch.nan]]))  # log 2
        tensor(0.6931)
    """
    check_pair("logits", logits, label, ndim=2)
    with full_precision(logits):
        logits = at_least_float32(logits)
        label = label.to(logits.dtype)
        known = ~label.isnan()
        return binary_cross_entropy_of(
            torch.where(known, logits, 0.0), torch.where(known, label, 0.0), known, pos_weight
        )


class MultilabelLoss(nn.Module):
    """`multilabel_loss` with its weights kept.

    Args:
        pos_weight: K values, the weight of the positives of each label; a buffer that is no part
            of the state dict.

    Example:
        >>> MultilabelLoss(pos_weight=[2.0, 1.0])
        MultilabelLoss(pos_weight=[2.0, 1.0])
    """

    pos_weight: Tensor | None

    def __init__(self, *, pos_weight: Tensor | Sequence[float] | None = None) -> None:
        super().__init__()
        self.register_buffer(
            "pos_weight", weight_buffer("pos_weight", pos_weight), persistent=False
        )

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """The scalar loss: see `multilabel_loss`."""
        return multilabel_loss(logits, label, pos_weight=self.pos_weight)

    def extra_repr(self) -> str:
        """The weights, for `repr`."""
        return f"pos_weight={None if self.pos_weight is None else self.pos_weight.tolist()}"


def _check_rows(logits: Tensor, label: Tensor) -> None:
    """Raise `SpecError` unless both are (B, K) with two or more exclusive classes."""
    if label.ndim == 1:
        raise SpecError(
            f"label must be one row an image, (B, K), got logits {describe(logits)} and label "
            f"{describe(label)}. Class indices become rows with "
            "torch.nn.functional.one_hot(label, K)."
        )
    check_pair("logits", logits, label, ndim=2)
    if logits.shape[1] < 2:
        raise SpecError(
            f"exclusive classes are two or more, got logits {describe(logits)}. Use "
            "multilabel_loss for one."
        )


def multiclass_loss(
    logits: Tensor,
    label: Tensor,
    *,
    class_weight: Tensor | Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy over exclusive classes, the mean over the images whose label is known.

    With y a row of `label`, w the weights (1 without), s the smoothing, p = softmax(logits) and
    q = (1 - s) y + s / K: the sum over the known rows of -sum_k w_k q_k log p_k, over the sum of
    their sum_k w_k y_k. Without weights that is the number of known rows.

    For one-hot rows that is torch's `cross_entropy` of class indices, weights and smoothing
    included. For soft rows it is torch's of class probabilities, except with weights: there torch
    divides by the number of rows, here the mean stays the weighted one. A class index and its
    one-hot row have one loss here, two in torch.

    Args:
        logits: raw scores, (B, K), K of 2 or more, any float dtype; computed in at least float32.
        label: (B, K), 0 to 1 in any real dtype, each row one-hot or soft with a sum of 1 (not
            checked here). A row with a NaN is a missing label: it counts in no sum, and its logits
            get no gradient.
        class_weight: K values, 0 or more, the weight of each class.
        label_smoothing: part of each label that is spread evenly over all classes, 0 to 1.

    Returns:
        A scalar, 0 or more; 0, with a graph, when every label of the batch is missing, or when the
        known ones have weight 0.

    Raises:
        SpecError: a shape or dtype that does not fit, naming both; smoothing outside 0..1.

    Source: the definition is torch's `cross_entropy`; label smoothing: Szegedy et al. 2016,
    section 7.

    Example:
        >>> label = torch.tensor([[1.0, 0.0, 0.0], [torch.nan] * 3])
        >>> multiclass_loss(torch.zeros(2, 3), label)  # log 3
        tensor(1.0986)
    """
    _check_rows(logits, label)
    check_smoothing(label_smoothing)
    with full_precision(logits):
        logits = at_least_float32(logits)
        label = label.to(logits.dtype)
        known = ~label.isnan().any(dim=1, keepdim=True)
        logits, label = torch.where(known, logits, 0.0), torch.where(known, label, 0.0)
        weight, total = None, known.sum()
        if class_weight is not None:
            weight = per_class_weight("class_weight", class_weight, logits)
            total = (label * weight).sum()
        loss = F.cross_entropy(
            logits, label, weight=weight, reduction="none", label_smoothing=label_smoothing
        )
        counted = known.squeeze(1) & (total > 0)
        return torch.where(counted, loss, 0.0).sum() / torch.where(total > 0, total, 1)


class MulticlassLoss(nn.Module):
    """`multiclass_loss` with its options kept.

    Args:
        class_weight: K values, the weight of each class; a buffer that is no part of the state
            dict.
        label_smoothing: part of each label that is spread evenly over all classes, 0 to 1.

    Raises:
        SpecError: smoothing outside 0..1.

    Example:
        >>> MulticlassLoss(class_weight=[1.0, 3.0], label_smoothing=0.1)
        MulticlassLoss(class_weight=[1.0, 3.0], label_smoothing=0.1)
    """

    class_weight: Tensor | None

    def __init__(
        self,
        *,
        class_weight: Tensor | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_smoothing(label_smoothing)
        self.register_buffer(
            "class_weight", weight_buffer("class_weight", class_weight), persistent=False
        )
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """The scalar loss: see `multiclass_loss`."""
        return multiclass_loss(
            logits, label, class_weight=self.class_weight, label_smoothing=self.label_smoothing
        )

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        weight = None if self.class_weight is None else self.class_weight.tolist()
        return f"class_weight={weight}, label_smoothing={self.label_smoothing}"
