"""What several decoders are made of: convolutions with norm, context pooling, maps made one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from transferseg.errors import SpecError
from transferseg.models.values import are_whole, is_share, is_whole


class ConvNormAct(nn.Sequential):
    """A convolution without bias that keeps the size, a batch norm (eps 1e-5) and a ReLU.

    Args:
        in_channels: of the input.
        channels: of the output.
        kernel_size: odd.
        dilation: of the kernel.
        groups: of the convolution.

    Example:
        >>> list(ConvNormAct(8, 4, 3).state_dict())[:2]
        ['conv.weight', 'bn.weight']
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            channels,
            kernel_size,
            padding=kernel_size // 2 * dilation,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)


class SeparableConvNormAct(nn.Sequential):
    """A 3x3 convolution of every channel by itself, then a 1x1; norm and ReLU after each.

    Args:
        in_channels: of the input.
        channels: of the output.
        dilation: of the 3x3 kernel.

    Source: Chen 2018 (arXiv 1802.02611), section 3.1.
    """

    def __init__(self, in_channels: int, channels: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(
            in_channels, in_channels, 3, dilation=dilation, groups=in_channels
        )
        self.pointwise = ConvNormAct(in_channels, channels)


class GridPool(nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d` to a square grid, which a map of any size can be exported with.

    While a program of a free size is traced, torch's own pooling becomes an index of pixels that
    ONNX reads beyond the map. There it is two products with the shares of every row and column.

    Example:
        >>> torch.equal(GridPool(3)(torch.ones(1, 2, 7, 5)), torch.ones(1, 2, 3, 3))
        True
    """

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, side, side)."""
        sizes: Sequence[object] = x.shape[-2:]
        if all(isinstance(size, int) for size in sizes):  # no symbol of a tracer's
            return super().forward(x)
        rows, columns = (_shares(size, self.side, x) for size in x.shape[-2:])
        return rows @ x @ columns.T


def _shares(size: int, side: int, like: Tensor) -> Tensor:
    """(side, size): how much of every position is in every cell of the grid, the cells' sum 1."""
    cell = torch.arange(side, device=like.device)[:, None]
    start, end = cell * size // side, -((cell + 1) * size // -side)
    position = torch.arange(size, device=like.device)
    inside = (position >= start) & (position < end)
    return inside.to(like.dtype) / (end - start).to(like.dtype)


def with_grid_pools(module: nn.Module) -> nn.Module:
    """The module, its adaptive average pools to a square replaced by `GridPool`, in place."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.AdaptiveAvgPool2d:
                setattr(parent, name, GridPool(int(_pair(child.output_size)[0])))
    return module


class PyramidPooling(nn.Module):
    """The map beside its averages over grids, each through a 1x1, then a 3x3 over all of them.

    Args:
        in_channels: of the map.
        channels: of every pooled branch and of the output.
        pools: sides of the grids.
        align_corners: of the bilinear resizing back.

    Source: Zhao 2017 (arXiv 1612.01105), section 3.2.
    """

    def __init__(
        self, in_channels: int, channels: int, pools: Sequence[int], *, align_corners: bool
    ) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(GridPool(side), ConvNormAct(in_channels, channels)) for side in pools
        )
        self.bottleneck = ConvNormAct(in_channels + len(pools) * channels, channels, 3)
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels, H, W)."""
        pooled = [resize(pool(x), x, align_corners=self.align_corners) for pool in self.pools]
        mixed: Tensor = self.bottleneck(torch.cat([x, *pooled], dim=1))
        return mixed


class AtrousPooling(nn.Module):
    """The map's average, a 1x1 and atrous 3x3 convolutions of it, concatenated in this order.

    Args:
        in_channels: of the map.
        channels: of every branch.
        rates: of the atrous branches.
        separable: whether the atrous convolutions are separable.

    Attributes:
        out_channels: of all branches together.

    Source: Chen 2017 (arXiv 1706.05587), section 3.3; order of MMSegmentation.
    """

    def __init__(
        self, in_channels: int, channels: int, rates: Sequence[int], *, separable: bool = False
    ) -> None:
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(in_channels, channels))
        self.branches = nn.ModuleList([ConvNormAct(in_channels, channels)])
        for rate in rates:
            self.branches.append(
                SeparableConvNormAct(in_channels, channels, dilation=rate)
                if separable
                else ConvNormAct(in_channels, channels, 3, dilation=rate)
            )
        self.out_channels = (2 + len(rates)) * channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        pooled = self.image_pool(x).expand(-1, -1, x.shape[-2], x.shape[-1])
        return torch.cat([pooled, *(branch(x) for branch in self.branches)], dim=1)


def resize(x: Tensor, like: Tensor, *, align_corners: bool) -> Tensor:
    """A map (B, C, h, w), bilinearly at the height and width of another."""
    size = (like.shape[-2], like.shape[-1])
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def joined(features: Sequence[Tensor], *, align_corners: bool) -> Tensor:
    """Feature maps, shallow to deep, as one: at the size of the first, concatenated.

    Example:
        >>> maps = [torch.rand(1, 16, 8, 8), torch.rand(1, 32, 4, 4)]
        >>> tuple(joined(maps, align_corners=False).shape)
        (1, 48, 8, 8)
    """
    largest, *deeper = features
    if not deeper:
        return largest
    resized = [resize(feature, largest, align_corners=align_corners) for feature in deeper]
    return torch.cat([largest, *resized], dim=1)


def check_common(
    architecture: str, *, channels: int | None, dropout: float, maps: int, available: int
) -> None:
    """Refuse values that no decoder can have; channels of None are for it to choose.

    Raises:
        SpecError: naming the values, what is wanted, and how many maps the encoder has.
    """
    wide = channels is None or is_whole(channels)
    if not wide or not is_share(dropout) or not is_whole(maps) or maps > available:
        raise SpecError(
            f"{architecture} needs channels from 1, a dropout from 0 to below 1 and maps from 1 to "
            f"{available}, as many as the encoder has; got channels={channels!r}, "
            f"dropout={dropout!r}, maps={maps!r}. Channels and maps are whole numbers."
        )


def check_pools(architecture: str, pools: Sequence[int]) -> None:
    """Refuse grids that cannot be pooled to.

    Raises:
        SpecError: no list, no grid, or one without cells.
    """
    if not are_whole(pools):
        raise SpecError(
            f"{architecture} needs at least one pool from 1, a list of whole numbers; "
            f"got {pools!r}."
        )
