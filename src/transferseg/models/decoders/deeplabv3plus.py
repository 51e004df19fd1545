"""The DeepLabV3+ decoder: separable atrous pooling, joined with a shallow feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP, SeparableConv2d
from torch import Tensor, nn

from transferseg.errors import SpecError, unknown_name
from transferseg.models.decoders.base import Decoder
from transferseg.models.decoders.blocks import (
    AtrousPooling,
    ConvNormAct,
    SeparableConvNormAct,
    check_common,
    joined,
    resize,
)
from transferseg.models.decoders.deeplabv3 import LAYOUTS, atrous_rates
from transferseg.models.values import is_whole


class DeepLabV3PlusDecoder(Decoder):
    """Atrous pooling of the deepest feature map, resized to a shallow one and joined with it.

    Args:
        encoder_channels: of the encoder's feature maps; the first at stride 4 or more is the
            shallow one.
        encoder_strides: their strides.
        channels: of every atrous branch and of the output.
        low_channels: to which the shallow map is reduced.
        rates: of the three atrous branches; None scales those of the paper to the stride: 12, 24,
            36 at 8, 6, 12, 18 at 16, 3, 6, 9 at 32.
        layout: "bottleneck", MMSegmentation's: a 3x3 over all atrous branches, two separable
            convolutions after the join, dropout of whole channels before the head; or "projection",
            smp's: a 1x1 over the branches, dropout of single values, a separable convolution
            before the join and one after it, none with a norm in its middle.
        dropout: 0 to below 1; None for 0.1 in the bottleneck layout and 0.5 in the other.
        maps: how many of the deepest maps the atrous pooling reads, as one (see `joined`): 1, or
            over HRNet its 4 branches.
        align_corners: of every bilinear resizing, the logits' too; True in MMSegmentation's
            networks for 769x769 crops, and in smp.

    Raises:
        SpecError: an unknown layout, a value out of range, or an encoder without a shallow map.

    Source: Chen 2018 (arXiv 1802.02611). The networks of MMSegmentation, and in the other layout of
    smp, give the same logits of the same weights (proved in the tests). The pooled branch has a
    batch norm too, so training needs two samples a batch.
    """

    output_strides: ClassVar[tuple[int, ...]] = (16, 8, 32)
    head_kernel = 1

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        *,
        channels: int = 256,
        low_channels: int = 48,
        rates: Sequence[int] | None = None,
        layout: str = "bottleneck",
        dropout: float | None = None,
        maps: int = 1,
        align_corners: bool = False,
    ) -> None:
        super().__init__(encoder_channels, encoder_strides)
        if layout not in tuple(LAYOUTS):
            raise SpecError(unknown_name("layout of 'deeplabv3plus'", layout, LAYOUTS))
        dropout = LAYOUTS[layout] if dropout is None else dropout
        available = len(encoder_channels)
        check_common(
            "deeplabv3plus",
            channels=channels,
            dropout=dropout,
            maps=maps,
            available=available,
        )
        if not is_whole(low_channels):
            raise SpecError(
                "deeplabv3plus needs channels from 1, whole numbers; "
                f"got low_channels={low_channels!r}."
            )
        rates = atrous_rates("deeplabv3plus", rates, encoder_strides[-maps])
        low = next((i for i, s in enumerate(encoder_strides) if s >= 4), available)
        if low >= available - 1:
            raise SpecError(
                "deeplabv3plus needs a feature map above the deepest, at stride 4 or more; the "
                f"encoder has strides {list(encoder_strides)}."
            )
        self.low, self.maps = low, maps
        self.reads = (low, *range(-maps, 0))
        self.align_corners = align_corners
        read, joint = sum(encoder_channels[-maps:]), channels + low_channels
        if layout == "projection":
            self.aspp = ASPP(read, channels, rates, separable=True, dropout=dropout)
            self.bottleneck: nn.Module = _separable(channels, channels)
            self.convs = _separable(joint, channels)
            self.dropout: nn.Module = nn.Identity()  # it stands in the projection
        else:
            self.aspp = AtrousPooling(read, channels, rates, separable=True)
            self.bottleneck = ConvNormAct(self.aspp.out_channels, channels, 3)
            self.convs = nn.Sequential(
                SeparableConvNormAct(joint, channels), SeparableConvNormAct(channels, channels)
            )
            self.dropout = nn.Dropout2d(dropout)
        self.reduce = ConvNormAct(encoder_channels[low], low_channels)
        self.out_channels = channels
        initialize_decoder(self)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """Feature maps, shallow to deep -> (B, out_channels, h, w) at the shallow map's size."""
        low = self.reduce(features[self.low])
        deep = joined(features[-self.maps :], align_corners=self.align_corners)
        context = self.bottleneck(self.aspp(deep))
        context = resize(context, low, align_corners=self.align_corners)
        y: Tensor = self.dropout(self.convs(torch.cat([context, low], dim=1)))
        return y


def _separable(in_channels: int, channels: int) -> nn.Sequential:
    """A separable 3x3 convolution with one norm, at its end."""
    conv = SeparableConv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
