"""The DeepLabV3 decoder in the projection layout, on segmentation-models-pytorch's ASPP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP
from torch import Tensor, nn

from transferseg.errors import SpecError
from transferseg.models.decoders.base import Decoder


class DeepLabV3Decoder(Decoder):
    """Atrous spatial pyramid pooling on the deepest feature map, a projection, a convolution.

    Args:
        encoder_channels: of the encoder's feature maps; the deepest is used.
        encoder_strides: their strides.
        channels: of every branch, the projection and the output.
        rates: of the atrous branches; None scales those of the paper to the stride: 12, 24, 36 at
            8, 6, 12, 18 at 16, 3, 6, 9 at 32.
        dropout: after the projection, 0 to 1.

    Raises:
        SpecError: no channels, no rates, or a dropout outside 0..1.

    Source: Chen 2017 (arXiv 1706.05587), section 3.3; layout of torchvision's and smp's head, whose
    decoders of the same weights give the same features (proved in the tests for smp).
    """

    output_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    head_kernel = 1

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        *,
        channels: int = 256,
        rates: Sequence[int] | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(encoder_channels, encoder_strides)
        stride = encoder_strides[-1]
        rates = [96 * k // stride for k in (1, 2, 3)] if rates is None else list(rates)
        if channels < 1 or not rates or min(rates) < 1 or not 0 <= dropout < 1:
            raise SpecError(
                "deeplabv3 needs channels from 1, at least one rate from 1 and a dropout from 0 to "
                f"below 1; got channels={channels}, rates={rates}, dropout={dropout}."
            )
        self.aspp = ASPP(encoder_channels[-1], channels, rates, separable=False, dropout=dropout)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.out_channels = channels
        initialize_decoder(self)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """Feature maps, shallow to deep -> (B, out_channels, h, w) at the deepest map's size."""
        x: Tensor = self.relu(self.bn(self.conv(self.aspp(features[-1]))))
        return x
