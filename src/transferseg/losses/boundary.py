"""Boundary loss: how far from the contour the prediction is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from transferseg.errors import SpecError, describe
from transferseg.losses.class_sums import truth_of
from transferseg.losses.inputs import check_class_weight, full_precision, per_class_weight, prepare
from transferseg.types import TargetMode


def check_spacing(spacing: Sequence[float]) -> None:
    """Raise `SpecError` unless it is two lengths above 0."""
    if len(spacing) != 2 or not all(0 < length < math.inf for length in spacing):
        raise SpecError(
            "spacing must be the height and the width of a pixel, both finite and above 0, got "
            f"{tuple(spacing)}."
        )


def signed_distances(
    target: Tensor,
    *,
    mode: TargetMode,
    classes: int,
    ignore_index: int | None = 255,
    spacing: Sequence[float] = (1.0, 1.0),
) -> Tensor:
    """How far each pixel is from the contour of each class: below 0 inside, above 0 outside.

    Outside: the distance to the nearest pixel of the class. Inside: 1 minus the distance to the
    nearest counted pixel that is not of the class, so that the first pixels inside have 0 and the
    first ones outside 1 (at a spacing of 1). A class without a contour, absent or everywhere, has
    0 everywhere, as in the source's code, and so have ignored pixels, which are neither.

    Computed by scipy on the CPU. To keep it out of the training step (on another device the copy
    waits for it), call it in the data set, or in a loader's process, and give `boundary_loss` the
    result.

    Args:
        target: class indices (B, H, W) for multiclass, else (B, K, H, W) of 0 and 1.
        mode: "binary", "multiclass" or "multilabel".
        classes: K.
        ignore_index: target value that counts nowhere, or None.
        spacing: height and width of a pixel; the distances are in this unit.

    Returns:
        (B, K, H, W) float32, on the target's device.

    Raises:
        SpecError: a shape or dtype that does not fit; a length that is not above 0.

    Source: Kervadec et al. 2019, section 2.

    Example:
        >>> mask = torch.tensor([[[[0, 0, 1, 1, 1]]]])
        >>> signed_distances(mask, mode="binary", classes=1).tolist()
        [[[[2.0, 1.0, 0.0, -1.0, -2.0]]]]
    """
    check_spacing(spacing)
    like = torch.empty((target.shape[0], classes, *target.shape[-2:]), device="cpu")
    on_cpu = target.detach().cpu()
    pixels = prepare(like, on_cpu, mode=mode, ignore_index=ignore_index)
    truth = truth_of(pixels.hard_target(), like, None)[0] if mode == "multiclass" else pixels.target
    counted = pixels.counted.expand_as(truth).numpy()
    masks = (truth > 0.5).numpy() & counted
    maps = np.zeros(masks.shape, dtype=np.float32)
    for place in np.ndindex(masks.shape[:2]):
        inside, outside = masks[place], counted[place] & ~masks[place]
        if inside.any() and outside.any():
            to_class = ndimage.distance_transform_edt(~inside, sampling=spacing)
            to_rest = ndimage.distance_transform_edt(~outside, sampling=spacing)
            maps[place] = to_class * outside - (to_rest - 1) * inside
    return torch.from_numpy(maps).to(target.device)


def boundary_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: TargetMode,
    distances: Tensor | None = None,
    ignore_index: int | None = 255,
    class_weight: Tensor | Sequence[float] | None = None,
    spacing: Sequence[float] = (1.0, 1.0),
) -> Tensor:
    """The mean of probability times signed distance, over the pixels and classes that count.

    It is lowest where the ground truth is predicted: a pixel that is wrong costs as much as it is
    far from the contour, and the first pixels inside, which have 0, nothing. It says nothing about
    an absent class: the source adds it to a region loss, with a weight that grows from 0.01 during
    training.

    segmentation_models_pytorch has none. MONAI has the same value, but neither ignored pixels nor
    distances in other units or made beforehand.

    Args:
        logits: raw scores, (B, K, H, W), any float dtype; computed in at least float32.
        target: class indices (B, H, W) for multiclass, else (B, K, H, W) of 0 and 1.
        mode: "binary" (K = 1), "multiclass" or "multilabel".
        distances: (B, K, H, W), of `signed_distances`; None computes them here, on the CPU.
        ignore_index: pixels with this target value count in no sum; None for none.
        class_weight: K values, 0 or more: a weighted mean over the classes; not for binary.
        spacing: height and width of a pixel, where the distances are computed here.

    Returns:
        A scalar, in units of distance; 0, with a graph, when nothing counts.

    Raises:
        SpecError: a shape, dtype or option that does not fit.

    Source: Kervadec et al. 2019, eq. 5.

    Example:
        >>> mask = torch.tensor([[[[0, 0, 1, 1, 1]]]])
        >>> right, nothing = 40.0 * (2 * mask - 1), torch.full((1, 1, 1, 5), -40.0)
        >>> boundary_loss(right, mask, mode="binary")  # (0 - 1 - 2) / 5
        tensor(-0.6000)
        >>> boundary_loss(nothing, mask, mode="binary").abs() < 1e-6
        tensor(True)
    """
    check_class_weight(mode, class_weight)
    with full_precision(logits):
        pixels = prepare(logits, target, mode=mode, ignore_index=ignore_index)
        if mode == "multiclass":
            pixels.hard_target()  # else it would be refused only where no distances are given
        x = pixels.logits
        p = x.softmax(1) if mode == "multiclass" else x.sigmoid()
        if distances is None:
            distances = signed_distances(
                target, mode=mode, classes=x.shape[1], ignore_index=ignore_index, spacing=spacing
            )
        elif distances.shape != x.shape:
            raise SpecError(
                f"distances must have the logits' shape, got {describe(distances)} for logits "
                f"{describe(logits)}; they are signed_distances(target, ...)."
            )
        weight = pixels.counted.expand_as(p).to(p.dtype)
        if class_weight is not None:
            weight = weight * per_class_weight("class_weight", class_weight, x)[:, None, None]
        total = weight.sum()
        return (p * distances.to(p.dtype) * weight).sum() / torch.where(total > 0, total, 1.0)
