"""Classification losses: several labels an image, some of them missing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from transferseg.losses.distribution import binary_cross_entropy_of
from transferseg.losses.inputs import at_least_float32, check_pair, full_precision, weight_buffer


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
        self.register_buffer("pos_weight", weight_buffer(pos_weight), persistent=False)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """The scalar loss: see `multilabel_loss`."""
        return multilabel_loss(logits, label, pos_weight=self.pos_weight)

    def extra_repr(self) -> str:
        """The weights, for `repr`."""
        return f"pos_weight={None if self.pos_weight is None else self.pos_weight.tolist()}"
