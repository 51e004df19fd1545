"""The PSP decoder: pyramid pooling on the deepest feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from segmentation_models_pytorch.base.initialization import initialize_decoder
from torch import Tensor, nn

from transferseg.models.decoders.base import Decoder
from transferseg.models.decoders.blocks import (
    PyramidPooling,
    check_common,
    check_pools,
    joined,
)


class PSPDecoder(Decoder):
    """The deepest feature map beside its averages over grids, then a 3x3 convolution.

    Args:
        encoder_channels: of the encoder's feature maps.
        encoder_strides: their strides.
        channels: of every pooled branch and of the output; None for a quarter of what is read.
        pools: sides of the grids.
        dropout: of whole channels, before the head, 0 to below 1.
        maps: how many of the deepest maps are read, as one (see `joined`): 1, or over HRNet its 4
            branches.
        align_corners: of every bilinear resizing, the logits' too; True in MMSegmentation's
            networks for 769x769 crops.

    Raises:
        SpecError: a value out of range.

    Source: Zhao 2017 (arXiv 1612.01105); layout of MMSegmentation, whose networks of the same
    weights give the same logits (proved in the tests). The branch of the 1x1 grid has a batch norm
    too, so training needs two samples a batch.
    """

    output_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    head_kernel = 1
    reads: tuple[int, ...] = (-1,)

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        *,
        channels: int | None = None,
        pools: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        maps: int = 1,
        align_corners: bool = False,
    ) -> None:
        super().__init__(encoder_channels, encoder_strides)
        check_common(
            "psp", channels=channels, dropout=dropout, maps=maps, available=len(encoder_channels)
        )
        read = sum(encoder_channels[-maps:])
        channels = max(1, read // 4) if channels is None else channels
        check_pools("psp", pools)
        self.reads = tuple(range(-maps, 0))
        self.align_corners = align_corners
        self.pooling = PyramidPooling(read, channels, pools, align_corners=align_corners)
        self.dropout = nn.Dropout2d(dropout)
        self.out_channels = channels
        initialize_decoder(self)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """Feature maps, shallow to deep -> (B, out_channels, h, w) at the size of the map read."""
        read = [features[index] for index in self.reads]
        x = joined(read, align_corners=self.align_corners)
        y: Tensor = self.dropout(self.pooling(x))
        return y
