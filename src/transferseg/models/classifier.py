"""Encoder + average pooling + one linear layer: an image in, one score a class out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transferseg.errors import SpecError, unknown_name
from transferseg.models.base import SpecModel
from transferseg.models.values import is_share, is_whole
from transferseg.models.whole import WholeModel
from transferseg.spec import ModelSpec

#: The heads that a classifier can have.
HEADS = ("linear", "vgg", "timm")


class Classifier(SpecModel):
    """An image classifier over the same encoders; build it with `create_classifier`.

    The head is global average pooling, dropout and one linear layer for every encoder: VGG's fully
    connected layers are left out, since no segmentation model could take them. A classifier that
    `load_checkpoint` builds has the head that its file holds.

    Args:
        spec: what to build. Its decoder options may hold `dropout`, and `head`: "linear" (the
            default), "vgg" (torchvision's VGG: pooled to 7 x 7, three linear layers, the first two
            `head_width` wide, 4096 by default) or "timm" (timm's own model, head and all; see
            `WholeModel`).
        pretrained: of the encoder, as timm takes it.

    Raises:
        SpecError: an option that there is not, or one out of range.

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
        self.dropout = nn.Dropout(self._option("dropout", 0.0))
        self.maps = 1
        if self.kind_of_head == "timm":
            return
        # HRNet's branches end side by side: all are pooled, so that no parameter is dead.
        if self.encoder.parallel:
            self.maps = len(self.encoder.channels)
        self.encoder.freeze_unread(range(-self.maps, 0))
        width = sum(self.encoder.channels[-self.maps :])
        count = len(self.spec.classes)
        self.head: nn.Module = nn.Linear(width, count)
        if self.kind_of_head == "vgg":
            self.head = vgg_head(width, self._option("head_width", 4096), count, self.dropout.p)

    def _option(self, name: str, default: Any) -> Any:  # noqa: ANN401 - a JSON value
        return self.spec.decoder.get(name, default)

    @property
    def kind_of_head(self) -> str:
        """One of `HEADS`."""
        return str(self._option("head", "linear"))

    @classmethod
    def _check_kind(cls, spec: ModelSpec) -> None:
        super()._check_kind(spec)
        options = {"dropout": 0.0, "head": "linear", **spec.decoder}
        known = {"dropout", "head"} | ({"head_width"} if options["head"] == "vgg" else set())
        if set(options) - known or not is_share(options["dropout"]):
            raise SpecError(
                "a classifier has the options dropout, from 0 to below 1, and head (and "
                f'head_width with "vgg"); got {dict(spec.decoder)}.'
            )
        if options["head"] not in HEADS:
            raise SpecError(unknown_name("head of a classifier", str(options["head"]), HEADS))
        if not is_whole(options.get("head_width", 1)):
            raise SpecError(
                f"head_width must be a whole number from 1, got {options['head_width']!r}."
            )

    def _build_encoder(self, pretrained: bool | str) -> nn.Module:
        if self.kind_of_head != "timm":
            return super()._build_encoder(pretrained)
        return WholeModel(
            self.spec.encoder,
            in_channels=self.spec.input.channels,
            classes=len(self.spec.classes),
            dropout=self._option("dropout", 0.0),
            pretrained=pretrained,
            options=self.spec.encoder_options,
        )

    def _reads_pyramid(self) -> bool:
        return False

    @classmethod
    def builds(cls, architecture: str) -> bool:
        """Whether it is "classifier"."""
        return architecture == "classifier"

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W), normalised -> logits (B, classes)."""
        read: list[Tensor] = self.encoder(image)[-self.maps :]
        if self.kind_of_head == "timm":
            return read[0]
        if self.kind_of_head == "vgg":
            pooled = torch.cat([F.adaptive_avg_pool2d(x, 7).flatten(1) for x in read], dim=1)
        else:
            pooled = self.dropout(torch.cat([x.mean(dim=(2, 3)) for x in read], dim=1))
        logits: Tensor = self.head(pooled)
        return logits

    def transfer_rows(self) -> tuple[str, ...]:
        """The weight and bias of the last layer."""
        if self.kind_of_head == "timm":
            return tuple(f"encoder.{key}" for key in self.encoder.row_keys())
        last = "head.6" if self.kind_of_head == "vgg" else "head"
        return (f"{last}.weight", f"{last}.bias")


def vgg_head(channels: int, wide: int, classes: int, dropout: float) -> nn.Module:
    """Torchvision's for VGG, whose names it has: on a map of 7 x 7 positions."""
    return nn.Sequential(
        nn.Linear(channels * 49, wide),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(wide, wide),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(wide, classes),
    )
