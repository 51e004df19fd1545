"""The encoder of the U-Net of 2015, behind timm's interface as far as `Encoder` needs it."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

from torch import Tensor, nn

from transferseg.spec import InputSpec

#: name -> channels of the first stage
PLAIN: dict[str, int] = {"plain": 32, "plain_32": 32, "plain_64": 64}
#: of the stages; an encoder with just these has the shape of the network of 2015
STRIDES = (1, 2, 4, 8, 16)


class PlainEncoder(nn.Module):
    """Five stages of two 3x3 convolutions, four poolings between them, twice the width after each.

    The convolutions are padded and followed by batch norm, as in the published U-Net for brain MRI,
    which is this encoder at width 32. The poolings round odd sizes up, so that no border is lost;
    on multiples of 16 that makes no difference.

    Args:
        width: channels of the first stage; those of the others are 2, 4, 8 and 16 times as many.
        in_channels: channels of the image.

    Attributes:
        channels: of the stages.

    Source: Ronneberger 2015 (its width is 64); Buda 2019, the brain-MRI network (32).

    Example:
        >>> import torch
        >>> features = PlainEncoder(8, in_channels=1)(torch.rand(2, 1, 32, 40))
        >>> [tuple(feature.shape[1:]) for feature in features]
        [(8, 32, 40), (16, 16, 20), (32, 8, 10), (64, 4, 5), (128, 2, 3)]
    """

    #: where timm's models say which convolution reads the image
    pretrained_cfg: ClassVar[dict[str, str]] = {"first_conv": "stages.0.conv1"}

    def __init__(self, width: int, *, in_channels: int = 3) -> None:
        super().__init__()
        self.channels = plain_channels(width)
        inputs = (in_channels, *self.channels[:-1])
        self.stages = nn.ModuleList(map(_stage, inputs, self.channels))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> a map a stage, (B, channels[i], H / 2**i, W / 2**i), up."""
        features: list[Tensor] = []
        x = image
        for stage in self.stages:
            x = stage(self.pool(x) if features else x)
            features.append(x)
        return features

    def forward_intermediates(
        self, x: Tensor, *, intermediates_only: bool = False
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps, as timm's models give them: alone, or after the deepest."""
        features = self(x)
        return features if intermediates_only else (features[-1], features)


def plain_channels(width: int) -> tuple[int, ...]:
    """Channels of the stages.

    Example:
        >>> plain_channels(32)
        (32, 64, 128, 256, 512)
    """
    return tuple(width * stride for stride in STRIDES)


def plain_input(channels: int) -> InputSpec:
    """Values in -1..1: there are no weights that expect anything else.

    Source: Khadka 2020, section 3.2.

    Example:
        >>> plain_input(1).mean, plain_input(1).std
        ((0.5,), (0.5,))
    """
    return InputSpec(channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)


def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, channels in ((1, in_channels), (2, out_channels)):
        layers[f"conv{index}"] = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        layers[f"norm{index}"] = nn.BatchNorm2d(out_channels)
        layers[f"relu{index}"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)
