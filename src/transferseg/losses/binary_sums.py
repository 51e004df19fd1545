"""The sums of independent classes (sigmoid) and their gradient: see `losses.sums`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from transferseg.losses.blocks import Block, total_of_blocks, written_by_blocks
from transferseg.losses.inputs import at_least_float32, may_hold

#: The logit of an ignored pixel: its probability and its entropy with y = 0 are 0 in every dtype
#: that is computed in, and so is their gradient.
FAR = -1e4


def _neutral(
    x: Tensor, y: Tensor, ignore_index: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits and target in the precision of the sums, and which count (None: all of them)."""
    x = at_least_float32(x)
    y = y.to(x.dtype)  # before comparing: in uint8, -100 is not a value
    if ignore_index is None or not may_hold(y, ignore_index):
        return x, y, None
    counted = y != ignore_index
    return torch.where(counted, x, FAR), torch.where(counted, y, 0.0), counted


def _smoothed(y: Tensor, counted: Tensor | None, label_smoothing: float) -> Tensor:
    if not label_smoothing:
        return y
    y = y * (1 - label_smoothing) + label_smoothing / 2
    return y if counted is None else torch.where(counted, y, 0.0)


def _entropy(x: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
    """Binary cross-entropy of each logit; `extra` is the weight of the positives less 1."""
    # Not by exp and log1p, which start threads for blocks of any size.
    entropy = F.softplus(x).addcmul_(x, y, value=-1)
    if extra is None:
        return entropy
    return entropy.add_(F.softplus(-x).mul_(y).mul_(extra))


def _entropy_and_probability(x: Tensor, y: Tensor, extra: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both with one exponential: for the compiler, which makes one loop of it."""
    small = (-x.abs()).exp()
    rest = small.log1p()
    entropy = x.clamp_min(0) - x * y + rest
    if extra is not None:
        entropy = entropy + extra * y * (rest - x.clamp_max(0))
    return entropy, torch.where(x >= 0, 1.0, small) / (1 + small)


def block_sums(
    x: Tensor,
    y: Tensor,
    extra: Tensor | None,
    ignore_index: int | None,
    label_smoothing: float,
    entropy: bool,
    region: bool,
    squared: bool,
) -> Tensor:
    """(6, B, K): entropy, linear, square, overlap, truth, number, summed over the last axis."""
    x, y, counted = _neutral(x, y, ignore_index)
    none = x.new_zeros(x.shape[:2])
    number = none + x.shape[2] if counted is None else counted.sum(-1).to(x.dtype)
    sums = [none, none, none, none, none, number]
    z = _smoothed(y, counted, label_smoothing)
    if torch.compiler.is_compiling():
        each, p = _entropy_and_probability(x, z, extra)
    else:
        each = _entropy(x, z, extra) if entropy else none
        p = x.sigmoid() if region else none
    if entropy:
        sums[0] = each.sum(-1)
    if region:
        sums[1], sums[3] = p.sum(-1), (p * y).sum(-1)
        sums[2] = (p * p).sum(-1) if squared else none
        sums[4] = (y * y if squared else y).sum(-1)
    return torch.stack(sums)


def block_gradient(
    x: Tensor,
    y: Tensor,
    extra: Tensor | None,
    factors: Tensor,
    ignore_index: int | None,
    label_smoothing: float,
    entropy: bool,
    region: bool,
    squared: bool,
) -> Tensor:
    """The gradient to the logits, given that to entropy, linear, square and overlap: (4, B, K)."""
    x, y, counted = _neutral(x, y, ignore_index)
    by_entropy, by_linear, by_square, by_overlap = factors.unsqueeze(-1).unbind()
    p = x.sigmoid()
    gradient = torch.zeros_like(p)
    if region:
        by_p = (y * by_overlap).add_(by_linear)
        if squared:
            by_p.add_(p * (2 * by_square))
        gradient = torch.ops.aten.sigmoid_backward(by_p, p)
    if entropy:
        z = _smoothed(y, counted, label_smoothing)
        slope = p - z
        if extra is not None:
            slope.add_((p - 1).mul_(z).mul_(extra))
        gradient = slope.mul_(by_entropy).add_(gradient) if region else slope.mul_(by_entropy)
    return gradient


class BinarySums(torch.autograd.Function):
    """(entropy, linear, square, overlap, truth, number), each (B, K), of (B, K, N) pixels."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        y: Tensor,
        extra: Tensor | None,
        *wanted: Any,  # noqa: ANN401
    ) -> tuple[Tensor, ...]:
        """Sum block by block."""
        ctx.save_for_backward(x, y, extra)
        ctx.wanted = wanted

        def work(part: Block) -> Tensor:
            more = None if extra is None else extra[part[1]]
            return block_sums(x[part], y[part], more, *wanted)

        sums = total_of_blocks(work, x, whole_classes=False).unbind()
        ctx.mark_non_differentiable(*sums[4:])
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Write the gradient block by block; there is no second derivative."""
        x, y, extra = ctx.saved_tensors
        factors = torch.stack(gradients[:4])

        def work(part: Block) -> Tensor:
            more = None if extra is None else extra[part[1]]
            some = factors[:, part[0], part[1]]
            return block_gradient(x[part], y[part], more, some, *ctx.wanted)

        gradient = written_by_blocks(work, x, whole_classes=False)
        return (gradient, *[None] * (2 + len(ctx.wanted)))
