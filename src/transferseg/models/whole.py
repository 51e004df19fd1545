"""A timm classifier as it is, head and all, where a linear layer computes something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from transferseg.errors import SpecError, unknown_name
from transferseg.models.build import FOLLOWING, whole
from transferseg.models.checkpointing import vgg_maps
from transferseg.models.norm_eps import set_norm_eps
from transferseg.models.openmmlab import adopt, arguments_of, check_style, vit_logits
from transferseg.models.variant import Variant
from transferseg.models.windows import let_windows_follow
from transferseg.transfer import Adapter


class WholeModel(nn.Module):
    """A timm model with its own head, in the place of a classifier's encoder.

    Its keys are timm's behind `model.`, as an encoder's are, so that an encoder takes its weights.

    Args:
        name: a timm model name.
        in_channels: channels of the image.
        classes: rows of the head.
        dropout: of the head, 0 to below 1.
        pretrained: as timm takes it.
        options: "arguments", what timm's constructor is given besides; "norm_eps", and of Swin and
            ViT "style", as in `Encoder`, but for "mmseg" and "smp", which have no classifiers.

    Attributes:
        channels: of the one map that it gives, the logits.
        strides: of that map; it has no positions.
        multiple: images are padded to a multiple of this; cropped in the style "torchvision".
        style: of the options.

    Raises:
        SpecError: a name that timm does not know, or arguments that its constructor refuses.

    Example:
        >>> import torch
        >>> model = WholeModel("test_vit", in_channels=1, classes=4)
        >>> [tuple(map.shape) for map in model(torch.rand(2, 1, 160, 160))]
        [(2, 4)]
        >>> model.row_keys()
        ('model.head.weight', 'model.head.bias')
    """

    model: Any  # a timm model; timm has no common class
    parallel = False
    pruned: tuple[str, ...] = ()
    pyramid = None

    def __init__(
        self,
        name: str,
        *,
        in_channels: int,
        classes: int,
        dropout: float = 0.0,
        pretrained: bool | str = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise SpecError(unknown_name("encoder", name, timm.list_models()))
        options = dict(options or {})
        variant = Variant.of(name, options.pop("arguments", None), options.pop("style", "timm"))
        norm_eps = options.pop("norm_eps", {})
        if options or variant.style in ("mmseg", "smp"):
            raise SpecError(
                "a whole timm classifier has the encoder options arguments, norm_eps and style "
                f"(any but mmseg and smp); got {options or variant.style}."
            )
        model_class = whole(variant)[0]
        check_style(variant.style, name, model_class)
        arguments = arguments_of(variant.style, model_class) | variant.arguments
        if issubclass(model_class, FOLLOWING):
            arguments["dynamic_img_size"] = True
        if dropout:
            arguments["drop_rate"] = dropout
        tagged = f"{name}.{pretrained}" if isinstance(pretrained, str) else name
        try:
            self.model = timm.create_model(
                tagged,
                pretrained=bool(pretrained),
                in_chans=in_channels,
                num_classes=classes,
                **arguments,
            )
        except (RuntimeError, OSError, TypeError) as error:
            raise SpecError(f"timm cannot build classifier {tagged!r}: {error}") from error
        set_norm_eps(self.model, norm_eps, name)
        self.multiple, self.style = 1, variant.style
        if variant.style == "timm":
            let_windows_follow(self.model)
        else:  # its patches are padded too, or what fills none is left out
            adopt(self.model, name, variant.style)
            self.multiple = self.model.patch_embed.patch_size[0]
        self.channels, self.strides = (classes,), (1,)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> one map, the logits (B, classes)."""
        if self.multiple > 1:
            image = self._whole_patches(image)
        if self.style == "mmpretrain" and isinstance(self.model, VisionTransformer):
            return [vit_logits(self.model, image)]
        maps = vgg_maps(self.model, image)
        return [self.model(image) if maps is None else self.model.forward_head(maps[-1])]

    def _whole_patches(self, image: Tensor) -> Tensor:
        """The image with sides that are multiples: padded, in torchvision's way cropped."""
        height, width = image.shape[-2:]
        if self.style == "torchvision":  # its convolution reads no part of a patch
            return image[..., : height - height % self.multiple, : width - width % self.multiple]
        return F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple))

    def row_keys(self) -> tuple[str, ...]:
        """Keys of the tensors that have one row a class."""
        return self._of("classifier", ("weight", "bias"))

    def stem_keys(self) -> tuple[str, ...]:
        """Keys of the convolutions that read the image."""
        return self._of("first_conv", ("weight",))

    def transfer_adapters(self) -> Mapping[str, Adapter]:
        """None: a whole classifier takes what was saved of the same one."""
        return {}

    def _of(self, role: str, names: tuple[str, ...]) -> tuple[str, ...]:
        given = self.model.pretrained_cfg.get(role) or ()
        modules = (given,) if isinstance(given, str) else tuple(given)
        own = dict(self.model.named_parameters())
        keys = (f"{module}.{name}" for module in modules for name in names)
        return tuple(f"model.{key}" for key in keys if key in own)
