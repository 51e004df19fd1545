"""The encoder mirrored by the U-Net decoder without skips: an image in, the image out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from transferseg.models.base import SpecModel
from transferseg.models.decoders import check_options
from transferseg.models.decoders.base import conv_head
from transferseg.models.decoders.unet import UNetDecoder
from transferseg.spec import ModelSpec


class Autoencoder(SpecModel):
    """An autoencoder whose decoder is a U-Net's with the skip inputs absent.

    A U-Net that takes its encoder and decoder computes the same decoder features until training
    opens the skips; build it with `create_autoencoder`.

    Args:
        spec: what to build; its classes are the names of the image channels.
        pretrained: of the encoder, as timm takes it.

    Source: Merand 2021, section 3.2 (the classifier's encoder, mirrored).

    Example:
        >>> import torch
        >>> spec = ModelSpec("autoencoder", "resnet10t", ("R", "G", "B"), mode="multilabel")
        >>> tuple(Autoencoder(spec)(torch.rand(2, 3, 64, 64)).shape)
        (2, 3, 64, 64)
    """

    kind: ClassVar[str] = "autoencoders"

    def __init__(
        self, spec: ModelSpec | Mapping[str, Any], *, pretrained: bool | str = False
    ) -> None:
        super().__init__(spec, pretrained=pretrained)
        check_options("unet", self.spec.decoder)
        options = {**self.spec.decoder, "skips": False}
        self.decoder = UNetDecoder(self.encoder.channels, self.encoder.strides, **options)
        self.encoder.freeze_unread([-1])
        self.head = conv_head(self.decoder, self.spec.input.channels)

    @classmethod
    def builds(cls, architecture: str) -> bool:
        """Whether it is "autoencoder"."""
        return architecture == "autoencoder"

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W), normalised -> its reconstruction, same shape and units."""
        size = (image.shape[-2], image.shape[-1])
        reconstruction: Tensor = self.head(self.decoder(self.encoder(image), size))
        return reconstruction

    def transfer_rows(self) -> tuple[str, ...]:
        """The head's weight and bias, one row an image channel."""
        return ("head.weight", "head.bias")
