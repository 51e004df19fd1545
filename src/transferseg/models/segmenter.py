"""Encoder + decoder + head: an image in, logits of the same size out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from transferseg.errors import SpecError
from transferseg.models.auxiliary import AuxiliaryHead
from transferseg.models.base import SpecModel
from transferseg.models.decoders import DECODERS, check_options, option_names
from transferseg.models.decoders.base import conv_head
from transferseg.models.depth import encoder_stages
from transferseg.models.encoders import Encoder
from transferseg.models.freezing import UNREAD
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
        auxiliary_head: an `AuxiliaryHead`, or None where the spec asks for none.

    Raises:
        SpecError: a combination that cannot work.

    Example:
        >>> import torch
        >>> spec = ModelSpec("unet", "resnet10t", ("background", "lung"))
        >>> tuple(Segmenter(spec)(torch.rand(2, 3, 50, 70)).shape)
        (2, 2, 50, 70)
    """

    kind: ClassVar[str] = "segmentation models"
    takes_auxiliary: ClassVar[bool] = True

    def __init__(
        self, spec: ModelSpec | Mapping[str, Any], *, pretrained: bool | str = False
    ) -> None:
        super().__init__(spec, pretrained=pretrained)
        check_options(self.spec.architecture, self.spec.decoder)
        build = DECODERS[self.spec.architecture]
        options = _options(self.spec, self.encoder)
        self.decoder = build(self.encoder.channels, self.encoder.strides, **options)
        self.head = conv_head(self.decoder, len(self.spec.classes))
        self.auxiliary_head = _auxiliary_head(
            self.spec, self.encoder, align_corners=self.decoder.align_corners
        )
        read = self.decoder.reads or tuple(range(len(self.encoder.channels)))
        also = () if self.auxiliary_head is None else self.auxiliary_head.reads
        self.encoder.freeze_unread((*read, *also))
        deepest = max(index % len(self.encoder.channels) for index in (*read, *also))
        self.until = None if deepest == len(self.encoder.channels) - 1 else deepest
        if self.until is not None:
            self._rest_below(self.until)

    def _rest_below(self, deepest: int) -> None:
        """Stop the gradient of what serves only maps deeper than any that is read."""
        for name in (name for stage in encoder_stages(self)[deepest + 1 :] for name in stage):
            self.get_parameter(name).requires_grad_(False)
            vars(self.get_submodule(name.rpartition(".")[0]))[UNREAD] = True

    def _reads_pyramid(self) -> bool:
        return DECODERS[self.spec.architecture].reads is None

    @classmethod
    def builds(cls, architecture: str) -> bool:
        """Whether it is one of `DECODERS`."""
        return architecture in DECODERS

    def forward(self, image: Tensor, *, auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, H, W), normalised -> logits (B, classes, H, W); H and W from 32 up.

        Args:
            image: the images.
            auxiliary: give the auxiliary head's logits too, of the same shape, as a second tensor:
                what training asks for. It is an argument of `forward`, so that a wrapper for
                several processes exchanges the gradients of both heads.

        Raises:
            SpecError: `auxiliary` of a model without an auxiliary head.
        """
        size = (image.shape[-2], image.shape[-1])
        features = self.encoder(image, until=self.until)
        logits = self._resized(self.head(self.decoder(features, size)), size)
        if not auxiliary:
            return logits
        if self.auxiliary_head is None:
            raise SpecError("this model has no auxiliary head; build it with auxiliary=True.")
        return logits, self._resized(self.auxiliary_head(features, size), size)

    def _resized(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        if logits.shape[-2:] == size:
            return logits
        corners = self.decoder.align_corners
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=corners)

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
        """The weights and biases of the heads."""
        heads = ("head",) if self.auxiliary_head is None else ("head", "auxiliary_head.head")
        return tuple(f"{head}.{name}" for head in heads for name in ("weight", "bias"))


def _options(spec: ModelSpec, encoder: Encoder) -> Mapping[str, Any]:
    """The decoder's options; what reads one map reads all of HRNet's parallel branches as one."""
    if encoder.parallel and "maps" in option_names(spec.architecture):
        return {"maps": len(encoder.channels), **spec.decoder}
    return spec.decoder


def _auxiliary_head(
    spec: ModelSpec, encoder: Encoder, *, align_corners: bool
) -> AuxiliaryHead | None:
    if not spec.auxiliary:
        return None
    options = spec.auxiliary if isinstance(spec.auxiliary, Mapping) else {}
    return AuxiliaryHead(encoder, len(spec.classes), options, align_corners=align_corners)
