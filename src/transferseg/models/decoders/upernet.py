"""The UPerNet decoder: a feature pyramid network whose top is pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from torch import Tensor, nn

from transferseg.errors import SpecError
from transferseg.models.decoders.base import Decoder
from transferseg.models.decoders.blocks import (
    ConvNormAct,
    PyramidPooling,
    check_common,
    check_pools,
    resize,
)

LEVELS = 4


class UPerNetDecoder(Decoder):
    """The four deepest feature maps, from the pooled deepest one down, concatenated at the first.

    Args:
        encoder_channels: of the encoder's feature maps, four or more; usually the deepest four have
            strides 4, 8, 16 and 32.
        encoder_strides: their strides.
        channels: of every convolution and of the output.
        pools: sides of the grids of the pyramid pooling.
        dropout: of whole channels, before the head, 0 to below 1.
        align_corners: of every bilinear resizing, the logits' too.

    Raises:
        SpecError: a value out of range, or an encoder with fewer than four feature maps.

    Source: Xiao 2018 (arXiv 1807.10221), section 3.1; layout of MMSegmentation, whose networks of
    the same weights give the same logits (proved in the tests). The branch of the 1x1 grid has a
    batch norm too, so training needs two samples a batch.
    """

    output_strides: ClassVar[tuple[int, ...]] = (32, 16, 8)
    head_kernel = 1

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        *,
        channels: int = 512,
        pools: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        align_corners: bool = False,
    ) -> None:
        super().__init__(encoder_channels, encoder_strides)
        if len(encoder_channels) < LEVELS:
            raise SpecError(
                f"upernet reads {LEVELS} feature maps, but the encoder has "
                f"{len(encoder_channels)}, at strides {list(encoder_strides)}."
            )
        check_common("upernet", channels=channels, dropout=dropout, maps=LEVELS, available=LEVELS)
        check_pools("upernet", pools)
        self.reads = tuple(range(-LEVELS, 0))
        self.align_corners = align_corners
        *lower, top = encoder_channels[-LEVELS:]
        self.pooling = PyramidPooling(top, channels, pools, align_corners=align_corners)
        self.laterals = nn.ModuleList(ConvNormAct(width, channels) for width in lower)
        self.convs = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in lower)
        self.bottleneck = ConvNormAct(LEVELS * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.out_channels = channels
        initialize_decoder(self)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """Feature maps, shallow to deep -> (B, out_channels, h, w) at the size of the fourth."""
        *lower, top = features[-LEVELS:]
        x: Tensor = self.pooling(top)
        levels = [x]
        for index in reversed(range(LEVELS - 1)):
            side = self.laterals[index](lower[index])
            x = side + resize(x, side, align_corners=self.align_corners)
            # The sum goes on down as it is; its convolution is for the concatenation alone.
            levels.append(self.convs[index](x))
        first, *deeper = reversed(levels)
        resized = [resize(level, first, align_corners=self.align_corners) for level in deeper]
        y: Tensor = self.dropout(self.bottleneck(torch.cat([first, *resized], dim=1)))
        return y
