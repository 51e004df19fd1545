"""Pyramids for plain ViTs: maps at one stride in, maps at strides 4, 8, 16 and 32 out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import log2
from typing import ClassVar

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)


class Pyramid(nn.Module, ABC):
    """Four maps at strides 4, 8, 16 and 32 from a plain ViT's (abstract).

    Args:
        width: channels of the ViT's maps.
        channels: of every map that it gives.
        maps: how many of the ViT's maps it is given: four, one a level, or one for all levels.
        patch: stride of the ViT's maps. Where it is no power of two (14), the maps are resampled
            bilinearly to the nearest one (16) first.

    Attributes:
        default_maps: how many maps it reads where nobody says.
    """

    default_maps: ClassVar[int]

    def __init__(self, width: int, channels: int, *, maps: int, patch: int) -> None:  # noqa: ARG002
        super().__init__()
        self.patch = patch
        self.stride = int(2 ** round(log2(patch)))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The ViT's maps (B, width, h, w) -> maps (B, channels, h * patch / stride, ...)."""
        if self.patch != self.stride:
            features = [self._resampled(feature) for feature in features]
        if len(features) == 1:
            features = [features[0]] * len(STRIDES)
        return self.levels_of(features)

    @abstractmethod
    def levels_of(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Four maps at `stride` -> the four levels."""

    @abstractmethod
    def only_for(self, level: int) -> list[nn.Module]:
        """The modules that no other level needs."""

    @staticmethod
    def default_channels(width: int) -> int:
        """Channels of the maps where nobody says, as published; the ViT's unless overridden."""
        return width

    def _resampled(self, feature: Tensor) -> Tensor:
        # One more token at the border, its copy, so that the last part of a cell is kept.
        padded = F.pad(feature, (0, 1, 0, 1), mode="replicate")
        factor = self.patch / self.stride
        return F.interpolate(padded, scale_factor=factor, mode="bilinear", align_corners=False)


class MultiLevelPyramid(Pyramid):
    """A 1x1 convolution, a bilinear resize and a 3x3 convolution a level; no norm, no activation.

    Args:
        width: channels of the ViT's maps.
        channels: of every map that it gives.
        maps: four, one a level, or one for all levels.
        patch: stride of the ViT's maps.

    Source: MMSegmentation's MultiLevelNeck, with whose weights it computes the same.

    Example:
        >>> import torch
        >>> pyramid = MultiLevelPyramid(8, 4, maps=4, patch=16)
        >>> [tuple(x.shape) for x in pyramid([torch.rand(1, 8, 2, 4)] * 4)][::3]
        [(1, 4, 8, 16), (1, 4, 1, 2)]
    """

    default_maps: ClassVar[int] = 4

    def __init__(self, width: int, channels: int, *, maps: int, patch: int) -> None:
        super().__init__(width, channels, maps=maps, patch=patch)
        self.scales = [self.stride / stride for stride in STRIDES]
        self.lateral_convs = nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in range(maps))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in STRIDES)
        for conv in (*self.lateral_convs, *self.convs):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def levels_of(self, features: Sequence[Tensor]) -> list[Tensor]:
        """See the class."""
        laterals = list(self.lateral_convs) * (len(STRIDES) // len(self.lateral_convs))
        levels = []
        for feature, lateral, scale, conv in zip(
            features, laterals, self.scales, self.convs, strict=True
        ):
            x = lateral(feature)
            if scale != 1:
                x = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
            levels.append(conv(x))
        return levels

    def only_for(self, level: int) -> list[nn.Module]:
        """Its 3x3 convolution, and its 1x1 where every level has one."""
        own = [self.lateral_convs[level]] if len(self.lateral_convs) > 1 else []
        return [self.convs[level], *own]


class SimplePyramid(Pyramid):
    """Transposed convolutions up and a pooling down, then 1x1 and 3x3 convolutions with LayerNorm.

    Args:
        width: channels of the ViT's maps.
        channels: of every map that it gives.
        maps: one for all levels, as in the paper, or four, one a level.
        patch: stride of the ViT's maps.

    Source: Li 2022 (arXiv 2203.16527), section 3: the simple feature pyramid of ViTDet.

    Example:
        >>> import torch
        >>> pyramid = SimplePyramid(8, 4, maps=1, patch=16)
        >>> [tuple(x.shape) for x in pyramid([torch.rand(1, 8, 2, 4)])][::3]
        [(1, 4, 8, 16), (1, 4, 1, 2)]
    """

    default_maps: ClassVar[int] = 1

    def __init__(self, width: int, channels: int, *, maps: int, patch: int) -> None:
        super().__init__(width, channels, maps=maps, patch=patch)
        self.levels = nn.ModuleList(self._level(width, channels, stride) for stride in STRIDES)

    @staticmethod
    def default_channels(width: int) -> int:  # noqa: ARG004 - the paper's, whatever the ViT's
        """256."""
        return 256

    def levels_of(self, features: Sequence[Tensor]) -> list[Tensor]:
        """See the class."""
        return [level(x) for level, x in zip(self.levels, features, strict=True)]

    def only_for(self, level: int) -> list[nn.Module]:
        """The whole level."""
        return [self.levels[level]]

    def _level(self, width: int, channels: int, stride: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        doublings = int(log2(self.stride / stride))
        for step in range(doublings):
            if step:
                layers += [LayerNorm2d(width), nn.GELU()]
            layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
            width //= 2
        if doublings < 0:
            layers.append(nn.MaxPool2d(2**-doublings))
        layers += [
            nn.Conv2d(width, channels, 1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            LayerNorm2d(channels),
        ]
        return nn.Sequential(*layers)


#: encoder option "pyramid" -> class; "none", which has none, leaves the maps as they are
PYRAMIDS: dict[str, type[Pyramid]] = {
    "simple": SimplePyramid,
    "multilevel": MultiLevelPyramid,
}
DEFAULT_PYRAMID = "simple"
