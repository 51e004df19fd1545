"""The region losses as modules that keep their options."""

from __future__ import annotations

from transferseg.losses.module import ClassWeight, MaskLoss
from transferseg.losses.region import (
    EmptyLoss,
    check_region_options,
    jaccard_loss,
    mean_dice_loss,
)
from transferseg.losses.tversky import check_tversky_options, focal_tversky_loss, tversky_loss
from transferseg.types import TargetMode


class DiceLoss(MaskLoss):
    """`mean_dice_loss` with its options kept.

    Args:
        mode: "binary", "multiclass" or "multilabel".
        squared: as in `mean_dice_loss`.
        per_image: as in `mean_dice_loss`.
        ignore_index: as in `mean_dice_loss`.
        empty: as in `mean_dice_loss`.
        eps: as in `mean_dice_loss`.
        class_weight: as in `mean_dice_loss`; a buffer that is no part of the state dict.

    Raises:
        SpecError: an option that does not exist or does not fit the mode.

    Example:
        >>> import torch
        >>> DiceLoss("multiclass")(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long())
        tensor(0.2000)
    """

    _function = staticmethod(mean_dice_loss)

    def __init__(
        self,
        mode: TargetMode,
        *,
        squared: bool = True,
        per_image: bool = True,
        ignore_index: int | None = 255,
        empty: EmptyLoss = "penalise",
        eps: float = 1e-6,
        class_weight: ClassWeight = None,
    ) -> None:
        check_region_options(empty, eps)
        super().__init__(
            mode,
            squared=squared,
            per_image=per_image,
            ignore_index=ignore_index,
            empty=empty,
            eps=eps,
            class_weight=class_weight,
        )


class JaccardLoss(MaskLoss):
    """`jaccard_loss` with its options kept.

    Args:
        mode: "binary", "multiclass" or "multilabel".
        squared: as in `jaccard_loss`.
        per_image: as in `jaccard_loss`.
        ignore_index: as in `jaccard_loss`.
        empty: as in `jaccard_loss`.
        eps: as in `jaccard_loss`.
        class_weight: as in `jaccard_loss`; a buffer that is no part of the state dict.

    Raises:
        SpecError: an option that does not exist or does not fit the mode.

    Example:
        >>> import torch
        >>> JaccardLoss("multiclass")(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long())
        tensor(0.5000)
    """

    _function = staticmethod(jaccard_loss)

    def __init__(
        self,
        mode: TargetMode,
        *,
        squared: bool = False,
        per_image: bool = True,
        ignore_index: int | None = 255,
        empty: EmptyLoss = "penalise",
        eps: float = 1e-6,
        class_weight: ClassWeight = None,
    ) -> None:
        check_region_options(empty, eps)
        super().__init__(
            mode,
            squared=squared,
            per_image=per_image,
            ignore_index=ignore_index,
            empty=empty,
            eps=eps,
            class_weight=class_weight,
        )


class TverskyLoss(MaskLoss):
    """`tversky_loss` with its options kept.

    Args:
        mode: "binary", "multiclass" or "multilabel".
        alpha: as in `tversky_loss`.
        beta: as in `tversky_loss`.
        per_image: as in `tversky_loss`.
        ignore_index: as in `tversky_loss`.
        empty: as in `tversky_loss`.
        eps: as in `tversky_loss`.
        class_weight: as in `tversky_loss`; a buffer that is no part of the state dict.

    Raises:
        SpecError: an option that does not exist or does not fit the mode.

    Example:
        >>> import torch
        >>> TverskyLoss("multiclass")(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long())
        tensor(0.3213)
    """

    _function = staticmethod(tversky_loss)

    def __init__(
        self,
        mode: TargetMode,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
        per_image: bool = True,
        ignore_index: int | None = 255,
        empty: EmptyLoss = "penalise",
        eps: float = 1e-6,
        class_weight: ClassWeight = None,
    ) -> None:
        check_region_options(empty, eps)
        check_tversky_options(alpha, beta, 1.0)
        super().__init__(
            mode,
            alpha=alpha,
            beta=beta,
            per_image=per_image,
            ignore_index=ignore_index,
            empty=empty,
            eps=eps,
            class_weight=class_weight,
        )


class FocalTverskyLoss(MaskLoss):
    """`focal_tversky_loss` with its options kept.

    Args:
        mode: "binary", "multiclass" or "multilabel".
        alpha: as in `focal_tversky_loss`.
        beta: as in `focal_tversky_loss`.
        gamma: as in `focal_tversky_loss`.
        per_image: as in `focal_tversky_loss`.
        ignore_index: as in `focal_tversky_loss`.
        empty: as in `focal_tversky_loss`.
        eps: as in `focal_tversky_loss`.
        class_weight: as in `focal_tversky_loss`; a buffer that is no part of the state dict.

    Raises:
        SpecError: an option that does not exist or does not fit the mode.

    Example:
        >>> import torch
        >>> FocalTverskyLoss("multiclass")(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long())
        tensor(0.4235)
    """

    _function = staticmethod(focal_tversky_loss)

    def __init__(
        self,
        mode: TargetMode,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 4 / 3,
        per_image: bool = True,
        ignore_index: int | None = 255,
        empty: EmptyLoss = "penalise",
        eps: float = 1e-6,
        class_weight: ClassWeight = None,
    ) -> None:
        check_region_options(empty, eps)
        check_tversky_options(alpha, beta, gamma)
        super().__init__(
            mode,
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            per_image=per_image,
            ignore_index=ignore_index,
            empty=empty,
            eps=eps,
            class_weight=class_weight,
        )
