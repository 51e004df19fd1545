"""The sums of independent classes (sigmoid) and their gradient: see `losses.sums`."""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from transferseg.losses.blocks import Room, total_of_blocks, written_by_blocks
from transferseg.losses.inputs import at_least_float32, may_hold

#: The logit of an ignored pixel: its probability and its entropy with y = 0 are 0 in every dtype
#: that is computed in, and so is their gradient.
FAR = -1e4
_LOG2_E = 1.4426950408889634
#: log(1 + s) / s through Chebyshev's ten points of 0 to 1, highest power first.
_LOG1P_OVER_SMALL = (
    -0.00317606, 0.01954253, -0.05637361, 0.10543624, -0.15269667,
    0.19663274, -0.24951616, 0.3332971, -0.49999893, 0.99999999,
)  # fmt: skip
#: Values whose squares are summed before the others: at most, and fewer than these are slow.
_ROW, _SHORTEST_ROW = 512, 64
#: Values multiplied before their logarithm is taken; the product of so many halves is a number yet.
_FACTORS = 32


class Wanted(NamedTuple):
    """What is summed, and how: see `losses.sums.pixel_sums`."""

    ignore_index: int | None
    label_smoothing: float
    entropy: bool
    region: bool
    squared: bool


class Slopes(NamedTuple):
    """The gradients to four of the sums: each (B, K, 1), or expanded to the pixels."""

    entropy: Tensor
    linear: Tensor | None  # None: zeros
    square: Tensor  # doubled
    overlap: Tensor


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

    In float32 as a polynomial, exact to 2e-7 of the value; a logarithm takes a compiled loop as
    long as all else in it.
    """
    if small.dtype == torch.float64:
        return small.log1p()
    ratio = torch.zeros_like(small)
    for coefficient in _LOG1P_OVER_SMALL:
        ratio = ratio * small + coefficient
    return ratio * small


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
    """The sum over the last axis of log(s), of values from 0.5 to 1.

    Logarithms of products of 32, since a logarithm is slow. In float32 the rounding of s shows:
    6e-8 a pixel in the value of the cross-entropy, nothing in its gradient.
    """
    rest = s.shape[-1] % _FACTORS
    whole = s.shape[-1] - rest
    products = s[..., :whole].view(*s.shape[:-1], _FACTORS, whole // _FACTORS).prod(-2)
    total = products.log_().sum(-1)
    return total if not rest else total + s[..., whole:].log().sum(-1)


def _norms_of_rows(x: Tensor) -> Tensor | None:
    """Euclidean norms of short rows of the last axis, as exact as a sum of products, in one pass.

    None where there are no such rows, and on other devices.
    """
    width = gcd(x.shape[-1], _ROW)
    if width < _SHORTEST_ROW or x.device.type != "cpu":
        return None
    rows = x.view(*x.shape[:-1], x.shape[-1] // width, width)  # not -1: there may be no image
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return norms


def _sum_of_squares(x: Tensor, norms: Tensor | None, spare: Tensor) -> Tensor:
    """Over the last axis, of the norms if they are known; these are written over."""
    return torch.mul(x, x, out=spare).sum(-1) if norms is None else norms.square_().sum(-1)


def _may_ignore(y: Tensor, norms: Tensor | None, ignore_index: int | None) -> bool:
    """False when no value can be `ignore_index`: no row that holds it has a norm below it."""
    if ignore_index is None:
        return False
    if norms is not None and norms.numel() and norms.amax().item() / 0.99 < abs(ignore_index):
        return False
    return may_hold(y, ignore_index)


def _linear_entropy(x: Tensor, z: Tensor, extra: Tensor | None, spare: Tensor) -> Tensor:
    """Sums of the binary cross-entropy max(x, 0) - x z + log(1 + exp(-|x|)) but for its last term.

    That is -log(max(p, 1 - p)). `extra` is the weight of the positives less 1.
    """
    total = torch.clamp_min(x, 0, out=spare).addcmul_(x, z, value=-1).sum(-1)
    if extra is not None:
        # at its own threshold, 20, softplus would leave out 2e-9
        total += F.softplus(-x, threshold=40).mul_(z).mul_(extra).sum(-1)
    return total


def block_sums(
    x: Tensor, y: Tensor, extra: Tensor | None, wanted: Wanted, room: Room
) -> tuple[Tensor, bool]:
    """What is summed over the last axis, and whether pixels may be ignored.

    (6, B, K): entropy, linear, square, overlap, truth, number.
    """
    x = at_least_float32(x)
    y, counted = y.to(x.dtype), None
    norms = _norms_of_rows(y) if wanted.region and wanted.squared else None
    ignoring = _may_ignore(y, norms, wanted.ignore_index)
    if ignoring:
        (x, y, counted), norms = _neutral(x, y, wanted.ignore_index), None
    number = x.new_full(x.shape[:2], x.shape[2]) if counted is None else counted.sum(-1).to(x.dtype)
    none = torch.zeros_like(number)
    sums = [none, none, none, none, none, number]
    p, spare = torch.sigmoid(x, out=room.like("p", x)), room.like("spare", x)
    # what reads the logits comes first, then the target, while they are in the cache
    if wanted.entropy:
        z = _smoothed(y, counted, wanted.label_smoothing)
        sums[0] = _linear_entropy(x, z, extra, spare)
    if wanted.region:
        # not one matrix product: torch.set_float32_matmul_precision may round its factors
        sums[3] = torch.mul(p, y, out=spare).sum(-1)
        sums[4] = _sum_of_squares(y, norms, spare) if wanted.squared else y.sum(-1)
        sums[2] = _sum_of_squares(p, _norms_of_rows(p), spare) if wanted.squared else none
        sums[1] = p.sum(-1)
    if wanted.entropy:
        sums[0] -= _log_of_products(p.sub_(0.5).abs_().add_(0.5))  # max(p, 1 - p), in place
    return torch.stack(sums), ignoring


def traced_gradient(
    x: Tensor, y: Tensor, extra: Tensor | None, by: Slopes, wanted: Wanted
) -> Tensor:
    """What `block_gradient` gives, of operations that a compiler makes one loop of."""
    x = at_least_float32(x)
    y = y.to(x.dtype)
    p = x.sigmoid()
    gradient = torch.zeros_like(p)
    if wanted.region:
        by_p = y * by.overlap if by.linear is None else y * by.overlap + by.linear
        gradient = (by_p + by.square * p if wanted.squared else by_p) * p * (1 - p)
    if wanted.entropy:
        z = _smoothed(y, None, wanted.label_smoothing)
        slope = p - z if extra is None else p - z + (p - 1) * z * extra
        gradient = gradient + slope * by.entropy
    if wanted.ignore_index is None:
        return gradient
    # here, since a loop that begins with neutral logits and targets takes half as long again
    return torch.where(y != wanted.ignore_index, gradient, 0.0)


def block_gradient(
    out: Tensor,
    x: Tensor,
    y: Tensor,
    extra: Tensor | None,
    by: Slopes,
    wanted: Wanted,
    room: Room,
) -> None:
    """Write the gradient to the logits into `out`."""
    x, y, counted = _neutral(x, y, wanted.ignore_index)
    p = torch.sigmoid(x, out=room.like("p", x))
    # written over in place, so that its memory is fetched once; in half precision it cannot be
    gradient = out if out.dtype == p.dtype else room.like("gradient", x)
    if wanted.region:
        by_p = torch.mul(y, by.overlap, out=gradient)
        if by.linear is not None:
            by_p += by.linear
        if wanted.squared:
            by_p.addcmul_(p, by.square)
        torch.ops.aten.sigmoid_backward.grad_input(by_p, p, grad_input=gradient)
    if wanted.entropy:
        z = _smoothed(y, counted, wanted.label_smoothing)
        further = None if extra is None else (p - 1).mul_(z).mul_(extra)
        slope = p.sub_(z) if further is None else p.sub_(z).add_(further)
        if wanted.region:
            gradient.addcmul_(slope, by.entropy)
        else:
            torch.mul(slope, by.entropy, out=gradient)
    elif not wanted.region:
        gradient.zero_()
    if gradient is not out:
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
        wanted = Wanted(*options)
        ctx.save_for_backward(x, y, extra)
        if torch.compiler.is_compiling():
            sums = traced_sums(x, y, extra, wanted).unbind()
        else:
            ignoring = set()

            def work(room: Room, x: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
                own, may_ignore = block_sums(x, y, extra, wanted, room)
                ignoring.add(may_ignore)
                return own

            sums = total_of_blocks(work, x, y, _like(x, extra), whole_classes=False).unbind()
            options = options if True in ignoring else (None, *options[1:])
        ctx.wanted = options
        ctx.mark_non_differentiable(*sums[4:])
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Write the gradient block by block; there is no second derivative."""
        x, y, extra = ctx.saved_tensors
        wanted = Wanted(*ctx.wanted)
        none = [None] * (2 + len(wanted))
        entropy, linear, square, overlap = (one.unsqueeze(-1) for one in gradients[:4])
        by = Slopes(entropy, linear, 2 * square, overlap)
        if torch.compiler.is_compiling():
            return (traced_gradient(x, y, extra, by, wanted).to(x.dtype), *none)
        if x.device.type == "cpu" and not linear.any():  # most losses have none
            by = by._replace(linear=None)

        def work(room: Room, *given: Any) -> None:  # noqa: ANN401
            out, x, y, extra, *by = given
            block_gradient(out, x, y, extra, Slopes(*by), wanted, room)

        given = (_like(x, one) for one in (extra, *by))
        return (written_by_blocks(work, x, y, *given, whole_classes=False), *none)


def _like(x: Tensor, factor: Tensor | None) -> Tensor | None:
    return None if factor is None else factor.expand_as(x)
