"""The PSP decoder of segmentation-models-pytorch, whose layout is its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPModule
from torch import Tensor, nn

from transferseg.errors import SpecError
from transferseg.models.decoders.base import Decoder
from transferseg.models.decoders.blocks import check_common, with_grid_pools


class SmpPSPDecoder(Decoder):
    """One feature map beside its averages over grids of 1, 2, 3 and 6, then a 1x1 convolution.

    The pooled branches come first, each a quarter as wide as the map; that of the 1x1 grid has a
    bias and no batch norm, so that one sample a batch is enough. The head is 3x3. Every bilinear
    resizing has aligned corners.

    Args:
        encoder_channels: of the encoder's feature maps.
        encoder_strides: their strides.
        channels: of the output.
        stride: of the map that is read, as the encoder has it without dilation; None for the
            deepest. What the encoder has below it is neither computed nor trained.
        dropout: of whole channels, before the head, 0 to below 1.

    Raises:
        SpecError: a value out of range, a stride that no map has, or a map whose channels are no
            multiple of four.

    Source: Zhao 2017 (arXiv 1612.01105); layout and names of segmentation-models-pytorch, whose
    PSPNet of the same weights gives the same logits (proved in the tests). There `stride` is 8: its
    encoder ends at the third of five maps.
    """

    output_strides: ClassVar[tuple[int, ...]] = (32, 16, 8)
    head_kernel = 3
    reads: tuple[int, ...] = (-1,)
    align_corners = True

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        *,
        channels: int = 512,
        stride: int | None = None,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(encoder_channels, encoder_strides)
        check_common("psp_smp", channels=channels, dropout=dropout, maps=1, available=1)
        strides = list(encoder_strides)
        if stride is not None and stride not in strides:
            raise SpecError(f"psp_smp: no map has stride {stride!r}; the encoder's have {strides}.")
        index = len(strides) - 1 if stride is None else strides.index(stride)
        read = encoder_channels[index]
        if read % 4:
            raise SpecError(f"psp_smp reads a multiple of 4 channels; the map has {read}.")
        self.reads = (index,)
        self.psp = with_grid_pools(PSPModule(read))
        self.conv = Conv2dReLU(2 * read, channels, kernel_size=1)
        self.dropout = nn.Dropout2d(dropout)
        self.out_channels = channels
        initialize_decoder(self)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """Feature maps, shallow to deep -> (B, out_channels, h, w) at the size of the map read."""
        y: Tensor = self.dropout(self.conv(self.psp(features[self.reads[0]])))
        return y
