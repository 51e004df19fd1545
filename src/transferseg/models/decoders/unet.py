"""The U-Net decoder, on segmentation-models-pytorch's blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, TypeAlias, get_args

import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetCenterBlock, UnetDecoderBlock
from torch import Tensor, nn

from transferseg.errors import SpecError, unknown_name
from transferseg.models.decoders.base import Decoder
from transferseg.models.decoders.blocks import ConvNormAct
from transferseg.models.freezing import rest
from transferseg.models.plain import STRIDES as PLAIN_STRIDES
from transferseg.models.values import are_whole, is_share, is_whole
from transferseg.transfer import Adapter, ZeroSkipSlice

Upsampling: TypeAlias = Literal["nearest", "transposed", "bilinear"]
Rounding: TypeAlias = Literal["up", "down"]
#: of the blocks at strides 16, 8, 4, 2 and 1
USUAL_CHANNELS = (256, 128, 64, 32, 16)


class UNetDecoder(Decoder):
    """Upsample, concatenate the skip, two convolutions; once for every halving of the encoder.

    A skip connection is used at every stride at which the encoder has a feature map. With
    `skips=False` it is the decoder of an autoencoder: the same without the skip inputs.

    Over an encoder with the strides of 2015 (1, 2, 4, 8, 16: the plain ones) the defaults are that
    network's: its encoder mirrored, transposed convolutions, a head of 1x1.

    Args:
        encoder_channels: of the encoder's feature maps, shallow to deep.
        encoder_strides: their strides.
        channels: of the blocks, deep to shallow; one for each of strides 16, 8, 4, 2, 1 (from 8 on
            where the encoder ends at 16). None: 256, 128, 64, 32, 16; over a plain encoder that
            encoder's own.
        upsampling: "nearest", "transposed": a transposed convolution to the block's channels, 2x2
            with stride 2, or "bilinear" (MMSegmentation's): a bilinear resizing, then a 1x1
            convolution to them with norm and ReLU. None: "nearest"; over a plain encoder
            "transposed".
        skips: whether the blocks take skip connections.
        full_resolution_skip: whether a feature map at stride 1 (VGG has one) is a skip too; smp's
            U-Net leaves it out.
        center: two convolutions on the deepest map first, as smp has over VGG.
        rounding: "up" or "down": of an odd side, at strides where the encoder has no map that tells
            the size; "down" in smp.
        attention: "scse" for smp's squeeze-and-excitation of channels and positions in every block,
            on what comes in beside a skip and on what goes out.
        stride: of the deepest map that is read; None for the encoder's deepest. What the encoder
            has below it does not train, and is not computed where the encoder can stop there.
        num_convs: 3x3 convolutions after the last block, of its channels; MMSegmentation's FCN head
            over its U-Net has 1. With some the head is 1x1.
        dropout: of whole channels, before the head, 0 to below 1.

    Raises:
        SpecError: `channels` that do not fit, an unknown `upsampling`, `rounding` or `attention`, a
            stride that no map has, or a value out of range.

    Source: Ronneberger 2015, with padded convolutions and batch norm; layout and names of
    segmentation-models-pytorch, whose U-Net of the same weights gives the same logits (proved in
    the tests for ResNet; for VGG with `full_resolution_skip=False, center=True`). Over "plain" it
    is the U-Net for brain MRI (Buda 2019; Khadka's source), and with `upsampling="bilinear",
    num_convs=1, dropout=0.1` MMSegmentation's U-Net with its FCN head, proved likewise. Roy 2018
    (arXiv 1803.02579) for "scse".
    """

    output_strides: ClassVar[tuple[int, ...]] = (32, 16)

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        *,
        channels: Sequence[int] | None = None,
        upsampling: Upsampling | None = None,
        skips: bool = True,
        full_resolution_skip: bool = True,
        center: bool = False,
        rounding: Rounding = "up",
        attention: str | None = None,
        stride: int | None = None,
        num_convs: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(encoder_channels, encoder_strides)
        _check(rounding, attention, num_convs, dropout)
        self.rounding = rounding
        plain = tuple(encoder_strides) == PLAIN_STRIDES
        if stride is not None:
            self.reads = _down_to(stride, encoder_strides)
            encoder_channels = [encoder_channels[index] for index in self.reads]
            encoder_strides = [encoder_strides[index] for index in self.reads]
        self.strides = [2**power for power in reversed(range(encoder_strides[-1].bit_length() - 1))]
        mirrored = list(encoder_channels[-2::-1])
        usual = mirrored if plain else USUAL_CHANNELS[-len(self.strides) :]
        channels = _checked(usual if channels is None else channels, self.strides)
        self.upsampling = _upsampling(upsampling, plain)
        lowest = 1 if full_resolution_skip else 2
        self.deepest = len(encoder_strides) - 1
        #: stride -> index of the encoder's feature map that has it
        self.feature_of = {stride: index for index, stride in enumerate(encoder_strides)}
        self.skip_strides = [s for s in self.strides if s in self.feature_of and s >= lowest]
        deepest = encoder_channels[-1]
        self.center = UnetCenterBlock(deepest, deepest) if center else nn.Identity()
        #: what comes up from below, before and after the upsampling
        self.path_channels = [deepest, *channels[:-1]]
        self.in_channels = self.path_channels if self.upsampling == "nearest" else channels
        self.skip_channels = [
            encoder_channels[self.feature_of[s]] if s in self.skip_strides else 0
            for s in self.strides
        ]
        self.skips = skips
        self.ups = _ups(self.upsampling, self.path_channels, channels)
        self.blocks = nn.ModuleList(
            UnetDecoderBlock(main, skip if skips else 0, out, attention_type=attention)
            for main, skip, out in zip(self.in_channels, self.skip_channels, channels, strict=True)
        )
        for block, skip in zip(self.blocks, self.skip_channels, strict=True):
            if attention and not (skip and skips):  # smp's block asks it beside a skip alone
                rest(block.get_submodule("attention1"))
        self.out_channels = last = channels[-1]
        self.convs = nn.Sequential(*(ConvNormAct(last, last, 3) for _ in range(num_convs)))
        self.dropout = nn.Dropout2d(dropout)
        self.head_kernel = 1 if plain or num_convs else 3
        initialize_decoder(self)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Feature maps, shallow to deep, and the image's (H, W) -> (B, out_channels, H, W)."""
        x: Tensor = self.center(features[self.deepest])
        for index in range(len(self.blocks)):
            x = self.step(index, x, features, size)
        dropped: Tensor = self.dropout(self.convs(x))
        return dropped

    def step(
        self, index: int, x: Tensor, features: Sequence[Tensor], size: tuple[int, int]
    ) -> Tensor:
        """One block: what has come up so far -> the same at the next stride, the skip in it."""
        stride = self.strides[index]
        added = stride - 1 if self.rounding == "up" else 0
        height, width = ((side + added) // stride for side in size)
        skip = None
        if stride in self.skip_strides:
            feature = features[self.feature_of[stride]]
            # The encoder's own rounding (VGG rounds down), also where the skip is absent.
            height, width = feature.shape[-2:]
            skip = self.skip(stride, feature, x) if self.skips else None
        if self.upsampling == "bilinear":
            x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        if self.ups is not None:
            x = _fit(self.ups[index](x), height, width)
        raised: Tensor = self.blocks[index](x, height, width, skip_connection=skip)
        return raised

    def skip(self, stride: int, feature: Tensor, path: Tensor) -> Tensor:  # noqa: ARG002
        """What a block takes of the encoder's map at its stride, given what comes up: all of it."""
        return feature

    def segments(self) -> Sequence[nn.Module]:
        """Block by block: they grow with the image, and no two of them need be held at a time.

        A transposed convolution keeps nothing but what it is given, which the block before it
        gives: to compute it again would free nothing.
        """
        center = [] if isinstance(self.center, nn.Identity) else [self.center]
        raising = [] if self.ups is None or self.upsampling == "transposed" else [*self.ups]
        return [*center, *raising, *self.blocks, *self.convs]

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


def _check(rounding: str, attention: str | None, num_convs: int, dropout: float) -> None:
    if not is_whole(num_convs, 0) or not is_share(dropout):
        raise SpecError(
            "unet needs num_convs, a whole number from 0, and a dropout from 0 to below 1; "
            f"got num_convs={num_convs!r}, dropout={dropout!r}."
        )
    if rounding not in get_args(Rounding):
        raise SpecError(unknown_name("rounding", rounding, get_args(Rounding)))
    if attention not in (None, "scse"):
        raise SpecError(unknown_name("attention of 'unet'", str(attention), ["scse"]))


def _down_to(stride: int, strides: Sequence[int]) -> tuple[int, ...]:
    """Indices of the maps that are no smaller than at a stride."""
    if stride not in strides or not is_whole(stride, 2):
        raise SpecError(
            f"unet: no map has stride {stride!r} below the image's; the encoder's have "
            f"{list(strides)}."
        )
    return tuple(range(list(strides).index(stride) + 1))


def _upsampling(asked: Upsampling | None, plain: bool) -> Upsampling:
    if asked is None:
        return "transposed" if plain else "nearest"
    if asked not in get_args(Upsampling):
        raise SpecError(unknown_name("upsampling", asked, get_args(Upsampling)))
    return asked


def _checked(channels: Sequence[int], strides: Sequence[int]) -> list[int]:
    if not are_whole(channels) or len(channels) != len(strides):
        raise SpecError(
            f"channels must be {len(strides)} whole numbers from 1, one for each of the strides "
            f"{list(strides)}; got {channels!r}."
        )
    return list(channels)


def _ups(how: Upsampling, inputs: Sequence[int], outputs: Sequence[int]) -> nn.ModuleList | None:
    sides = zip(inputs, outputs, strict=True)
    if how == "nearest":
        return None
    if how == "bilinear":
        return nn.ModuleList(ConvNormAct(given, out) for given, out in sides)
    return nn.ModuleList(nn.ConvTranspose2d(given, out, 2, stride=2) for given, out in sides)


def _fit(x: Tensor, height: int, width: int) -> Tensor:
    """Cut to a size at the right and bottom; where it is larger (VGG rounds down), go on alike."""
    below, beside = max(height - x.shape[-2], 0), max(width - x.shape[-1], 0)
    if below or beside:
        x = F.pad(x, (0, beside, 0, below), mode="replicate")
    return x[..., :height, :width]
