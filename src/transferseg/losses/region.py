"""Region losses: soft Dice."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from transferseg.errors import SpecError
from transferseg.losses.inputs import Pixels, check_choice, full_precision, prepare
from transferseg.types import TargetMode

#: What an empty ground truth costs: see `dice_loss`.
EmptyLoss: TypeAlias = Literal["penalise", "skip"]


def check_dice_options(empty: str, eps: float) -> None:
    """Raise `SpecError` on an unknown empty policy or an `eps` that is not above 0."""
    check_choice("empty policy", empty, get_args(EmptyLoss))
    if not eps > 0:
        raise SpecError(f"eps must be above 0 (it keeps 0/0 out of the Dice loss), got {eps!r}.")


def _probabilities_and_truth(pixels: Pixels) -> tuple[Tensor, Tensor]:
    """Probability and ground truth of every class, (B, K, H, W), 0 where ignored."""
    if pixels.mode == "multiclass":
        probability = pixels.logits.softmax(dim=1)
        # scatter, not one_hot: no int64 copy of K times the mask, and a label out of range is loud
        truth = torch.zeros_like(probability).scatter(1, pixels.target.unsqueeze(1), 1.0)
        truth = torch.where(pixels.counted, truth, 0.0)
    else:
        probability, truth = pixels.logits.sigmoid(), pixels.target
    return torch.where(pixels.counted, probability, 0.0), truth


def dice_of(
    pixels: Pixels, *, squared: bool, per_image: bool, empty: EmptyLoss, eps: float
) -> tuple[Tensor, Tensor]:
    """`dice_loss` of prepared pixels, and which of its entries count in a mean.

    Returns:
        The loss, 0 where it does not count, and a bool tensor of the same shape: (B, K), or (K,)
        over the batch.
    """
    probability, truth = _probabilities_and_truth(pixels)
    axes = (2, 3) if per_image else (0, 2, 3)
    linear, square = probability.sum(axes), probability.square().sum(axes)
    overlap = (truth * probability).sum(axes)
    truth_size = (truth.square() if squared else truth).sum(axes)
    number = pixels.counted.sum(axes).to(linear.dtype).expand_as(linear)
    present = truth_size > 0

    loss = 1 - 2 * overlap / (truth_size + (square if squared else linear) + eps)
    if empty == "skip":
        return torch.where(present, loss, 0.0), present
    # The same equation for the complement, 1 - y and 1 - p with y = 0, multiplied out.
    size = 2 * number.clamp(min=1) - (2 * linear - square if squared else linear)
    loss = torch.where(present, loss, (square if squared else linear) / size)
    counts = number > 0
    return torch.where(counts, loss, 0.0), counts


def mean_where(loss: Tensor, counts: Tensor) -> Tensor:
    """The mean of the entries that count; 0, with a graph, when none does.

    Example:
        >>> mean_where(torch.tensor([1.0, 5.0]), torch.tensor([True, False])).item()
        1.0
    """
    return torch.where(counts, loss, 0.0).sum() / counts.sum().clamp(min=1)


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
        target: multiclass: class indices (B, H, W), each in 0..K-1 or `ignore_index`; binary and
            multilabel: (B, K, H, W), 0 to 1 in any real dtype, soft values allowed. Values are not
            checked here.
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
    check_dice_options(empty, eps)
    with full_precision(logits):
        pixels = prepare(logits, target, mode=mode, ignore_index=ignore_index)
        return dice_of(pixels, squared=squared, per_image=per_image, empty=empty, eps=eps)[0]


def mean_dice_loss(
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
    """The mean of `dice_loss` over the images and classes that count.

    Under `empty="skip"` an image without a class does not count for that class; without a single
    one that counts the loss is 0, and backward gives zeros.

    Args:
        logits: as in `dice_loss`.
        target: as in `dice_loss`.
        mode: as in `dice_loss`.
        squared: as in `dice_loss`.
        per_image: as in `dice_loss`.
        ignore_index: as in `dice_loss`.
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
    check_dice_options(empty, eps)
    with full_precision(logits):
        pixels = prepare(logits, target, mode=mode, ignore_index=ignore_index)
        return mean_where(
            *dice_of(pixels, squared=squared, per_image=per_image, empty=empty, eps=eps)
        )
