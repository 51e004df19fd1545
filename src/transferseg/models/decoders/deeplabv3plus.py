"""The DeepLabV3+ decoder: separable atrous pooling, joined with a shallow feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from torch import Tensor, nn

from transferseg.errors import SpecError
from transferseg.models.decoders.base import Decoder
from transferseg.models.decoders.blocks import (
    AtrousPooling,
    ConvNormAct,
    SeparableConvNormAct,
    check_common,
    joined,
    resize,
)
from transferseg.models.decoders.deeplabv3 import atrous_rates


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
        dropout: of whole channels, before the head, 0 to below 1.
        maps: how many of the deepest maps the atrous pooling reads, as one (see `joined`): 1, or
            over HRNet its 4 branches.
        align_corners: of every bilinear resizing, the logits' too; True in MMSegmentation's
            networks for 769x769 crops.

    Raises:
        SpecError: a value out of range, or an encoder without a shallow map.

    Source: Chen 2018 (arXiv 1802.02611); layout of MMSegmentation, whose networks of the same
    weights give the same logits (proved in the tests). The pooled branch has a batch norm too, so
    training needs two samples a batch.
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
        dropout: float = 0.1,
        maps: int = 1,
        align_corners: bool = False,
    ) -> None:
        super().__init__(encoder_channels, encoder_strides)
        available = len(encoder_channels)
        check_common(
            "deeplabv3plus",
            channels=min(channels, low_channels),
            dropout=dropout,
            maps=maps,
            available=available,
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
        self.aspp = AtrousPooling(sum(encoder_channels[-maps:]), channels, rates, separable=True)
        self.bottleneck = ConvNormAct(self.aspp.out_channels, channels, 3)
        self.reduce = ConvNormAct(encoder_channels[low], low_channels)
        self.convs = nn.Sequential(
            SeparableConvNormAct(channels + low_channels, channels),
            SeparableConvNormAct(channels, channels),
        )
        self.dropout = nn.Dropout2d(dropout)
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
