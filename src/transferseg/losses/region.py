"""Region losses: soft Dice, Jaccard and Tversky, all of the same sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from transferseg.errors import SpecError
from transferseg.losses.inputs import check_choice, check_class_weight, per_class_weight
from transferseg.losses.sums import PixelSums, pixel_sums
from transferseg.types import TargetMode

#: What an empty ground truth costs: see `dice_loss`.
EmptyLoss: TypeAlias = Literal["penalise", "skip"]
_EMPTY: tuple[str, ...] = get_args(EmptyLoss)


def check_empty(empty: str) -> None:
    """Raise `SpecError` on an unknown empty policy."""
    check_choice("empty policy", empty, _EMPTY)


def check_region_options(empty: str, eps: float) -> None:
    """Raise `SpecError` on an unknown empty policy or an `eps` that is not above 0."""
    check_empty(empty)
    if not 0 < eps < math.inf:
        raise SpecError(
            f"eps must be above 0 (it keeps 0/0 out of the loss) and finite, got {eps!r}."
        )


def region_of(
    sums: PixelSums,
    *,
    squared: bool,
    per_image: bool,
    empty: EmptyLoss,
    eps: float,
    false_positives: float = 0.5,
    false_negatives: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """One minus the Tversky index: Dice with weights of 0.5, Jaccard with 1.

    Args:
        sums: of `pixel_sums`, with the region's.
        squared: whether the sums are of squares.
        per_image: of each image; False adds the images up.
        empty: "penalise" or "skip".
        eps: added to the index's denominator.
        false_positives: their weight, alpha.
        false_negatives: their weight, beta.

    Returns:
        The loss, 0 where it does not count, and a bool tensor of the same shape, which entries
        count in a mean: (B, K), or (K,) over the batch.
    """
    alpha, beta = false_positives, false_negatives
    parts = (sums.linear, sums.square, sums.overlap, sums.truth, sums.number)
    linear, square, overlap, truth, number = (
        parts if per_image else tuple(part.sum(0) for part in parts)
    )
    predicted = square if squared else linear
    present = truth > 0
    size = overlap + alpha * (predicted - overlap) + beta * (truth - overlap)
    loss = 1 - overlap / (size + eps)
    if empty == "skip":
        return torch.where(present, loss, 0.0), present
    # The same equation for the complement, 1 - y and 1 - p with y = 0, multiplied out; the false
    # positives are its false negatives.
    # not beta * (square - linear), of which nothing is left where p is far below 1
    wrong = (alpha - beta) * linear + beta * square if squared else alpha * linear
    size = number - linear + wrong
    loss = torch.where(present, loss, wrong / torch.where(size > 0, size, 1.0))
    counts = number > 0
    return torch.where(counts, loss, 0.0), counts


def mean_where(
    loss: Tensor, counts: Tensor, class_weight: Tensor | Sequence[float] | None = None
) -> Tensor:
    """The mean of the entries that count; 0, with a graph, when none does.

    Args:
        loss: (B, K) or (K,).
        counts: bool, the same shape.
        class_weight: K values; the mean is then the weighted one.

    Example:
        >>> mean_where(torch.tensor([1.0, 5.0]), torch.tensor([True, False])).item()
        1.0
    """
    weight = counts.to(loss.dtype)
    if class_weight is not None:
        weight = weight * per_class_weight("class_weight", class_weight, loss[None].flatten(0, -2))
    total = weight.sum()
    return (torch.where(counts, loss, 0.0) * weight).sum() / torch.where(total > 0, total, 1.0)


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TargetMode,
    squared: bool = True,
    per_image: bool = True,
    ignore_index: int | None = 255,
    empty: EmptyLoss = "penalise",
    eps: float = 1e-6,
) -> Tensor:
    r"""One minus soft Dice, per image and class, unreduced.

    With y the ground truth and p the probability (sigmoid; softmax for multiclass), sums over the
    counted pixels of one class in one image:

    - squared: $1 - 2 \sum yp / (\sum y^2 + \sum p^2 + \epsilon)$
    - plain:   $1 - 2 \sum yp / (\sum y + \sum p + \epsilon)$

    **Empty ground truth** ($\sum y = 0$). The equation is then 1 with a gradient of 0, whatever is
    predicted. Here it is, by choice:

    - `"penalise"`: the same equation for the complement ($1 - y$, $1 - p$, without eps), which is
      $\sum p^2 / (2N - 2\sum p + \sum p^2)$ squared and $\sum p / (2N - \sum p)$ plain, with N
      counted pixels: 0 when nothing is predicted, 1 when everything is; the gradient pushes every
      false positive down.
    - `"skip"`: the entry is 0 without a gradient and counts in no mean, as in
      segmentation_models_pytorch (which yet divides by the number of all classes). MONAI adds
      1e-5 to numerator and denominator instead: 1 - 1e-5 / (sum p + 1e-5), nearly 1 with nearly no
      gradient.

    An entry without a counted pixel is 0 without a gradient under both.

    Args:
        logits: raw scores, (B, K, H, W), any float dtype; computed in at least float32.
        target: multiclass: class indices (B, H, W), each in 0..K-1 or `ignore_index`, or
            probabilities (B, K, H, W) of a floating dtype; binary and multilabel: (B, K, H, W), 0
            to 1 in any real dtype, soft values allowed. Values are not checked here, and no
            gradient is given to it.
        mode: "binary" (K = 1), "multiclass" or "multilabel".
        squared: squared denominators, as in the source.
        per_image: sums over each image; False sums over the whole batch.
        ignore_index: pixels with this target value count in no sum; None for none.
        empty: "penalise" or "skip", see above.
        eps: added to the denominator, above 0.

    Returns:
        (B, K), or (K,) with `per_image=False`; 0 (perfect) to 1. `mean_dice_loss` reduces it.

    Raises:
        SpecError: a shape, dtype or option that does not fit, naming what was given and expected.

    Source: Khadka 2020, eq. 1 (squared denominators).

    Example:
        >>> logits = torch.tensor([[[[20.0, 0.0]]]])  # probabilities 1 and 0.5
        >>> mask = torch.tensor([[[[1, 0]]]])
        >>> dice_loss(logits, mask, mode="binary")  # 1 - 2 * 1 / (1 + 1.25)
        tensor([[0.1111]])
    """
    check_region_options(empty, eps)
    sums = region_sums(logits, target, mode=mode, ignore_index=ignore_index, squared=squared)
    return region_of(sums, squared=squared, per_image=per_image, empty=empty, eps=eps / 2)[0]


def region_sums(
    logits: Tensor, target: Tensor, *, mode: TargetMode, ignore_index: int | None, squared: bool
) -> PixelSums:
    """`pixel_sums` for a region loss alone."""
    return pixel_sums(
        logits, target, mode=mode, ignore_index=ignore_index, entropy=False, region=True,
        squared=squared,
    )  # fmt: skip


def mean_dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TargetMode,
    squared: bool = True,
    per_image: bool = True,
    ignore_index: int | None = 255,
    class_weight: Tensor | Sequence[float] | None = None,
    empty: EmptyLoss = "penalise",
    eps: float = 1e-6,
) -> Tensor:
    """The mean of `dice_loss` over the images and classes that count.

    Under `empty="skip"` an image without a class does not count for that class; without a single
    one that counts the loss is 0, and backward gives zeros.

    segmentation_models_pytorch has the same value with plain denominators over the batch, on hard
    float32 masks where every class is present, and MONAI (`batch=False`) per image, but for its
    1e-5; both differ in what an absent class costs: see `dice_loss`.

    Args:
        logits: as in `dice_loss`.
        target: as in `dice_loss`.
        mode: as in `dice_loss`.
        squared: as in `dice_loss`.
        per_image: as in `dice_loss`.
        ignore_index: as in `dice_loss`.
        class_weight: K values, 0 or more: a weighted mean over the classes; 0 leaves a class out,
            such as the background; not for binary.
        empty: as in `dice_loss`.
        eps: as in `dice_loss`.

    Returns:
        A scalar, 0 (perfect) to 1.

    Raises:
        SpecError: a shape, dtype or option that does not fit.

    Source: Khadka 2020, eq. 1.

    Example:
        >>> logits = torch.zeros(2, 1, 1, 2)  # probability 0.5 everywhere
        >>> mask = torch.tensor([[[[1, 1]]], [[[0, 0]]]])  # the second image is empty
        >>> mean_dice_loss(logits, mask, mode="binary", empty="skip")  # 1 - 2 * 1 / (2 + 0.5)
        tensor(0.2000)
    """
    check_region_options(empty, eps)
    check_class_weight(mode, class_weight)
    sums = region_sums(logits, target, mode=mode, ignore_index=ignore_index, squared=squared)
    loss = region_of(sums, squared=squared, per_image=per_image, empty=empty, eps=eps / 2)
    return mean_where(*loss, class_weight)


def jaccard_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TargetMode,
    squared: bool = False,
    per_image: bool = True,
    ignore_index: int | None = 255,
    class_weight: Tensor | Sequence[float] | None = None,
    empty: EmptyLoss = "penalise",
    eps: float = 1e-6,
) -> Tensor:
    r"""One minus soft Jaccard (IoU), the mean over the images and classes that count.

    $1 - \sum yp / (\sum y + \sum p - \sum yp + \epsilon)$, or with squares of y and p where each
    stands alone: the Tversky loss with both weights 1. segmentation_models_pytorch has the same
    value over the batch (`per_image=False`), on hard float32 masks where every class is present.
    Elsewhere it has not, and this one is ours: there an absent class costs 0 whatever is predicted
    and still counts in the mean, half precision masks are added up in half precision (infinite
    above 65,504 pixels), and a NaN logit under an ignored pixel makes the loss NaN.

    Args:
        logits: as in `dice_loss`.
        target: as in `dice_loss`.
        mode: as in `dice_loss`.
        squared: squares of y and p in the denominator.
        per_image: as in `dice_loss`.
        ignore_index: as in `dice_loss`.
        class_weight: as in `mean_dice_loss`.
        empty: as in `dice_loss`; the complement's Jaccard loss under "penalise", plainly the mean
            of p.
        eps: added to the denominator, above 0.

    Returns:
        A scalar, 0 (perfect) to 1.

    Raises:
        SpecError: a shape, dtype or option that does not fit.

    Source: Rahman & Wang 2016.

    Example:
        >>> logits, mask = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1, 0]]]])
        >>> jaccard_loss(logits, mask, mode="binary")  # 1 - 0.5 / (1 + 1 - 0.5)
        tensor(0.6667)
    """
    check_region_options(empty, eps)
    check_class_weight(mode, class_weight)
    sums = region_sums(logits, target, mode=mode, ignore_index=ignore_index, squared=squared)
    loss = region_of(
        sums, squared=squared, per_image=per_image, empty=empty, eps=eps, false_positives=1.0,
        false_negatives=1.0,
    )  # fmt: skip
    return mean_where(*loss, class_weight)
