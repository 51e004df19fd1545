"""The DeepLabV3 decoder, in the layouts of torchvision and smp and of MMSegmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP
from torch import Tensor, nn

from transferseg.errors import SpecError, unknown_name
from transferseg.models.decoders.base import Decoder
from transferseg.models.decoders.blocks import AtrousPooling, check_common, joined
from transferseg.models.values import are_whole

#: layout -> its dropout unless another is given
LAYOUTS = {"projection": 0.5, "bottleneck": 0.1}


class DeepLabV3Decoder(Decoder):
    """Atrous spatial pyramid pooling on the deepest feature map, then a 3x3 convolution.

    Args:
        encoder_channels: of the encoder's feature maps.
        encoder_strides: their strides.
        channels: of every branch and of the output.
        rates: of the three atrous branches; None scales those of the paper to the stride: 12, 24,
            36 at 8, 6, 12, 18 at 16, 3, 6, 9 at 32.
        layout: "projection", torchvision's and smp's: the image's average last, a 1x1 convolution,
            dropout of single values, the 3x3; or "bottleneck", MMSegmentation's: the average first,
            the 3x3 over all branches, dropout of whole channels.
        dropout: 0 to below 1; None for 0.5 in the projection layout and 0.1 in the other.
        maps: how many of the deepest maps are read, as one (see `joined`): 1, or over HRNet its 4
            branches.
        align_corners: of every bilinear resizing, the logits' too; True in smp.

    Raises:
        SpecError: an unknown layout, or a value out of range.

    Source: Chen 2017 (arXiv 1706.05587), section 3.3. The networks of torchvision and smp, and in
    the other layout of MMSegmentation, give the same logits of the same weights (proved in the
    tests). The pooled branch has a batch norm too, so training needs two samples a batch.
    """

    output_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    head_kernel = 1
    reads: tuple[int, ...] = (-1,)

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        *,
        channels: int = 256,
        rates: Sequence[int] | None = None,
        layout: str = "projection",
        dropout: float | None = None,
        maps: int = 1,
        align_corners: bool = False,
    ) -> None:
        super().__init__(encoder_channels, encoder_strides)
        if layout not in tuple(LAYOUTS):
            raise SpecError(unknown_name("layout of 'deeplabv3'", layout, LAYOUTS))
        dropout = LAYOUTS[layout] if dropout is None else dropout
        available = len(encoder_channels)
        check_common(
            "deeplabv3", channels=channels, dropout=dropout, maps=maps, available=available
        )
        rates = atrous_rates("deeplabv3", rates, encoder_strides[-maps])
        read = sum(encoder_channels[-maps:])
        self.reads = tuple(range(-maps, 0))
        self.align_corners = align_corners
        if layout == "projection":
            self.aspp = ASPP(read, channels, rates, separable=False, dropout=dropout)
            width = channels
            self.dropout: nn.Module = nn.Identity()  # it stands in the projection
        else:
            self.aspp = AtrousPooling(read, channels, rates)
            width = self.aspp.out_channels
            self.dropout = nn.Dropout2d(dropout)
        self.conv = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.out_channels = channels
        initialize_decoder(self)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """Feature maps, shallow to deep -> (B, out_channels, h, w) at the size of the map read."""
        read = [features[index] for index in self.reads]
        x = joined(read, align_corners=self.align_corners)
        y: Tensor = self.dropout(self.relu(self.bn(self.conv(self.aspp(x)))))
        return y


def atrous_rates(architecture: str, rates: Sequence[int] | None, stride: int) -> list[int]:
    """The rates that were given, or those of the paper scaled to the stride.

    Raises:
        SpecError: no list, not three of them, or one below 1.

    Example:
        >>> atrous_rates("deeplabv3", None, 16)
        [6, 12, 18]
    """
    chosen = [96 * k // stride for k in (1, 2, 3)] if rates is None else rates
    if not are_whole(chosen) or len(chosen) != 3:
        raise SpecError(
            f"{architecture} needs three rates from 1, a list of whole numbers; got {chosen!r}."
        )
    return list(chosen)
