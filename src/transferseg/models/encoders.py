"""Any timm model, or a plain one, as a feature pyramid: timm's own module and names inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import filter as matching
from typing import Any

import timm
import torch.nn.functional as F
from timm.models.hrnet import HighResolutionNet
from torch import Tensor, nn

from transferseg.errors import SpecError, unknown_name
from transferseg.models.build import build, intermediates, pruned_keys
from transferseg.models.capabilities import (
    OUTPUT_STRIDES,
    EncoderCapabilities,
    capabilities_with,
    encoder_capabilities,
)
from transferseg.models.checkpointing import vgg_maps
from transferseg.models.dilation import DILATIONS, set_style
from transferseg.models.freezing import rest
from transferseg.models.norm_eps import set_norm_eps
from transferseg.models.openmmlab import out_norms
from transferseg.models.plain import PLAIN, plain_input
from transferseg.models.plain_vit import PlainOptions, PlainViT, plain_options
from transferseg.models.pyramid import PYRAMIDS, STRIDES, Pyramid
from transferseg.models.variant import STYLES, Variant
from transferseg.spec import InputSpec
from transferseg.transfer import Adapter, PositionGrid, size_adapters

__all__ = [
    "DILATIONS",
    "OUTPUT_STRIDES",
    "STYLES",
    "Encoder",
    "EncoderCapabilities",
    "encoder_capabilities",
    "encoder_input",
    "list_encoders",
]


class Encoder(nn.Module):
    """A timm model without its head; its feature maps from shallow to deep.

    The timm model is held as `model`, so its parameters keep timm's names behind `model.`. A plain
    ViT gets a `pyramid` of maps at strides 4, 8, 16 and 32, which timm's weights know nothing of.

    Args:
        name: a timm model name, such as "resnet50", or "plain": see `PlainEncoder`.
        in_channels: channels of the image.
        output_stride: 32, or 16 or 8 by dilation; None for its own.
        dilation: whose way: "timm" (torchvision's) or, of ResNets, "smp" or "mmseg".
        pretrained: False, True for timm's default weights, or a tag of timm's; downloads them.
        options: JSON values; see below.

    The options:

    - "arguments", of every encoder: of timm's builder, such as `{"drop_path_rate": 0.1}` or, for a
      narrow ResNet, `{"channels": [8, 16, 32, 64]}`; of a plain encoder `{"width": 64}`.
    - "pyramid", of plain ViTs: "simple" (the default; ViTDet's), "multilevel" (MMSegmentation's),
      or "none" for its own maps, all at the stride of its patches.
    - "layers", of plain ViTs: the blocks, from 0, after which maps are taken: four, or one for all
      levels; by default the last for "simple", else four spread evenly.
    - "channels", of plain ViTs: of the pyramid's maps, by default 256 for "simple" and the ViT's
      for "multilevel".
    - "style", of ViT, Swin, ConvNeXt, HRNet: "timm" (the default), or "mmseg": what
      MMSegmentation computes with the same weights; Swin's and ConvNeXt's maps then have norms of
      their own. Of Swin also "transformers" and "torchvision", of Swin and ViT "mmpretrain": what
      these libraries' classifiers compute. Of EfficientNet, MobileNetV2 and DenseNet "smp": the
      maps of segmentation-models-pytorch's own encoders with the same weights, with dilation="smp"
      where they are dilated.
    - "norm_eps", of every encoder: the epsilon of its layer norms where the weights want another
      than timm's, by the modules' names: `{"*": 1e-12}`.
    - "final_norm", of ViTs in the style "mmseg": whether the last map is normed; False.
    - "patch_bias", of the same: whether the patches' convolution has a bias; True.

    Attributes:
        channels: of each feature map.
        strides: of each feature map; dilated ones repeat.
        multiple: images are padded to a multiple of this, and the maps cropped.
        parallel: whether the maps are branches that end side by side (HRNet).

    Raises:
        SpecError: an unknown name, or something that the encoder cannot do; says what it can.

    Source: Li 2022 (arXiv 2203.16527) for "simple"; MMSegmentation's MultiLevelNeck.

    Example:
        >>> import torch
        >>> encoder = Encoder("resnet10t", in_channels=1).eval()
        >>> [tuple(f.shape[1:]) for f in encoder(torch.rand(1, 1, 64, 96))][-1], encoder.strides
        ((512, 2, 3), (2, 4, 8, 16, 32))
        >>> vit = Encoder("test_vit", options={"pyramid": "multilevel", "layers": [1, 2, 4, 5]})
        >>> [tuple(f.shape[1:]) for f in vit(torch.rand(1, 3, 64, 96))][0], vit.strides
        ((64, 16, 24), (4, 8, 16, 32))
        >>> Encoder("resnet18", options={"arguments": {"channels": [8, 16, 32, 64]}}).channels
        (64, 8, 16, 32, 64)
    """

    model: Any  # a timm model; timm has no common class with forward_intermediates
    pyramid: Pyramid | None
    norms: nn.ModuleList | None

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        output_stride: int | None = None,
        dilation: str = "timm",
        pretrained: bool | str = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if dilation not in DILATIONS:
            raise SpecError(unknown_name("dilation style", dilation, DILATIONS))
        capabilities = capabilities_with(name, options or {})
        options = dict(options or {})
        variant = Variant.of(name, options.pop("arguments", None), options.pop("style", "timm"))
        norm_eps = options.pop("norm_eps", {})
        if output_stride is None:
            output_stride = capabilities.output_strides[-1]
        if output_stride not in capabilities.output_strides:
            why = dict(capabilities.refusals).get(output_stride, "not a stride of encoders")
            raise SpecError(
                f"encoder {name!r} cannot be built with output stride {output_stride} ({why}); "
                f"it can with {list(capabilities.output_strides)}."
            )
        plain, chosen = capabilities.plain, None
        if plain is not None or options:
            chosen = plain_options(name, plain, options, variant.style)
        self.layers = chosen.layers if chosen else None
        self.model = build(variant, in_channels, output_stride, pretrained, chosen)
        set_norm_eps(self.model, norm_eps, name)
        self.style = variant.style
        if output_stride != 32:
            self._dilate(dilation, name)
        self.channels = capabilities.channels
        self.strides = tuple(min(stride, output_stride) for stride in capabilities.strides)
        self.multiple = capabilities.multiple
        self.parallel = capabilities.parallel
        self.pruned = pruned_keys(variant, self.model)
        self.norms = None
        if self.style == "mmseg":
            self.norms = out_norms(self.model, self.channels)
        self.pyramid = None
        if plain is not None and chosen is not None:
            self._add_pyramid(plain, chosen)

    def _dilate(self, style: str, name: str) -> None:
        if self.style != "smp":
            set_style(self.model, style, name)
        elif style != "smp":
            raise SpecError(
                f"encoder {name!r} in the style 'smp' is dilated as smp does; give dilation='smp'."
            )

    def _add_pyramid(self, plain: PlainViT, chosen: PlainOptions) -> None:
        maps = len(chosen.layers)
        if chosen.pyramid == "none":
            self.channels, self.strides = (plain.width,) * maps, (plain.patch,) * maps
            return
        build = PYRAMIDS[chosen.pyramid]
        self.pyramid = build(plain.width, chosen.channels, maps=maps, patch=plain.patch)
        self.channels, self.strides = (chosen.channels,) * len(STRIDES), STRIDES

    def forward(self, image: Tensor, *, until: int | None = None) -> list[Tensor]:
        """(B, in_channels, H, W) -> feature maps (B, channels[i], ~H/strides[i], ~W/strides[i]).

        Args:
            image: the images.
            until: index of the last map that is wanted, from 0; None for all. Where the encoder
                can stop there, it computes and gives no deeper one.
        """
        height, width = image.shape[-2:]
        if height % self.multiple or width % self.multiple:
            image = F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple))
        features = vgg_maps(self.model, image)
        if features is None:
            wanted = until if self.norms is None and not self.parallel else None
            features = intermediates(self.model, image, self.layers, self.style, until=wanted)
        if self.norms is not None:
            features = [norm(map_) for norm, map_ in zip(self.norms, features, strict=True)]
        if self.pyramid is not None:
            features = self.pyramid(features)
        if self.multiple > 1 and self.style == "timm":
            features = [
                feature[..., : -(-height // stride), : -(-width // stride)]
                for feature, stride in zip(features, self.strides, strict=until is None)
            ]
        return features

    def stem_keys(self) -> tuple[str, ...]:
        """Keys of the convolutions that read the image."""
        first = self.model.pretrained_cfg.get("first_conv") or ()
        names = (first,) if isinstance(first, str) else tuple(first)
        return tuple(f"model.{self._first_conv(name)}.weight" for name in names)

    def _first_conv(self, name: str) -> str:
        """Where timm says that it is, or (of a deep stem, an argument) the first inside."""
        convs = (key for key, part in self.model.named_modules() if isinstance(part, nn.Conv2d))
        return next((key for key in convs if f"{key}.".startswith(f"{name}.")), name)

    def transfer_adapters(self) -> Mapping[str, Adapter]:
        """Own key -> adapter from another image, patch or window size."""
        adapters = size_adapters(self.model)
        if self.layers is None:  # other transformers resample their positions themselves
            adapters.pop("pos_embed", None)
        positions = adapters.get("pos_embed")
        if self.style in ("mmseg", "mmpretrain") and isinstance(positions, PositionGrid):
            adapters["pos_embed"] = replace(positions, antialias=False)
        return {f"model.{key}": adapter for key, adapter in adapters.items()}

    def freeze_unread(self, read: Sequence[int]) -> None:
        """Stop the gradient of what serves only feature maps that nobody reads.

        It would get none: parameters without a gradient stop distributed training, and decay. They
        stay in place, so that a model that reads all maps takes this encoder's weights.

        Args:
            read: indices of the maps that are read, from the end where negative.

        Example:
            >>> encoder = Encoder("test_vit")
            >>> encoder.freeze_unread([-1])
            >>> [p.requires_grad for p in encoder.pyramid.levels[0].parameters()][0]
            False
        """
        count = len(self.channels)
        for index in set(range(count)) - {position % count for position in read}:
            for module in self._only_for(index):
                rest(module)

    def _only_for(self, index: int) -> list[nn.Module]:
        if self.pyramid is not None:
            return self.pyramid.only_for(index)
        if self.norms is not None:
            return [self.norms[index]]
        if isinstance(self.model, HighResolutionNet):
            return [self.model.stage4[-1].fuse_layers[index]]
        return []


def list_encoders(pattern: str = "") -> list[str]:
    """Names of timm's models and of the plain encoders, which `encoder_capabilities` describes.

    Args:
        pattern: shell-style, such as "resnet*"; empty for all.

    Example:
        >>> list_encoders("vgg1?")
        ['vgg11', 'vgg13', 'vgg16', 'vgg19']
    """
    names: list[str] = timm.list_models(pattern)
    return [*names, *matching(PLAIN, pattern or "*")]


def encoder_input(name: str, channels: int) -> InputSpec:
    """The input that timm's weights of this encoder expect, for any number of channels."""
    if name in PLAIN:
        return plain_input(channels)
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise SpecError(f"timm knows no weights {name!r}, and no such file is here.") from error
    if config is None:
        raise SpecError(f"timm knows no statistics of {name!r}; give input_spec=.")
    return InputSpec.from_statistics(config.mean, config.std, channels=channels)
