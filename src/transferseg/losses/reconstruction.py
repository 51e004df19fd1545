"""Reconstruction losses: of an autoencoder's output against its image."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from transferseg.errors import SpecError, describe
from transferseg.losses.inputs import (
    at_least_float32,
    check_choice,
    check_pair,
    full_precision,
)

#: The pixel difference: squared or absolute.
ReconstructionKind: TypeAlias = Literal["l2", "l1"]


def reconstruction_loss(
    output: Tensor, target: Tensor, *, kind: ReconstructionKind = "l2"
) -> Tensor:
    """Mean squared ("l2") or mean absolute ("l1") difference over all values.

    Args:
        output: the reconstruction, any shape, usually (B, C, H, W), any float dtype; computed in
            at least float32.
        target: the image that the model was given, normalised alike, of the same shape and of a
            float dtype (raw integers are refused: they are not on the output's scale).
        kind: "l2" or "l1".

    Returns:
        A scalar, 0 or more, in squared units of the target ("l2") or in its units ("l1").

    Raises:
        SpecError: shapes that differ, an integer dtype, an unknown kind.

    Example:
        >>> import torch
        >>> reconstruction_loss(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 1.0]))
        tensor(4.5000)
        >>> reconstruction_loss(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 1.0]), kind="l1")
        tensor(1.5000)
    """
    check_choice("kind of reconstruction loss", kind, get_args(ReconstructionKind))
    check_pair("output", output, target)
    if not target.is_floating_point():
        raise SpecError(
            f"target must be the normalised image, of a floating dtype, got {describe(target)} "
            f"for output {describe(output)}."
        )
    with full_precision(output):
        output = at_least_float32(output)
        target = target.to(output.dtype)
        return F.mse_loss(output, target) if kind == "l2" else F.l1_loss(output, target)


class ReconstructionLoss(nn.Module):
    """`reconstruction_loss` with its kind kept.

    Args:
        kind: "l2" or "l1".

    Raises:
        SpecError: an unknown kind.

    Example:
        >>> ReconstructionLoss("l1")
        ReconstructionLoss('l1')
    """

    def __init__(self, kind: ReconstructionKind = "l2") -> None:
        super().__init__()
        check_choice("kind of reconstruction loss", kind, get_args(ReconstructionKind))
        self.kind = kind

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The scalar loss: see `reconstruction_loss`."""
        return reconstruction_loss(output, target, kind=self.kind)

    def extra_repr(self) -> str:
        """The kind, for `repr`."""
        return repr(self.kind)
