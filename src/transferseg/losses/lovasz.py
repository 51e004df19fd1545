"""The Lovasz losses: a convex surrogate of the Jaccard loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from transferseg.losses.class_sums import truth_of
from transferseg.losses.inputs import check_class_weight, full_precision, prepare
from transferseg.losses.region import EmptyLoss, check_empty, mean_where
from transferseg.types import TargetMode


def lovasz_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TargetMode,
    per_image: bool = True,
    ignore_index: int | None = 255,
    class_weight: Tensor | Sequence[float] | None = None,
    empty: EmptyLoss = "penalise",
) -> Tensor:
    """The Lovasz extension of the Jaccard loss, the mean over the images and classes that count.

    Exclusive classes: Lovasz-Softmax, of the errors $|y - p|$. Binary and overlapping ones: the
    Lovasz hinge of each class, of the errors 1 - logit where there is foreground and 1 + logit
    elsewhere.

    segmentation_models_pytorch agrees for one binary class, and for exclusive classes that are all
    present in each image. It differs, and this one is ours, because it skips absent classes, takes
    the overlapping classes of an image for one mask, fails for exclusive classes in half precision,
    gives no number where all their pixels are ignored, and waits for the device at every class.

    Args:
        logits: as in `dice_loss`.
        target: as in `dice_loss`, but hard: class indices, or 0 and 1.
        mode: as in `dice_loss`.
        per_image: of each image; False takes the batch for one image.
        ignore_index: pixels with this target value count in no sum; None for none.
        class_weight: as in `mean_dice_loss`.
        empty: a class without a pixel in the ground truth costs its largest error under
            "penalise", which is what the equation says, and counts in no mean under "skip".

    Returns:
        A scalar; 0 (perfect) to 1 for exclusive classes, 0 or more otherwise.

    Raises:
        SpecError: a shape, dtype or option that does not fit.

    Source: Berman et al. 2018 (exclusive classes); Yu & Blaschko 2015 (hinge).

    Example:
        >>> logits, mask = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
        >>> lovasz_loss(logits, mask, mode="multiclass")
        tensor(0.5000)
    """
    check_empty(empty)
    check_class_weight(mode, class_weight)
    with full_precision(logits):
        pixels = prepare(logits, target, mode=mode, ignore_index=ignore_index)
        x, counted = pixels.logits, pixels.counted
        if mode == "multiclass":
            y, _ = truth_of(pixels.hard_target(), x, None)
            errors = (y - x.softmax(1)).abs()
        else:
            y = pixels.target
            errors = (1 - x * (2 * y - 1)).clamp_min(0)
        # Ignored pixels come last, where they change no Jaccard index before them, and cost 0.
        errors = torch.where(counted, errors, -1.0)
        truth = _rows((y > 0.5) & counted, per_image)
        loss = _extension(_rows(errors, per_image), truth)
        counts = truth if empty == "skip" else _rows(counted.expand_as(x), per_image)
        return mean_where(loss, counts.any(-1), class_weight)


def _rows(values: Tensor, per_image: bool) -> Tensor:
    """(B, K, H, W) -> (B, K, pixels), or (K, pixels) over the batch."""
    return values.flatten(2) if per_image else values.transpose(0, 1).flatten(1)


def _extension(errors: Tensor, truth: Tensor) -> Tensor:
    """Sum of the sorted errors, each times what its pixel adds to the Jaccard loss.

    What it adds is made of counts, which are exact: the difference of two Jaccard losses of nearly
    one value would have few digits left in float32.
    """
    errors, order = errors.sort(dim=-1, descending=True)
    truth = truth.gather(-1, order)
    found = truth.cumsum(-1, dtype=torch.int32)
    place = torch.arange(1, errors.shape[-1] + 1, dtype=torch.int32, device=errors.device)
    missing = found[..., -1:] - found
    union = (missing + place).to(errors.dtype)
    # A pixel of the class takes one from the intersection; another one adds one to the union, and
    # where there was none yet (no truth at all), that is everything.
    outside = torch.where(union > 1, missing / (union * (union - 1)).clamp_min(1), 1.0)
    return (errors.clamp_min(0) * torch.where(truth, 1 / union, outside)).sum(-1)
