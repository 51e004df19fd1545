"""Fold the scale and the channel order of an input into the convolution that reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isclose

import torch
from torch import Tensor

from transferseg.errors import TransferError
from transferseg.spec import InputSpec
from transferseg.transfer.adapters import Adapter, Shape


@dataclass(frozen=True)
class FoldedInput(Adapter):
    """A first convolution for another scale or order of the same channels, with the same output.

    Where the source read x, the target reads z with `x[c] = scale[c] * z[d]`, d being c, or counted
    from the other end where `reverse` says so. A difference of the mean cannot be folded: it would
    go into a bias, but the zeros that pad the image stand for another grey value then, so that the
    output would differ along the border. The mean stays in the `InputSpec`; `fold_input` checks it.

    Args:
        scale: one factor a channel of the source, none 0.
        reverse: whether the target's channels come in the other order (RGB and BGR).

    Example:
        >>> adapter = FoldedInput((255.0, 255.0, 255.0), reverse=True)
        >>> kernel = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
        >>> adapter.apply(kernel, kernel).flatten().tolist()
        [765.0, 510.0, 255.0]
    """

    scale: tuple[float, ...]
    reverse: bool = False
    name: str = field(default="folded_input", init=False)

    @property
    def note(self) -> str:  # type: ignore[override]
        """What it does."""
        factors = sorted({f"{factor:.6g}" for factor in self.scale})
        order = ", its channels in the other order" if self.reverse else ""
        return f"input scaled by {' and '.join(factors)}{order}"

    def fits(self, source: Shape, target: Shape) -> bool:
        """The same convolution weights on both sides, with one channel a factor."""
        return source == target and len(source) == 4 and source[1] == len(self.scale)

    def apply(self, source: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002
        """See the class."""
        factors = torch.tensor(self.scale, dtype=torch.float64, device=source.device)
        scaled = (source.to(torch.float64) * factors.view(1, -1, 1, 1)).to(source.dtype)
        return scaled.flip(1) if self.reverse else scaled


def fold_input(source: InputSpec, target: InputSpec) -> FoldedInput:
    """The adapter that makes a first convolution for one input read another.

    Args:
        source: what the weights expect.
        target: what the model is to be given; the same image, with the same zero.

    Raises:
        TransferError: another number of channels, or a mean that differs by more than the scale: it
            must stay in the target's InputSpec; says which mean would do.

    Example:
        >>> caffe = InputSpec(channel_order="BGR", value_range=(0, 255), mean=(104, 117, 123))
        >>> mean = tuple(value / 255 for value in (123, 117, 104))
        >>> fold_input(caffe, InputSpec(mean=mean)).note
        'input scaled by 255, its channels in the other order'
    """
    orders = {source.channel_order, target.channel_order}
    if source.channels != target.channels or (len(orders) > 1 and orders != {"RGB", "BGR"}):
        raise TransferError(
            f"an input of {source.channels} channels ({source.channel_order}) cannot be folded "
            f"into one of {target.channels} ({target.channel_order})."
        )
    reverse = len(orders) == 2
    mean, std = (v[::-1] if reverse else v for v in (target.mean, target.std))
    low, high = target.value_range
    width = source.value_range[1] - source.value_range[0]
    step = width / (high - low)  # one unit of the target's range, in the source's
    scale = tuple(step * ours / theirs for ours, theirs in zip(std, source.std, strict=True))
    needed = tuple(low + (value - source.value_range[0]) / step for value in source.mean)
    if not all(
        isclose(a, b, abs_tol=1e-4 * (high - low)) for a, b in zip(mean, needed, strict=True)
    ):
        wanted = needed[::-1] if reverse else needed
        raise TransferError(
            f"the mean of an input cannot be folded into a convolution that pads with zeros: give "
            f"the target mean={tuple(round(value, 6) for value in wanted)} instead of "
            f"{target.mean}."
        )
    return FoldedInput(scale, reverse)
