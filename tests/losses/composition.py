"""Cross-entropy and Dice as a composition of torch's operations: what the one pass must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def truth(target, like, ignore_index):
    """Ground truth and counted pixels, both (B, K, H, W) in the dtype of the logits."""
    soft = target.ndim == like.ndim
    target = target if soft else target[:, None].expand(-1, like.shape[1], -1, -1)
    counted = torch.ones_like(like, dtype=torch.bool)
    if ignore_index is not None:
        counted = target != ignore_index
    target = torch.where(counted, target, 0)
    if not soft:
        target = F.one_hot(target[:, 0].long(), like.shape[1]).movedim(-1, 1)
    return target.to(like.dtype) * counted, counted


def bce_dice(
    logits,
    target,
    *,
    mode,
    bce_weight=1.0,
    dice_weight=1.0,
    squared=True,
    per_image=True,
    ignore_index=255,
    class_weight=None,
    pos_weight=None,
    dice_class_weight=None,
    label_smoothing=0.0,
    empty="penalise",
    eps=1e-6,
):
    """{"loss", "bce", "dice"}, of full-size tensors and torch's own gradients."""
    y, counted = truth(target, logits, ignore_index)
    classes = logits.shape[1]
    weight, dice_weights = (
        torch.ones(classes, dtype=logits.dtype)
        if w is None
        else torch.tensor(w, dtype=logits.dtype)
        for w in (class_weight, dice_class_weight)
    )
    column = weight[:, None, None]
    x = torch.where(counted, logits, 0.0)
    if mode == "multiclass":
        smooth = y * (1 - label_smoothing) + label_smoothing / classes * counted.to(y.dtype)
        total = (column * y).sum()
        entropy = -(column * smooth * x.log_softmax(1)).sum() * (total > 0) / total.clamp_min(1e-30)
        p = x.softmax(1)
    else:
        smooth = y * (1 - label_smoothing) + label_smoothing / 2
        positive = None if pos_weight is None else torch.tensor(pos_weight)[:, None, None]
        each = F.binary_cross_entropy_with_logits(x, smooth, pos_weight=positive, reduction="none")
        entropy = (each * counted * column).sum() / (counted * column).sum().clamp_min(1e-30)
        p = x.sigmoid()
    p = p * counted
    axes = (2, 3) if per_image else (0, 2, 3)

    def index(y, p, eps):
        size = (y**2 + p**2 if squared else y + p).sum(axes)
        return 1 - 2 * (y * p).sum(axes) / (size + eps)

    present, some = y.sum(axes) > 0, counted.sum(axes) > 0
    absent = index((1 - y) * counted, (1 - p) * counted, (~some).to(p.dtype))
    dice = torch.where(present, index(y, p, eps), absent if empty == "penalise" else 0.0)
    counts = (some if empty == "penalise" else present).to(p.dtype) * dice_weights
    dice = (torch.where(counts > 0, dice, 0.0) * counts).sum() / counts.sum().clamp_min(1e-30)
    return {"loss": bce_weight * entropy + dice_weight * dice, "bce": entropy, "dice": dice}
