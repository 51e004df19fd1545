"""The sums of independent classes (sigmoid) and their gradient: see `losses.sums`."""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from transferseg.losses.blocks import Block, Room, total_of_blocks, written_by_blocks
from transferseg.losses.inputs import at_least_float32, may_hold

#: The logit of an ignored pixel: its probability and its entropy with y = 0 are 0 in every dtype
#: that is computed in, and so is their gradient.
FAR = -1e4
_LOG2_E = 1.4426950408889634
#: Values whose squares are summed before the others: at most, and fewer than these are slow.
_ROW, _SHORTEST_ROW = 512, 64


class Wanted(NamedTuple):
    """What is summed, and how: see `losses.sums.pixel_sums`."""

    ignore_index: int | None
    label_smoothing: float
    entropy: bool
    region: bool
    squared: bool


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


def _probability(x: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(x) and log(1 + exp(-|x|)) with one exponential: for the compiler, as one loop."""
    # not exp, of which Inductor would keep a tensor, since it is used twice
    small = (x.abs() * -_LOG2_E).exp2()
    return torch.where(x >= 0, 1.0, small) / (1 + small), _log1p(small)


def _log1p(small: Tensor) -> Tensor:
    """log(1 + small), of values from 0 to 1.

    As 2 artanh(small / (2 + small)), of whose series seven terms suffice in float32; a logarithm
    takes a compiled loop as long as all else in it.
    """
    if small.dtype == torch.float64:
        return small.log1p()
    ratio = small / (2 + small)
    square = ratio * ratio
    series = square * (2 / 13) + 2 / 11
    for odd in (9, 7, 5, 3, 1):
        series = series * square + 2 / odd
    return series * ratio


def traced_sums(x: Tensor, y: Tensor, extra: Tensor | None, wanted: Wanted) -> Tensor:
    """What `block_sums` gives, of operations that a compiler makes one loop of."""
    x, y, counted = _neutral(x, y, wanted.ignore_index)
    z = _smoothed(y, counted, wanted.label_smoothing)
    none = x.new_zeros(x.shape[:2])
    number = none + x.shape[2] if counted is None else counted.to(x.dtype).sum(-1)
    sums = [none, none, none, none, none, number]
    p, rest = _probability(x)
    if wanted.entropy:
        entropy = x.clamp_min(0) - x * z
        if extra is None:
            entropy = entropy + rest
        else:
            heavier = extra * z
            entropy = entropy - heavier * x.clamp_max(0) + (1 + heavier) * rest
        sums[0] = entropy.sum(-1)
    if wanted.region:
        sums[1], sums[3] = p.sum(-1), (p * y).sum(-1)
        sums[2] = (p * p).sum(-1) if wanted.squared else none
        sums[4] = (y * y if wanted.squared else y).sum(-1)
    return torch.stack(sums)


def _log_of_products(s: Tensor) -> Tensor:
    """The sum over the last axis of log(s), of values from 0.5 to 1, which are written over.

    Logarithms of products of eight, since a logarithm is slow. In float32 the rounding of s shows:
    6e-8 a pixel in the value of the cross-entropy, nothing in its gradient.
    """
    odd = []
    for _ in range(3):
        half = s.shape[-1] // 2
        if s.shape[-1] % 2:
            odd.append(s[..., -1].log())
        s = torch.mul(s[..., :half], s[..., half : 2 * half], out=s[..., :half])
    return sum(odd, s.log_().sum(-1))


def _sum_of_squares(x: Tensor, spare: Tensor) -> Tensor:
    """Over the last axis; norms of short rows are one pass, and as exact as the sum of products."""
    width = gcd(x.shape[-1], _ROW)
    if width < _SHORTEST_ROW or x.device.type != "cpu":
        return torch.mul(x, x, out=spare).sum(-1)
    rows = x.view(*x.shape[:-1], x.shape[-1] // width, width)  # not -1: there may be no image
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return norms.square_().sum(-1)


def _linear_entropy(x: Tensor, z: Tensor, extra: Tensor | None, spare: Tensor) -> Tensor:
    """Sums of the binary cross-entropy max(x, 0) - x z + log(1 + exp(-|x|)) but for its last term.

    That is -log(max(p, 1 - p)). `extra` is the weight of the positives less 1.
    """
    total = torch.clamp_min(x, 0, out=spare).addcmul_(x, z, value=-1).sum(-1)
    if extra is not None:
        # at its own threshold, 20, softplus would leave out 2e-9
        total += F.softplus(-x, threshold=40).mul_(z).mul_(extra).sum(-1)
    return total


def block_sums(x: Tensor, y: Tensor, extra: Tensor | None, wanted: Wanted, room: Room) -> Tensor:
    """(6, B, K): entropy, linear, square, overlap, truth, number, summed over the last axis."""
    x, y, counted = _neutral(x, y, wanted.ignore_index)
    none = x.new_zeros(x.shape[:2])
    number = none + x.shape[2] if counted is None else counted.sum(-1).to(x.dtype)
    sums = [none, none, none, none, none, number]
    p, spare = torch.sigmoid(x, out=room.like("p", x)), room.like("spare", x)
    # what reads the logits comes first, then the target, while they are in the cache
    if wanted.entropy:
        z = _smoothed(y, counted, wanted.label_smoothing)
        sums[0] = _linear_entropy(x, z, extra, spare)
    if wanted.region:
        # not one matrix product: torch.set_float32_matmul_precision may round its factors
        sums[3] = torch.mul(p, y, out=spare).sum(-1)
        sums[4] = _sum_of_squares(y, spare) if wanted.squared else y.sum(-1)
        sums[2] = _sum_of_squares(p, spare) if wanted.squared else none
        sums[1] = p.sum(-1)
    if wanted.entropy:
        torch.sub(p.new_ones(()), p, out=spare)
        sums[0] -= _log_of_products(torch.maximum(spare, p, out=spare))
    return torch.stack(sums)


def traced_gradient(
    x: Tensor, y: Tensor, extra: Tensor | None, factors: Tensor, wanted: Wanted
) -> Tensor:
    """What `block_gradient` gives, of operations that a compiler makes one loop of."""
    x, y, counted = _neutral(x, y, wanted.ignore_index)
    by_entropy, by_linear, by_square, by_overlap = factors.unsqueeze(-1).unbind()
    p = x.sigmoid()
    gradient = torch.zeros_like(p)
    if wanted.region:
        by_p = y * by_overlap + by_linear
        gradient = (by_p + 2 * by_square * p if wanted.squared else by_p) * p * (1 - p)
    if wanted.entropy:
        z = _smoothed(y, counted, wanted.label_smoothing)
        slope = p - z if extra is None else p - z + (p - 1) * z * extra
        gradient = gradient + slope * by_entropy
    return gradient


def block_gradient(
    x: Tensor,
    y: Tensor,
    extra: Tensor | None,
    factors: Tensor,
    wanted: Wanted,
    room: Room,
    out: Tensor,
    *,
    linear: bool,
) -> None:
    """The gradient to the logits, given that to entropy, linear, square and overlap: (4, B, K).

    `linear` is whether the second of these need be looked at.
    """
    x, y, counted = _neutral(x, y, wanted.ignore_index)
    by_entropy, by_linear, by_square, by_overlap = factors.unsqueeze(-1).unbind()
    p, spare = torch.sigmoid(x, out=room.like("p", x)), room.like("spare", x)
    gradient = room.like("gradient", x)
    if wanted.region:
        by_p = torch.mul(y, by_overlap, out=spare)
        if linear:
            by_p += by_linear
        if wanted.squared:
            by_p.addcmul_(p, 2 * by_square)
        torch.ops.aten.sigmoid_backward.grad_input(by_p, p, grad_input=gradient)
    else:
        gradient.zero_()
    if wanted.entropy:
        z = _smoothed(y, counted, wanted.label_smoothing)
        slope = torch.sub(p, z, out=spare)
        if extra is not None:
            slope.add_((p - 1).mul_(z).mul_(extra))
        torch.addcmul(gradient, slope, by_entropy, out=out)
    else:
        out.copy_(gradient)


class BinarySums(torch.autograd.Function):
    """(entropy, linear, square, overlap, truth, number), each (B, K), of (B, K, N) pixels."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        y: Tensor,
        extra: Tensor | None,
        *options: Any,  # noqa: ANN401
    ) -> tuple[Tensor, ...]:
        """Sum block by block; `options` are those of `Wanted`."""
        wanted, plain = Wanted(*options), Wanted(None, *options[1:])
        ctx.save_for_backward(x, y, extra)
        ctx.wanted = options
        if torch.compiler.is_compiling():
            sums = traced_sums(x, y, extra, wanted).unbind()
        else:
            room, ignoring = Room(), set()

            def work(part: Block) -> Tensor:
                target = y[part]  # looked at while it is in the cache
                held = wanted.ignore_index is not None and may_hold(target, wanted.ignore_index)
                ignoring.add(held)
                own = _of(extra, part)
                return block_sums(x[part], target, own, wanted if held else plain, room)

            sums = total_of_blocks(work, x, whole_classes=False).unbind()
            ctx.wanted = tuple(wanted if True in ignoring else plain)
        ctx.mark_non_differentiable(*sums[4:])
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Write the gradient block by block; there is no second derivative."""
        x, y, extra = ctx.saved_tensors
        factors, wanted = torch.stack(gradients[:4]), Wanted(*ctx.wanted)
        none = [None] * (2 + len(wanted))
        if torch.compiler.is_compiling():
            return (traced_gradient(x, y, extra, factors, wanted).to(x.dtype), *none)
        room = Room()
        linear = x.device.type != "cpu" or bool(factors[1].any())  # most losses have none

        def work(part: Block, out: Tensor) -> None:
            some, own = factors[:, part[0], part[1]], _of(extra, part)
            block_gradient(x[part], y[part], own, some, wanted, room, out, linear=linear)

        return (written_by_blocks(work, x, whole_classes=False), *none)


def _of(extra: Tensor | None, part: Block) -> Tensor | None:
    return None if extra is None else extra[part[1]]
