"""Encoder + average pooling + one linear layer: an image in, one score a class out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from transferseg.errors import SpecError
from transferseg.models.base import SpecModel
from transferseg.spec import ModelSpec


class Classifier(SpecModel):
    """An image classifier over the same encoders; build it with `create_classifier`.

    The head is global average pooling, dropout and one linear layer for every encoder: VGG's fully
    connected layers are left out, since no segmentation model could take them.

    Args:
        spec: what to build; its decoder options may hold `dropout`.
        pretrained: of the encoder, as timm takes it.

    Example:
        >>> import torch
        >>> spec = ModelSpec("classifier", "resnet10t", ("edema", "fracture"), mode="multilabel")
        >>> tuple(Classifier(spec)(torch.rand(2, 3, 64, 64)).shape)
        (2, 2)
    """

    kind: ClassVar[str] = "classifiers"

    def __init__(
        self, spec: ModelSpec | Mapping[str, Any], *, pretrained: bool | str = False
    ) -> None:
        super().__init__(spec, pretrained=pretrained)
        dropout = self.spec.decoder.get("dropout", 0.0)
        if set(self.spec.decoder) - {"dropout"} or not 0 <= dropout < 1:
            raise SpecError(
                "a classifier has one option, dropout, from 0 to below 1; "
                f"got {dict(self.spec.decoder)}."
            )
        self.dropout = nn.Dropout(dropout)
        # HRNet's branches end side by side: all are pooled, so that no parameter is dead.
        self.maps = len(self.encoder.channels) if self.encoder.parallel else 1
        self.encoder.freeze_unread(range(-self.maps, 0))
        self.head = nn.Linear(sum(self.encoder.channels[-self.maps :]), len(self.spec.classes))

    def _reads_pyramid(self) -> bool:
        return False

    @classmethod
    def builds(cls, architecture: str) -> bool:
        """Whether it is "classifier"."""
        return architecture == "classifier"

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W), normalised -> logits (B, classes)."""
        read = self.encoder(image)[-self.maps :]
        pooled = torch.cat([feature.mean(dim=(2, 3)) for feature in read], dim=1)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits

    def transfer_rows(self) -> tuple[str, ...]:
        """The head's weight and bias."""
        return ("head.weight", "head.bias")
