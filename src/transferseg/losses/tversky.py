"""Tversky and focal-Tversky loss: false positives and false negatives weigh differently."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from transferseg.errors import SpecError
from transferseg.losses.inputs import check_class_weight
from transferseg.losses.region import (
    EmptyLoss,
    check_region_options,
    mean_where,
    region_of,
    region_sums,
)
from transferseg.types import TargetMode


def check_tversky_options(alpha: float, beta: float, gamma: float) -> None:
    """Raise `SpecError` on weights below 0, two of 0, or a `gamma` below 1."""
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value < math.inf:
            raise SpecError(f"{name} must be finite and 0 or more, got {value!r}.")
    if alpha == beta == 0:
        raise SpecError("alpha and beta are both 0: then no mistake costs anything.")
    if not 1 <= gamma < math.inf:
        raise SpecError(
            f"gamma must be 1 or more (the loss takes the root 1/gamma), got {gamma!r}."
        )


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TargetMode,
    alpha: float = 0.3,
    beta: float = 0.7,
    per_image: bool = True,
    ignore_index: int | None = 255,
    class_weight: Tensor | Sequence[float] | None = None,
    empty: EmptyLoss = "penalise",
    eps: float = 1e-6,
) -> Tensor:
    r"""One minus the soft Tversky index, the mean over the images and classes that count.

    $1 - \sum yp / (\sum yp + \alpha \sum (1-y)p + \beta \sum y(1-p) + \epsilon)$: alpha weighs the
    false positives, beta the false negatives. Both 0.5 is plain Dice, both 1 is Jaccard.
    segmentation_models_pytorch agrees over the batch (`per_image=False`), on hard float32 masks
    where every class is present; for the rest see `jaccard_loss`.

    Args:
        logits: as in `dice_loss`.
        target: as in `dice_loss`.
        mode: as in `dice_loss`.
        alpha: weight of the false positives, 0 or more.
        beta: weight of the false negatives, 0 or more, and not 0 with alpha.
        per_image: as in `dice_loss`.
        ignore_index: as in `dice_loss`.
        class_weight: as in `mean_dice_loss`.
        empty: as in `dice_loss`; under "penalise" the complement's index, in which the false
            positives keep their weight alpha.
        eps: added to the denominator, above 0.

    Returns:
        A scalar, 0 (perfect) to 1.

    Raises:
        SpecError: a shape, dtype or option that does not fit.

    Source: Salehi et al. 2017, eq. 4 (alpha 0.3, beta 0.7 were best there).

    Example:
        >>> import torch
        >>> logits, mask = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1, 0]]]])
        >>> tversky_loss(logits, mask, mode="binary", alpha=0.2, beta=0.8)  # 1 - 0.5 / 1
        tensor(0.5000)
    """
    return focal_tversky_loss(
        logits, target, mode=mode, alpha=alpha, beta=beta, gamma=1.0, per_image=per_image,
        ignore_index=ignore_index, class_weight=class_weight, empty=empty, eps=eps,
    )  # fmt: skip


def focal_tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TargetMode,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 4 / 3,
    per_image: bool = True,
    ignore_index: int | None = 255,
    class_weight: Tensor | Sequence[float] | None = None,
    empty: EmptyLoss = "penalise",
    eps: float = 1e-6,
) -> Tensor:
    """The Tversky loss of each image and class to the power 1/gamma, then the mean.

    segmentation_models_pytorch raises the mean of the classes to a power, not each class as the
    source does, so that a class that is bad hides behind one that is good.

    Args:
        logits: as in `dice_loss`.
        target: as in `dice_loss`.
        mode: as in `dice_loss`.
        alpha: as in `tversky_loss`.
        beta: as in `tversky_loss`.
        gamma: 1 or more; above 1 the gradient grows where the loss is small. (smp's exponent is
            this one's reciprocal.)
        per_image: as in `dice_loss`.
        ignore_index: as in `dice_loss`.
        class_weight: as in `mean_dice_loss`.
        empty: as in `tversky_loss`.
        eps: as in `tversky_loss`; a loss below it has no gradient, for the root has an infinite
            slope at 0.

    Returns:
        A scalar, 0 (perfect) to 1.

    Raises:
        SpecError: a shape, dtype or option that does not fit.

    Source: Abraham & Khan 2019, eq. 4, gamma 4/3; the source's alpha weighs the false negatives.

    Example:
        >>> import torch
        >>> logits, mask = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1, 0]]]])
        >>> focal_tversky_loss(logits, mask, mode="binary", alpha=0.2, beta=0.8, gamma=2.0)
        tensor(0.7071)
    """
    check_region_options(empty, eps)
    check_class_weight(mode, class_weight)
    check_tversky_options(alpha, beta, gamma)
    sums = region_sums(logits, target, mode=mode, ignore_index=ignore_index, squared=False)
    loss, counts = region_of(
        sums, squared=False, per_image=per_image, empty=empty, eps=eps, false_positives=alpha,
        false_negatives=beta,
    )  # fmt: skip
    if gamma != 1:
        loss = loss.clamp_min(eps) ** (1 / gamma)
    return mean_where(loss, counts, class_weight)
