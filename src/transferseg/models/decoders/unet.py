"""The U-Net decoder, on segmentation-models-pytorch's blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import ClassVar

from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetCenterBlock, UnetDecoderBlock
from torch import Tensor, nn

from transferseg.errors import SpecError
from transferseg.models.decoders.base import Decoder
from transferseg.transfer import Adapter, ZeroSkipSlice


class UNetDecoder(Decoder):
    """Upsample, concatenate the skip, two convolutions; once for every halving of the encoder.

    A skip connection is used at every stride at which the encoder has a feature map. With
    `skips=False` it is the decoder of an autoencoder: the same without the skip inputs.

    Args:
        encoder_channels: of the encoder's feature maps, shallow to deep.
        encoder_strides: their strides.
        channels: of the blocks, deep to shallow; one for each of strides 16, 8, 4, 2, 1.
        skips: whether the blocks take skip connections.
        full_resolution_skip: whether a feature map at stride 1 (VGG has one) is a skip too; smp's
            U-Net leaves it out.
        center: two convolutions on the deepest map first, as smp has over VGG.

    Raises:
        SpecError: `channels` that do not fit, or an encoder without a pyramid.

    Source: Ronneberger 2015, with padded convolutions and batch norm; layout and names of
    segmentation-models-pytorch, whose U-Net of the same weights gives the same logits (proved in
    the tests for ResNet; for VGG with `full_resolution_skip=False, center=True`).
    """

    output_strides: ClassVar[tuple[int, ...]] = (32,)
    head_kernel: ClassVar[int] = 3

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        *,
        channels: Sequence[int] = (256, 128, 64, 32, 16),
        skips: bool = True,
        full_resolution_skip: bool = True,
        center: bool = False,
    ) -> None:
        super().__init__(encoder_channels, encoder_strides)
        self.strides = [2**power for power in reversed(range(encoder_strides[-1].bit_length() - 1))]
        if len(channels) != len(self.strides) or min(channels) < 1:
            raise SpecError(
                f"channels must be {len(self.strides)} numbers from 1, one for each of the strides "
                f"{self.strides}; got {list(channels)}."
            )
        lowest = 1 if full_resolution_skip else 2
        #: stride -> index of the encoder's feature map that has it
        self.feature_of = {stride: index for index, stride in enumerate(encoder_strides)}
        self.skip_strides = [s for s in self.strides if s in self.feature_of and s >= lowest]
        deepest = encoder_channels[-1]
        self.center = UnetCenterBlock(deepest, deepest) if center else nn.Identity()
        self.in_channels = [deepest, *channels[:-1]]
        self.skip_channels = [
            encoder_channels[self.feature_of[s]] if s in self.skip_strides else 0
            for s in self.strides
        ]
        self.skips = skips
        self.blocks = nn.ModuleList(
            UnetDecoderBlock(main, skip if skips else 0, out)
            for main, skip, out in zip(self.in_channels, self.skip_channels, channels, strict=True)
        )
        self.out_channels = channels[-1]
        initialize_decoder(self)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Feature maps, shallow to deep, and the image's (H, W) -> (B, out_channels, H, W)."""
        x: Tensor = self.center(features[-1])
        for stride, block in zip(self.strides, self.blocks, strict=True):
            height, width = ceil(size[0] / stride), ceil(size[1] / stride)
            skip = None
            if stride in self.skip_strides:
                feature = features[self.feature_of[stride]]
                # The encoder's own rounding (VGG rounds down), also where the skip is absent.
                height, width = feature.shape[-2:]
                skip = feature if self.skips else None
            x = block(x, height, width, skip_connection=skip)
        return x

    def transfer_adapters(self) -> Mapping[str, Adapter]:
        """An autoencoder's decoder fits with the skip slices at 0: the same function."""
        if not self.skips:
            return {}
        return {
            f"blocks.{index}.conv1.0.weight": ZeroSkipSlice(main)
            for index, (main, skip) in enumerate(
                zip(self.in_channels, self.skip_channels, strict=True)
            )
            if skip
        }
