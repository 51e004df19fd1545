"""The other losses of masks as modules that keep their options, and the dict of them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from transferseg.losses.bce_dice import BCEDiceLoss
from transferseg.losses.boundary import boundary_loss, check_spacing
from transferseg.losses.focal import check_focal_options, focal_loss
from transferseg.losses.lovasz import lovasz_loss
from transferseg.losses.module import ClassWeight, MaskLoss
from transferseg.losses.region import EmptyLoss, check_empty
from transferseg.losses.region_modules import (
    DiceLoss,
    FocalTverskyLoss,
    JaccardLoss,
    TverskyLoss,
)
from transferseg.types import TargetMode


class FocalLoss(MaskLoss):
    """`focal_loss` with its options kept.

    Args:
        mode: "binary", "multiclass" or "multilabel".
        gamma: as in `focal_loss`.
        alpha: as in `focal_loss`.
        ignore_index: as in `focal_loss`.
        class_weight: as in `focal_loss`; a buffer that is no part of the state dict.

    Raises:
        SpecError: an option that does not exist or does not fit the mode.

    Example:
        >>> import torch
        >>> FocalLoss("multiclass")(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long())
        tensor(0.1733)
    """

    _function = staticmethod(focal_loss)

    def __init__(
        self,
        mode: TargetMode,
        *,
        gamma: float = 2.0,
        alpha: float | None = None,
        ignore_index: int | None = 255,
        class_weight: ClassWeight = None,
    ) -> None:
        check_focal_options(mode, gamma, alpha)
        super().__init__(
            mode, gamma=gamma, alpha=alpha, ignore_index=ignore_index, class_weight=class_weight
        )


class LovaszLoss(MaskLoss):
    """`lovasz_loss` with its options kept.

    Args:
        mode: "binary", "multiclass" or "multilabel".
        per_image: as in `lovasz_loss`.
        ignore_index: as in `lovasz_loss`.
        empty: as in `lovasz_loss`.
        class_weight: as in `lovasz_loss`; a buffer that is no part of the state dict.

    Raises:
        SpecError: an option that does not exist or does not fit the mode.

    Example:
        >>> import torch
        >>> LovaszLoss("multiclass")(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long())
        tensor(0.5000)
    """

    _function = staticmethod(lovasz_loss)

    def __init__(
        self,
        mode: TargetMode,
        *,
        per_image: bool = True,
        ignore_index: int | None = 255,
        empty: EmptyLoss = "penalise",
        class_weight: ClassWeight = None,
    ) -> None:
        check_empty(empty)
        super().__init__(
            mode,
            per_image=per_image,
            ignore_index=ignore_index,
            empty=empty,
            class_weight=class_weight,
        )


class BoundaryLoss(MaskLoss):
    """`boundary_loss` with its options kept.

    Args:
        mode: "binary", "multiclass" or "multilabel".
        ignore_index: as in `boundary_loss`.
        spacing: as in `boundary_loss`.
        class_weight: as in `boundary_loss`; a buffer that is no part of the state dict.

    Raises:
        SpecError: an option that does not exist or does not fit the mode.

    Example:
        >>> import torch
        >>> BoundaryLoss("multiclass")(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long())
        tensor(0.)
    """

    _function = staticmethod(boundary_loss)

    def __init__(
        self,
        mode: TargetMode,
        *,
        ignore_index: int | None = 255,
        spacing: Sequence[float] = (1.0, 1.0),
        class_weight: ClassWeight = None,
    ) -> None:
        check_spacing(spacing)
        super().__init__(
            mode, ignore_index=ignore_index, spacing=tuple(spacing), class_weight=class_weight
        )


#: The losses of (logits, target) of masks, by name; each is built from a mode and its own options.
LOSSES: dict[str, Callable[..., nn.Module]] = {
    "bce_dice": BCEDiceLoss,
    "dice": DiceLoss,
    "jaccard": JaccardLoss,
    "tversky": TverskyLoss,
    "focal_tversky": FocalTverskyLoss,
    "focal": FocalLoss,
    "lovasz": LovaszLoss,
    "boundary": BoundaryLoss,
}
