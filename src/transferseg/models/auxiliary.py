"""The auxiliary head: an FCN head on an earlier feature map, for training alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from transferseg.errors import SpecError, unknown_name
from transferseg.models.decoders.base import conv_head
from transferseg.models.decoders.fcn import FCNDecoder
from transferseg.models.encoders import Encoder

OPTIONS = ("index", "channels", "num_convs", "kernel_size", "concat", "dropout")


class AuxiliaryHead(nn.Module):
    """An FCN head on the feature map before the deepest, whose logits count in the loss alone.

    By default it reads the map at index -2: of a ResNet `layer3`'s, of a plain ViT's own maps the
    third of four. HRNet's branches end side by side and are read as one, as the main head does.
    MMSegmentation's over ViT and DeiT is `{"index": -1, "channels": 256}`; that of its U-Net reads
    a map of the decoder, which this one cannot.

    Args:
        encoder: whose feature maps are read.
        classes: number of classes.
        align_corners: of the bilinear resizing that makes several maps one, as in the main head.
        options: "index": of the map, from the end where negative; "channels" (by default a quarter
            of what is read), "num_convs" (1), "kernel_size" (3), "concat" (False), "dropout" (0.1):
            see `FCNDecoder`.

    Attributes:
        reads: indices of the feature maps that it reads, from 0.
        decoder: the convolutions.
        head: the convolution to the classes.

    Raises:
        SpecError: an unknown option or a value out of range, or no such map: an encoder with one
            map has none before the deepest.

    Source: Zhao 2017 (arXiv 1612.01105), section 3.3; the layout is MMSegmentation's and
    torchvision's, which the tests prove.

    Example:
        >>> head = AuxiliaryHead(Encoder("resnet10t"), 2)
        >>> head.reads, head.decoder.out_channels, head.head.out_channels
        ((3,), 64, 2)
    """

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        options: Mapping[str, Any] | None = None,
        *,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        given = dict(options or {})
        for name in given:
            if name not in OPTIONS:
                raise SpecError(unknown_name("option of the auxiliary head", name, OPTIONS))
        if not isinstance(given.get("concat", False), bool):
            raise SpecError(
                f"concat of the auxiliary head must be true or false, got {given['concat']!r}."
            )
        self.reads = _reads(encoder, given.pop("index", None))
        channels = [encoder.channels[index] for index in self.reads]
        strides = [encoder.strides[index] for index in self.reads]
        layout: dict[str, Any] = {"num_convs": 1, "concat": False, **given}
        layout |= {"maps": len(channels), "align_corners": align_corners}
        try:
            self.decoder = FCNDecoder(channels, strides, **layout)
        except SpecError as error:
            raise SpecError(f"the auxiliary head: {error}") from None
        self.head = conv_head(self.decoder, classes)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """The encoder's maps and the image's (H, W) -> logits of the size of the map it reads."""
        logits: Tensor = self.head(self.decoder([features[index] for index in self.reads], size))
        return logits


def _reads(encoder: Encoder, index: object) -> tuple[int, ...]:
    maps = len(encoder.channels)
    if index is None and encoder.parallel:
        return tuple(range(maps))
    chosen = -2 if index is None else index
    if not isinstance(chosen, int) or isinstance(chosen, bool) or not -maps <= chosen < maps:
        raise SpecError(
            f"the auxiliary head would read the feature map at index {chosen!r}, but the encoder "
            f"has {maps} map(s); give auxiliary={{'index': ...}} from {-maps} to {maps - 1}, or, "
            "over a plain ViT, encoder_options={'layers': [...]} with several layers."
        )
    return (chosen % maps,)
