"""The UPerNet decoder of segmentation-models-pytorch, whose layout is its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder as SmpDecoder
from torch import Tensor

from transferseg.errors import SpecError
from transferseg.models.decoders.base import Decoder
from transferseg.models.decoders.blocks import check_common, with_grid_pools
from transferseg.models.decoders.upernet import LEVELS


class SmpUPerNetDecoder(Decoder):
    """A layer norm on each of the four deepest feature maps, then UPerNet without dropout.

    The resizings in it have no aligned corners, that of the logits has.

    Args:
        encoder_channels: of the encoder's feature maps, four or more.
        encoder_strides: their strides.
        channels: of every convolution and of the output.

    Raises:
        SpecError: a value out of range, or an encoder with fewer than four feature maps.

    Source: Xiao 2018 (arXiv 1807.10221); its decoder is segmentation-models-pytorch's own, whose
    UPerNet of the same weights gives the same logits (proved in the tests). The branch of the 1x1
    grid has a batch norm too, so training needs two samples a batch.
    """

    output_strides: ClassVar[tuple[int, ...]] = (32, 16, 8)
    head_kernel = 1
    align_corners = True

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        *,
        channels: int = 256,
    ) -> None:
        super().__init__(encoder_channels, encoder_strides)
        maps = len(encoder_channels)
        if maps < LEVELS:
            raise SpecError(
                f"upernet_smp reads {LEVELS} feature maps, but the encoder has {maps}, at strides "
                f"{list(encoder_strides)}."
            )
        check_common("upernet_smp", channels=channels, dropout=0, maps=LEVELS, available=LEVELS)
        self.reads = tuple(range(-LEVELS, 0))
        # smp counts the image and a map at stride 2 first, and reads neither.
        body = SmpDecoder([0, 0, *encoder_channels[-LEVELS:]], LEVELS + 1, channels)
        self.body = with_grid_pools(body)
        self.out_channels = channels
        initialize_decoder(self)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """Feature maps, shallow to deep -> (B, out_channels, h, w) at the size of the fourth."""
        given = list(features[-LEVELS:])
        y: Tensor = self.body([given[0], given[0], *given])
        return y
