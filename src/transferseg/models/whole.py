"""A timm classifier as it is, head and all, where a linear layer computes something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn

from transferseg.errors import SpecError, unknown_name
from transferseg.models.build import FOLLOWING, whole
from transferseg.models.checkpointing import vgg_maps
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
        options: "arguments", what timm's constructor is given besides.

    Attributes:
        channels: of the one map that it gives, the logits.
        strides: of that map; it has no positions.

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
    multiple = 1
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
        variant = Variant.of(name, options.pop("arguments", None))
        if options:
            raise SpecError(f"a whole timm classifier has no encoder options; got {options}.")
        arguments = variant.arguments
        if issubclass(whole(variant)[0], FOLLOWING):
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
        let_windows_follow(self.model)
        self.channels, self.strides = (classes,), (1,)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> one map, the logits (B, classes)."""
        maps = vgg_maps(self.model, image)
        return [self.model(image) if maps is None else self.model.forward_head(maps[-1])]

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
