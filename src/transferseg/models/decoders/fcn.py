"""The FCN decoder: plain convolutions on the deepest feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from torch import Tensor, nn

from transferseg.errors import SpecError
from transferseg.models.decoders.base import Decoder
from transferseg.models.decoders.blocks import ConvNormAct, check_common, joined
from transferseg.models.values import is_whole


class FCNDecoder(Decoder):
    """Convolutions on the deepest feature map, beside which the map itself is read once more.

    Args:
        encoder_channels: of the encoder's feature maps.
        encoder_strides: their strides.
        channels: of every convolution; None for a quarter of what is read.
        num_convs: how many convolutions, 1 or more.
        kernel_size: of all of them, odd.
        concat: whether one more convolution reads the map and the others' output together.
        dropout: of whole channels, before the head, 0 to below 1.
        maps: how many of the deepest maps are read, as one (see `joined`): 1, or over HRNet its 4
            branches.
        align_corners: of every bilinear resizing, the logits' too.

    Raises:
        SpecError: a value out of range.

    Source: Long 2015 (arXiv 1411.4038) without its skips, on a dilated encoder. The defaults are
    MMSegmentation's head; `num_convs=1, concat=False` is torchvision's (the tests prove both);
    `maps=4, num_convs=1, kernel_size=1, concat=False, dropout=0.0` with as many channels as the
    branches have together is MMSegmentation's over HRNet.
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
        num_convs: int = 2,
        kernel_size: int = 3,
        concat: bool = True,
        dropout: float = 0.1,
        maps: int = 1,
        align_corners: bool = False,
    ) -> None:
        super().__init__(encoder_channels, encoder_strides)
        check_common(
            "fcn", channels=channels, dropout=dropout, maps=maps, available=len(encoder_channels)
        )
        read = sum(encoder_channels[-maps:])
        channels = max(1, read // 4) if channels is None else channels
        if not is_whole(num_convs) or not is_whole(kernel_size) or kernel_size % 2 == 0:
            raise SpecError(
                "fcn needs num_convs from 1 and an odd kernel_size, whole numbers; "
                f"got num_convs={num_convs!r}, kernel_size={kernel_size!r}."
            )
        self.reads = tuple(range(-maps, 0))
        self.align_corners = align_corners
        widths = [read, *[channels] * num_convs]
        self.convs = nn.Sequential(
            *(ConvNormAct(before, channels, kernel_size) for before in widths[:-1])
        )
        self.concat = ConvNormAct(read + channels, channels, kernel_size) if concat else None
        self.dropout = nn.Dropout2d(dropout)
        self.out_channels = channels
        initialize_decoder(self)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """Feature maps, shallow to deep -> (B, out_channels, h, w) at the size of the map read."""
        read = [features[index] for index in self.reads]
        x = joined(read, align_corners=self.align_corners)
        y = self.convs(x)
        if self.concat is not None:
            y = self.concat(torch.cat([x, y], dim=1))
        dropped: Tensor = self.dropout(y)
        return dropped
