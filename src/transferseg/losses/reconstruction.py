"""Reconstruction losses: of an autoencoder's output against its image."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transferseg.errors import SpecError, describe
from transferseg.losses.inputs import (
    at_least_float32,
    check_choice,
    check_pair,
    full_precision,
)

#: The pixel difference, squared or absolute, or the structural one.
ReconstructionKind: TypeAlias = Literal["l2", "l1", "ssim"]
_KINDS: tuple[str, ...] = get_args(ReconstructionKind)
#: Of the Gaussian window: its side and standard deviation in pixels.
WINDOW, SIGMA = 11, 1.5
_HEIGHTS = [math.exp(-((place - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for place in range(WINDOW)]
#: Its weights along an axis, which add up to 1 and are the same from both ends.
_WEIGHTS = tuple(height / sum(_HEIGHTS) for height in _HEIGHTS)


def structural_similarity(output: Tensor, target: Tensor, *, data_range: float) -> Tensor:
    """SSIM of each image: the mean over channels and over all windows that lie within the image.

    A Gaussian window of 11 pixels with a standard deviation of 1.5, K1 = 0.01 and K2 = 0.03, as in
    the source. torchmetrics has the same windows, and others that reach over the border into the
    image's reflection, which its mean takes too.

    Args:
        output: (B, C, H, W), H and W of 11 or more, any float dtype; computed in at least float32.
        target: the same shape, of a float dtype.
        data_range: the largest value that is possible less the smallest, above 0: 1 for images
            from 0 to 1; of normalised images 1 / std.

    Returns:
        (B,), 1 for equal images, -1 at the lowest.

    Raises:
        SpecError: a shape, dtype or range that does not fit.

    Source: Wang et al. 2004, eq. 13.

    Example:
        >>> image = torch.rand(1, 1, 16, 16)
        >>> structural_similarity(image, image, data_range=1.0)
        tensor([1.])
    """
    _check(output, target)
    if output.ndim != 4 or min(output.shape[-2:]) < WINDOW:
        raise SpecError(
            f"SSIM takes images (B, C, H, W) of at least {WINDOW}x{WINDOW} pixels, got "
            f"{describe(output)}."
        )
    _check_range("ssim", data_range)
    with full_precision(output):
        x = at_least_float32(output)
        y = target.to(x.dtype)
        mean_x, mean_y, xx, yy, xy = _WindowedMeans.apply(torch.stack((x, y, x * x, y * y, x * y)))
        # rounding may leave a variance below 0
        var_x, var_y = (xx - mean_x**2).clamp_min(0), (yy - mean_y**2).clamp_min(0)
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * (xy - mean_x * mean_y) + c2) / (var_x + var_y + c2)
        similarity: Tensor = (light * structure).mean((1, 2, 3))
        return similarity


class _WindowedMeans(torch.autograd.Function):
    """Gaussian means of (S, B, C, H, W) over the windows within the image, one axis at a time.

    Sums of shifted images: a GPU may round a convolution to TF32, which shows in the variances of
    nearly flat regions. The gradient is such a sum too, since the weights are the same from both
    ends; autograd's own would be a full image for each shift.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        """(S, B, C, H - 10, W - 10)."""
        return _shifted_sum(_shifted_sum(maps, -2), -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        """(S, B, C, H, W): what each pixel gave to all of its windows."""
        edge = WINDOW - 1
        return _shifted_sum(_shifted_sum(F.pad(gradient, (edge,) * 4), -2), -1)


def _shifted_sum(maps: Tensor, axis: int) -> Tensor:
    """The weighted sum over each window along one axis, which gets shorter by a window less 1."""
    first, *others = maps.unfold(axis, WINDOW, 1).unbind(-1)  # views
    total = first * _WEIGHTS[0]
    for part, weight in zip(others, _WEIGHTS[1:], strict=True):
        total.add_(part, alpha=weight)
    return total


def _check(output: Tensor, target: Tensor) -> None:
    check_pair("output", output, target)
    if not target.is_floating_point():
        raise SpecError(
            f"target must be the normalised image, of a floating dtype, got {describe(target)} "
            f"for output {describe(output)}."
        )


def _check_range(kind: str, data_range: float | None) -> None:
    if kind != "ssim" and data_range is not None:
        raise SpecError(f"data_range is for kind 'ssim', got {data_range!r} for {kind!r}.")
    if kind == "ssim" and (data_range is None or not 0 < data_range < math.inf):
        raise SpecError(
            "kind 'ssim' needs data_range, the largest possible value less the smallest, above 0 "
            f"(1.0 for images from 0 to 1), got {data_range!r}."
        )


def reconstruction_loss(
    output: Tensor,
    target: Tensor,
    *,
    kind: ReconstructionKind = "l2",
    data_range: float | None = None,
) -> Tensor:
    """How much a reconstruction differs from its image, the mean over all values.

    Args:
        output: the reconstruction, any shape, usually (B, C, H, W), any float dtype; computed in
            at least float32.
        target: the image that the model was given, normalised alike, of the same shape and of a
            float dtype (raw integers are refused: they are not on the output's scale).
        kind: "l2", the squared difference; "l1", the absolute one; "ssim", 1 minus the structural
            similarity (see `structural_similarity`).
        data_range: for "ssim", and only there.

    Returns:
        A scalar, 0 or more, in squared units of the target ("l2"), in its units ("l1") or without
        one, up to 2 ("ssim"); 0, with a graph, for a batch of nothing.

    Raises:
        SpecError: shapes that differ, an integer dtype, an unknown kind, a range that is missing.

    Example:
        >>> import torch
        >>> reconstruction_loss(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 1.0]))
        tensor(4.5000)
        >>> reconstruction_loss(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 1.0]), kind="l1")
        tensor(1.5000)
    """
    check_choice("kind of reconstruction loss", kind, _KINDS)
    _check_range(kind, data_range)
    _check(output, target)
    if data_range is not None:
        similarity = structural_similarity(output, target, data_range=data_range)
        return (1 - similarity).sum() / max(len(similarity), 1)
    with full_precision(output):
        output = at_least_float32(output)
        target = target.to(output.dtype)
        if not output.numel():
            return output.sum()
        return F.mse_loss(output, target) if kind == "l2" else F.l1_loss(output, target)


class ReconstructionLoss(nn.Module):
    """`reconstruction_loss` with its options kept.

    Args:
        kind: "l2", "l1" or "ssim".
        data_range: for "ssim": the largest possible value less the smallest.

    Raises:
        SpecError: an unknown kind; a range that is missing or does not fit the kind.

    Example:
        >>> ReconstructionLoss("l1")
        ReconstructionLoss('l1')
    """

    def __init__(self, kind: ReconstructionKind = "l2", *, data_range: float | None = None) -> None:
        super().__init__()
        check_choice("kind of reconstruction loss", kind, _KINDS)
        _check_range(kind, data_range)
        self.kind = kind
        self.data_range = data_range

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The scalar loss: see `reconstruction_loss`."""
        return reconstruction_loss(output, target, kind=self.kind, data_range=self.data_range)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        scale = "" if self.data_range is None else f", data_range={self.data_range!r}"
        return f"{self.kind!r}{scale}"
