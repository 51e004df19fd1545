"""The sums of exclusive classes (softmax) and their gradient: see `losses.sums`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from transferseg.losses.blocks import Room, total_of_blocks, written_by_blocks
from transferseg.losses.inputs import at_least_float32, may_hold


def truth_of(
    target: Tensor, like: Tensor, ignore_index: int | None
) -> tuple[Tensor, Tensor | None]:
    """The ground truth of every class, and which pixels count (None: all of them).

    Args:
        target: class indices (B, ...), or probabilities (B, K, ...).
        like: (B, K, ...) in the precision of the sums.
        ignore_index: label of the pixels that count nowhere (among probabilities: of one whose
            probabilities hold it), or None.

    Returns:
        (B, K, ...), 0 where ignored, and bool (B, 1, ...).

    Example:
        >>> truth_of(torch.tensor([[1, 255]]), torch.zeros(1, 2, 2), 255)
        (tensor([[[0., 0.],
                 [1., 0.]]]), tensor([[[ True, False]]]))
    """
    soft = target.ndim == like.ndim
    target = target.to(like.dtype) if soft else target.long().unsqueeze(1)
    counted = None
    if ignore_index is not None and may_hold(target, ignore_index):
        counted = target != ignore_index
        target = torch.where(counted, target, 0)
        counted = counted.all(dim=1, keepdim=True)
    if soft:
        return target if counted is None else torch.where(counted, target, 0.0), counted
    if torch.compiler.is_compiling():  # fused; a label out of range is then of no class
        classes = torch.arange(like.shape[1], device=like.device)
        truth = (target == classes.reshape(-1, *[1] * (like.ndim - 2))).to(like.dtype)
    else:  # not one_hot: no int64 copy of K times the mask, and a label out of range is loud
        truth = torch.zeros_like(like).scatter_(1, target, 1.0)
    return truth if counted is None else torch.where(counted, truth, 0.0), counted


def _prepared(
    x: Tensor, y: Tensor, ignore_index: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probabilities, ground truth, and which pixels count (None: all of them)."""
    x = at_least_float32(x)
    truth, counted = truth_of(y, x, ignore_index)
    # where, not a product: an infinite logit under an ignored pixel must not become NaN
    x = x if counted is None else torch.where(counted, x, 0.0)
    return x.log_softmax(1), truth, counted


def _wanted_truth(
    truth: Tensor, counted: Tensor | None, weight: Tensor | None, label_smoothing: float
) -> Tensor:
    """The weighted and smoothed truth, of which the cross-entropy is the product with -log p."""
    wanted = truth
    if label_smoothing:
        even = label_smoothing / truth.shape[1]
        wanted = wanted * (1 - label_smoothing) + even
        wanted = wanted if counted is None else torch.where(counted, wanted, 0.0)
    return wanted if weight is None else wanted * weight[:, None]


def block_sums(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    label_smoothing: float,
    entropy: bool,
    region: bool,
    squared: bool,
) -> Tensor:
    """(7, B, K): entropy, weight, linear, square, overlap, truth, number, over the last axis."""
    logs, truth, counted = _prepared(x, y, ignore_index)
    none = logs.new_zeros(logs.shape[:2])
    number = none + x.shape[2] if counted is None else none + counted.sum(-1)
    sums = [none, none, none, none, none, none, number]
    if entropy:
        wanted = _wanted_truth(truth, counted, weight, label_smoothing)
        # a class with a logit of -inf (masked out) costs nothing where it is not the truth
        logs = logs.clamp_min(torch.finfo(logs.dtype).min)
        sums[0] = -(wanted * logs).sum(-1)
        sums[1] = truth.sum(-1) if weight is None else truth.sum(-1) * weight
    if region:
        p = logs.exp()
        p = p if counted is None else torch.where(counted, p, 0.0)
        sums[2], sums[4] = p.sum(-1), (p * truth).sum(-1)
        sums[3] = p.square().sum(-1) if squared else none
        sums[5] = (truth.square() if squared else truth).sum(-1)
    return torch.stack(sums)


def block_gradient(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    factors: Sequence[Tensor],
    ignore_index: int | None,
    label_smoothing: float,
    entropy: bool,
    region: bool,
    squared: bool,
) -> Tensor:
    """The gradient to the logits, given that to entropy, linear, square (doubled) and overlap.

    `factors` are these four, each (B, K, 1) or expanded to the pixels.
    """
    logs, truth, counted = _prepared(x, y, ignore_index)
    by_entropy, by_linear, by_square, by_overlap = factors
    p = logs.exp()
    p = p if counted is None else torch.where(counted, p, 0.0)
    gradient = torch.zeros_like(p)
    if region:
        by_p = (truth * by_overlap).add_(by_linear)
        if squared:
            by_p.add_(p * by_square)
        gradient = by_p.sub_((by_p * p).sum(1, keepdim=True)).mul_(p)
    if entropy:
        wanted = _wanted_truth(truth, counted, weight, label_smoothing) * by_entropy
        gradient.add_(p * wanted.sum(1, keepdim=True)).sub_(wanted)
    return gradient


class ClassSums(torch.autograd.Function):
    """(entropy, weight, linear, square, overlap, truth, number), (B, K), of (B, K, N) logits."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        y: Tensor,
        weight: Tensor | None,
        *wanted: Any,  # noqa: ANN401
    ) -> tuple[Tensor, ...]:
        """Sum block by block."""
        ctx.save_for_backward(x, y, weight)
        ctx.wanted = wanted

        def work(_: Room, x: Tensor, rows: Tensor) -> Tensor:
            return block_sums(x, rows[:, 0] if y.ndim == 2 else rows, weight, *wanted)

        if torch.compiler.is_compiling():  # the compiler cuts the whole itself
            found = block_sums(x, y, weight, *wanted)
        else:
            rows = y.unsqueeze(1) if y.ndim == 2 else y
            found = total_of_blocks(work, x, rows, whole_classes=True)
        sums = found.unbind()
        ctx.mark_non_differentiable(sums[1], *sums[5:])
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Write the gradient block by block; there is no second derivative."""
        x, y, weight = ctx.saved_tensors
        given = (gradients[0], gradients[2], 2 * gradients[3], gradients[4])
        factors = [one.unsqueeze(-1) for one in given]
        none = [None] * (2 + len(ctx.wanted))
        if torch.compiler.is_compiling():
            return (block_gradient(x, y, weight, factors, *ctx.wanted).to(x.dtype), *none)

        def work(_: Room, out: Tensor, x: Tensor, rows: Tensor, *factors: Tensor) -> None:
            labels = rows[:, 0] if y.ndim == 2 else rows
            out.copy_(block_gradient(x, labels, weight, factors, *ctx.wanted))

        rows = y.unsqueeze(1) if y.ndim == 2 else y
        some = [factor.expand_as(x) for factor in factors]
        return (written_by_blocks(work, x, rows, *some, whole_classes=True), *none)
