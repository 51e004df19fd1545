"""The compound loss: cross-entropy plus soft Dice."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from transferseg.errors import SpecError
from transferseg.losses.inputs import MODES, check_choice, check_smoothing
from transferseg.losses.module import ClassWeight, MaskLoss
from transferseg.losses.region import EmptyLoss, check_region_options, mean_where, region_of
from transferseg.losses.sums import mean_entropy, pixel_sums
from transferseg.types import TargetMode


def _check_options(
    mode: TargetMode,
    bce_weight: float,
    dice_weight: float,
    empty: str,
    eps: float,
    label_smoothing: float,
    class_weight: Tensor | Sequence[float] | None,
    pos_weight: Tensor | Sequence[float] | None,
    dice_class_weight: Tensor | Sequence[float] | None,
) -> None:
    """Raise `SpecError` on options that do not exist or do not fit the mode."""
    check_choice("mode", mode, MODES)
    check_region_options(empty, eps)
    check_smoothing(label_smoothing)
    for name, value in (("bce_weight", bce_weight), ("dice_weight", dice_weight)):
        if not 0 <= value < math.inf:
            raise SpecError(f"{name} must be finite and 0 or more, got {value!r}.")
    if mode == "multiclass" and pos_weight is not None:
        raise SpecError(
            "pos_weight is for modes 'binary' and 'multilabel'; with mode 'multiclass' give "
            "class_weight, one value a class."
        )
    if mode == "binary" and not (class_weight is None and dice_class_weight is None):
        raise SpecError(
            "class_weight and dice_class_weight are for modes 'multiclass' and 'multilabel': mode "
            "'binary' has one class; give pos_weight, the weight of its positives."
        )


def bce_dice_terms(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TargetMode,
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
    squared: bool = True,
    per_image: bool = True,
    ignore_index: int | None = 255,
    class_weight: Tensor | Sequence[float] | None = None,
    pos_weight: Tensor | Sequence[float] | None = None,
    dice_class_weight: Tensor | Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    empty: EmptyLoss = "penalise",
    eps: float = 1e-6,
) -> dict[str, Tensor]:
    """`bce_dice_loss` with its parts.

    Args:
        logits: as in `bce_dice_loss`, like every other argument.
        target: as in `bce_dice_loss`.
        mode: as in `bce_dice_loss`.
        bce_weight: as in `bce_dice_loss`.
        dice_weight: as in `bce_dice_loss`.
        squared: as in `bce_dice_loss`.
        per_image: as in `bce_dice_loss`.
        ignore_index: as in `bce_dice_loss`.
        class_weight: as in `bce_dice_loss`.
        pos_weight: as in `bce_dice_loss`.
        dice_class_weight: as in `bce_dice_loss`.
        label_smoothing: as in `bce_dice_loss`.
        empty: as in `bce_dice_loss`.
        eps: as in `bce_dice_loss`.

    Returns:
        Scalars: "loss" (with its graph), "bce" and "dice" (both detached and unweighted).

    Raises:
        SpecError: a shape, dtype or option that does not fit.

    Example:
        >>> import torch
        >>> terms = bce_dice_terms(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), mode="binary")
        >>> {name: round(value.item(), 4) for name, value in terms.items()}
        {'loss': 0.8931, 'bce': 0.6931, 'dice': 0.2}
    """
    _check_options(
        mode, bce_weight, dice_weight, empty, eps, label_smoothing, class_weight, pos_weight,
        dice_class_weight,
    )  # fmt: skip
    exclusive = mode == "multiclass"
    sums = pixel_sums(
        logits, target, mode=mode, ignore_index=ignore_index, entropy=True, region=True,
        squared=squared, class_weight=class_weight if exclusive else None, pos_weight=pos_weight,
        label_smoothing=label_smoothing,
    )  # fmt: skip
    bce = mean_entropy(sums, None if exclusive else class_weight)
    dice = mean_where(
        *region_of(sums, squared=squared, per_image=per_image, empty=empty, eps=eps / 2),
        dice_class_weight,
    )
    loss = bce_weight * bce + dice_weight * dice
    return {"loss": loss, "bce": bce.detach(), "dice": dice.detach()}


def bce_dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TargetMode,
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
    squared: bool = True,
    per_image: bool = True,
    ignore_index: int | None = 255,
    class_weight: Tensor | Sequence[float] | None = None,
    pos_weight: Tensor | Sequence[float] | None = None,
    dice_class_weight: Tensor | Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    empty: EmptyLoss = "penalise",
    eps: float = 1e-6,
) -> Tensor:
    """Cross-entropy plus soft Dice: `bce_weight * BCE + dice_weight * Dice`.

    BCE is the mean over the pixels that count (`binary_cross_entropy`; `cross_entropy` for
    multiclass), Dice the mean over the images and classes that count (`mean_dice_loss`).
    One pass over logits and target gives all sums, and one pass backward gives the gradient in the
    logits' dtype, block by block: no other tensor of their size is kept. There is no second
    derivative. Under `torch.compile` both passes are traced and fused.

    The paper's third term, lambda times the squared L2 norm of the weights, is the optimizer's
    weight decay: torch's Adam adds `weight_decay` times the weight to the gradient, so
    `weight_decay = 2 * lambda`. It is no part of this function.

    Args:
        logits: raw scores, (B, K, H, W), any float dtype; computed in at least float32 with
            autocast off.
        target: multiclass: class indices (B, H, W), integers in 0..K-1 or `ignore_index`, or
            probabilities (B, K, H, W) of a floating dtype; binary and multilabel: (B, K, H, W), 0
            to 1 in any real dtype, soft values allowed. Values are not checked here, and no
            gradient is given to the target.
        mode: "binary" (K = 1), "multiclass" (softmax) or "multilabel" (independent sigmoids).
        bce_weight: factor of the cross-entropy, 0 or more.
        dice_weight: factor of the Dice loss, 0 or more.
        squared: squared denominators in Dice, as in the source.
        per_image: Dice of each image; False is Dice of the whole batch.
        ignore_index: pixels with this target value count in no sum and get no gradient; None for
            none.
        class_weight: K values, 0 or more, the weight of each class in the cross-entropy, whose mean
            is then the weighted one; not for binary.
        pos_weight: K values, the weight of the positives in the binary cross-entropy; binary and
            multilabel only.
        dice_class_weight: K values, 0 or more, the weight of each class in the mean of the Dice
            losses (0 leaves out the background, for one); not for binary.
        label_smoothing: s from 0 to 1: the cross-entropy's y becomes (1 - s) y + s / K (s / 2 for
            binary and multilabel); Dice keeps y.
        empty: what Dice does where a class has no pixel in the ground truth, "penalise" or "skip":
            see `dice_loss`.
        eps: added to Dice's denominator, above 0.

    Returns:
        A scalar in float32, or float64 for float64 logits; finite for logits below 1e30.

    Raises:
        SpecError: a shape, dtype or option that does not fit, naming what was given and expected.

    Source: Khadka 2020, section 3.4 and eq. 1.

    Example:
        >>> import torch
        >>> logits, mask = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
        >>> bce_dice_loss(logits, mask, mode="binary")  # log 2 + 1 - 2 * 2 / (4 + 1)
        tensor(0.8931)
    """
    return bce_dice_terms(
        logits, target, mode=mode, bce_weight=bce_weight, dice_weight=dice_weight,
        squared=squared, per_image=per_image, ignore_index=ignore_index,
        class_weight=class_weight, pos_weight=pos_weight, dice_class_weight=dice_class_weight,
        label_smoothing=label_smoothing, empty=empty, eps=eps,
    )["loss"]  # fmt: skip


class BCEDiceLoss(MaskLoss):
    """`bce_dice_loss` with its options kept.

    Args:
        mode: as in `bce_dice_loss`, like every other argument; checked here, once.
        bce_weight: as in `bce_dice_loss`.
        dice_weight: as in `bce_dice_loss`.
        squared: as in `bce_dice_loss`.
        per_image: as in `bce_dice_loss`.
        ignore_index: as in `bce_dice_loss`.
        class_weight: as in `bce_dice_loss`; kept as a buffer, which moves with the module and is
            no part of its state dict.
        pos_weight: as in `bce_dice_loss`; a buffer likewise.
        dice_class_weight: as in `bce_dice_loss`; a buffer likewise.
        label_smoothing: as in `bce_dice_loss`.
        empty: as in `bce_dice_loss`.
        eps: as in `bce_dice_loss`.

    Raises:
        SpecError: an option that does not exist or does not fit the mode.

    Source: Khadka 2020, section 3.4 and eq. 1.

    Example:
        >>> import torch
        >>> loss = BCEDiceLoss("multiclass", ignore_index=255, class_weight=[1.0, 5.0])
        >>> loss(torch.zeros(2, 2, 8, 8), torch.ones(2, 8, 8).long())
        tensor(0.8931)
        >>> sorted(loss.terms(torch.zeros(2, 2, 8, 8), torch.ones(2, 8, 8).long()))
        ['bce', 'dice', 'loss']
    """

    _function = staticmethod(bce_dice_loss)

    def __init__(
        self,
        mode: TargetMode,
        *,
        bce_weight: float = 1.0,
        dice_weight: float = 1.0,
        squared: bool = True,
        per_image: bool = True,
        ignore_index: int | None = 255,
        class_weight: ClassWeight = None,
        pos_weight: ClassWeight = None,
        dice_class_weight: ClassWeight = None,
        label_smoothing: float = 0.0,
        empty: EmptyLoss = "penalise",
        eps: float = 1e-6,
    ) -> None:
        _check_options(
            mode, bce_weight, dice_weight, empty, eps, label_smoothing, class_weight, pos_weight,
            dice_class_weight,
        )  # fmt: skip
        super().__init__(
            mode,
            bce_weight=bce_weight,
            dice_weight=dice_weight,
            squared=squared,
            per_image=per_image,
            ignore_index=ignore_index,
            class_weight=class_weight,
            pos_weight=pos_weight,
            dice_class_weight=dice_class_weight,
            label_smoothing=label_smoothing,
            empty=empty,
            eps=eps,
        )

    def terms(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The scalars "loss" (with its graph), "bce" and "dice": see `bce_dice_terms`."""
        return bce_dice_terms(logits, target, mode=self.mode, **self.options)
