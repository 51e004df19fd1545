"""Encoder + decoder + head: an image in, logits of the same size out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_head
from torch import Tensor, nn

from transferseg.errors import SpecError
from transferseg.models.base import SpecModel
from transferseg.models.decoders import DECODERS, check_options, option_names
from transferseg.models.decoders.base import Decoder
from transferseg.models.encoders import Encoder
from transferseg.spec import ModelSpec


class Segmenter(SpecModel):
    """A segmentation network; build it with `create_model`.

    Args:
        spec: what to build.
        pretrained: of the encoder, as timm takes it.

    Attributes:
        spec: what it is apart from its weights.
        encoder: an `Encoder`.
        decoder: one of `DECODERS`.
        head: the convolution to the classes.

    Raises:
        SpecError: a combination that cannot work.

    Example:
        >>> import torch
        >>> spec = ModelSpec("unet", "resnet10t", ("background", "lung"))
        >>> tuple(Segmenter(spec)(torch.rand(2, 3, 50, 70)).shape)
        (2, 2, 50, 70)
    """

    kind: ClassVar[str] = "segmentation models"

    def __init__(
        self, spec: ModelSpec | Mapping[str, Any], *, pretrained: bool | str = False
    ) -> None:
        super().__init__(spec, pretrained=pretrained)
        check_options(self.spec.architecture, self.spec.decoder)
        build = DECODERS[self.spec.architecture]
        options = _options(self.spec, self.encoder)
        self.decoder = build(self.encoder.channels, self.encoder.strides, **options)
        self.encoder.freeze_unread(self.decoder.reads or range(len(self.encoder.channels)))
        self.head = conv_head(self.decoder, len(self.spec.classes))

    def _reads_pyramid(self) -> bool:
        return DECODERS[self.spec.architecture].reads is None

    @classmethod
    def builds(cls, architecture: str) -> bool:
        """Whether it is one of `DECODERS`."""
        return architecture in DECODERS

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W), normalised -> logits (B, classes, H, W); H and W from 32 up."""
        size = (image.shape[-2], image.shape[-1])
        logits: Tensor = self.head(self.decoder(self.encoder(image), size))
        if logits.shape[-2:] != image.shape[-2:]:
            corners = self.decoder.align_corners
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=corners)
        return logits

    def attention_maps(self, image: Tensor) -> list[Tensor]:
        """How much of each skip connection an Attention U-Net lets pass, position by position.

        Args:
            image: (B, C, H, W), normalised.

        Returns:
            One map a skip, shallow to deep, (B, 1, h, w) in 0..1, each of its skip's size.

        Raises:
            SpecError: an architecture without attention gates.
        """
        maps = getattr(self.decoder, "attention_maps", None)
        if maps is None:
            raise SpecError(
                f"{self.spec.architecture!r} has no attention gates; 'attention_unet' has."
            )
        size = (image.shape[-2], image.shape[-1])
        coefficients: list[Tensor] = maps(self.encoder(image), size)
        return coefficients

    def transfer_rows(self) -> tuple[str, ...]:
        """The head's weight and bias."""
        return ("head.weight", "head.bias")


def _options(spec: ModelSpec, encoder: Encoder) -> Mapping[str, Any]:
    """The decoder's options; what reads one map reads all of HRNet's parallel branches as one."""
    if encoder.parallel and "maps" in option_names(spec.architecture):
        return {"maps": len(encoder.channels), **spec.decoder}
    return spec.decoder


def conv_head(decoder: Decoder, channels: int) -> nn.Conv2d:
    """The last convolution, from the decoder's features to classes or image channels."""
    kernel = decoder.head_kernel
    head = nn.Conv2d(decoder.out_channels, channels, kernel, padding=kernel // 2)
    initialize_head(head)
    return head
