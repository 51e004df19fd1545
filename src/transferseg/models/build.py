"""Building timm's models as encoders: without their heads, dilated, for any image size."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import timm
import torch
from timm.models import model_entrypoint
from timm.models.eva import Eva
from timm.models.hrnet import HighResolutionNet
from timm.models.selecsls import SelecSls
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from transferseg.errors import SpecError, some
from transferseg.models.dilation import built_by_timm, mend
from transferseg.models.openmmlab import adopt, arguments_of, check_style, vit_maps
from transferseg.models.plain import PLAIN, PlainEncoder
from transferseg.models.plain_vit import PlainOptions
from transferseg.models.smp_style import read_as_smp, smp_maps
from transferseg.models.variant import Variant
from transferseg.models.windows import let_windows_follow

#: timm's models for one image size, unless they are asked to follow the image's
FOLLOWING = (VisionTransformer, Eva, SwinTransformer, SwinTransformerV2)
#: what timm resamples when weights are loaded -> the sides of it that must fit
RESAMPLED = {
    "pos_embed": slice(-1, None),
    "relative_position_bias_table": slice(-1, None),
    "patch_embed.proj.weight": slice(0, 2),
}
#: what an option of a ViT leaves out, which a source may have trained: declared unused by nobody
OPTIONAL = ("patch_embed.proj.bias", "norm.weight", "norm.bias")


def build(
    variant: Variant,
    in_channels: int,
    output_stride: int,
    pretrained: bool | str = False,
    plain: PlainOptions | None = None,
) -> Any:  # noqa: ANN401 - a timm model
    """A timm model, or a plain encoder, without what no feature map needs.

    Args:
        variant: its name, arguments and style.
        in_channels: channels of the image.
        output_stride: 32, or 16 or 8 by dilation.
        pretrained: False, True or a tag, as timm takes them.
        plain: of a plain ViT, how its maps become an encoder's.

    Raises:
        SpecError: arguments or weights with which it cannot be built.
    """
    if variant.name in PLAIN:
        return _build_plain(variant, in_channels, pretrained)
    model_class, _ = whole(variant)
    if pretrained:
        _check_weights_fit(variant)
        if plain is not None and not plain.patch_bias:
            raise SpecError(
                f"timm's weights of {variant.name!r} have a bias that patch_bias=False would drop; "
                "leave patch_bias out, or the weights."
            )
    options: dict[str, Any] = {}
    if output_stride != 32 and built_by_timm(model_class):
        options["output_stride"] = output_stride
    if issubclass(model_class, FOLLOWING):
        options["dynamic_img_size"] = True
    if not built_by_timm(model_class) and not pretrained:
        # VGG's fully connected layers (100 million values) are built and pruned: keep them thin.
        options["mlp_ratio"] = 1 / 4096
    options |= arguments_of(variant.style, model_class) | variant.arguments
    model = _from_timm(variant, in_channels, pretrained, options)
    if variant.style == "smp":
        read_as_smp(model, variant.name, output_stride)
        return model
    prune(model, plain)
    if output_stride != 32:
        mend(model, output_stride)
    if variant.style == "timm":
        let_windows_follow(model)
    else:
        adopt(model, variant.name, variant.style)
    return model


def _build_plain(variant: Variant, in_channels: int, pretrained: bool | str) -> PlainEncoder:
    if pretrained:
        raise SpecError(
            f"there are no weights of encoder {variant.name!r} to download; give a path."
        )
    return PlainEncoder(plain_width(variant), in_channels=in_channels)


def plain_width(variant: Variant) -> int:
    """Channels of a plain encoder's first stage, its one argument.

    Raises:
        SpecError: another argument, or no whole number from 1.

    Example:
        >>> plain_width(Variant("plain")), plain_width(Variant.of("plain", {"width": 8}))
        (32, 8)
    """
    arguments = variant.arguments
    width = arguments.pop("width", PLAIN[variant.name])
    if arguments or type(width) is not int or width < 1:
        raise SpecError(
            f"encoder {variant.name!r} has one argument, width, a whole number from 1; "
            f"got {variant.arguments}."
        )
    return width


def _from_timm(
    variant: Variant, in_channels: int, pretrained: bool | str, options: Mapping[str, Any]
) -> Any:  # noqa: ANN401 - a timm model
    name = variant.name
    tagged = f"{name}.{pretrained}" if isinstance(pretrained, str) else name
    try:
        model = timm.create_model(
            tagged, pretrained=bool(pretrained), in_chans=in_channels, num_classes=0, **options
        )
    except (RuntimeError, OSError) as error:
        raise SpecError(
            f"timm cannot build encoder {tagged!r}{' with its weights' if pretrained else ''}: "
            f"{error}"
        ) from error
    if not hasattr(model, "forward_intermediates"):
        raise SpecError(f"encoder {name!r} has no forward_intermediates in this timm.")
    return model


def _check_weights_fit(variant: Variant) -> None:
    """Of its weights timm loads what fits and leaves the rest as it is, where the head differs."""
    own, theirs = dict(whole(variant)[1]), dict(whole(Variant(variant.name))[1])
    wrong = list(own.keys() ^ theirs.keys())
    for key in own.keys() & theirs.keys():
        sides = [side for end, side in RESAMPLED.items() if key.endswith(end)]
        part = sides[0] if sides else slice(None)
        if len(own[key]) != len(theirs[key]) or own[key][part] != theirs[key][part]:
            wrong.append(key)
    if wrong:
        raise SpecError(
            f"timm's weights of {variant.name!r} do not fit the arguments {variant.arguments}: "
            f"{some(sorted(wrong))} would differ. Leave the weights out, or these arguments."
        )


@cache
def whole(variant: Variant) -> tuple[type[nn.Module], tuple[tuple[str, tuple[int, ...]], ...]]:
    """Class, and keys with shapes, of the whole timm model; without memory where that works.

    Raises:
        SpecError: arguments that timm does not know, or with which it cannot build the model.
    """
    entry, arguments = model_entrypoint(variant.name), variant.arguments
    try:
        try:
            with torch.device("meta"):
                model: nn.Module = entry(pretrained=False, **arguments)
        except NotImplementedError:  # RegNet's constructor calls operators that older torch has not
            model = entry(pretrained=False, **arguments)
    except Exception as error:
        if not arguments:
            raise
        known = inspect.signature(whole(Variant(variant.name))[0]).parameters
        raise variant.refused(error, tuple(known)) from error
    check_style(variant.style, variant.name, type(model))
    shapes = ((key, tuple(value.shape)) for key, value in model.state_dict().items())
    return type(model), tuple(shapes)


def pruned_keys(variant: Variant, model: nn.Module) -> tuple[str, ...]:
    """Keys of the whole timm model that no feature map of the encoder needs."""
    if variant.name in PLAIN:
        return ()
    kept = {*model.state_dict()}
    if variant.style == "mmseg" and isinstance(model, VisionTransformer):
        kept.update(OPTIONAL)
    return tuple(key for key, _ in whole(variant)[1] if key not in kept)


def prune(model: Any, plain: PlainOptions | None) -> None:  # noqa: ANN401 - a timm model
    """Drop what no feature map needs: heads, and blocks after the last layer."""
    wanted = None if plain is None else list(plain.layers)
    norm = plain is not None and plain.final_norm
    model.prune_intermediate_layers(wanted, prune_norm=not norm, prune_head=True)
    if norm and isinstance(model.norm, nn.Identity):
        raise SpecError("this ViT has no final norm; leave final_norm out.")
    if plain is not None and not plain.patch_bias:
        model.patch_embed.proj.register_parameter("bias", None)
    leftovers = ["pre_logits", "conv_head"]
    if not isinstance(model, SelecSls):  # whose deepest maps come from what it calls its head
        leftovers.append("head")
    if hasattr(model, "conv_head"):  # whose norm it is; elsewhere "bn2" is the stem's
        leftovers.append("bn2")
    for leftover in leftovers:
        if isinstance(getattr(model, leftover, None), nn.Module):
            setattr(model, leftover, nn.Identity())
    if isinstance(model, HighResolutionNet):
        model.incre_modules = None  # part of the classifier: the maps are the branches themselves


def intermediates(
    model: Any,  # noqa: ANN401 - a timm model
    image: Tensor,
    layers: Sequence[int] | None = None,
    style: str = "timm",
    until: int | None = None,
) -> list[Tensor]:
    """The feature maps, to the one at index `until`; of HRNet its branches, not the stem's."""
    if (tapped := smp_maps(model, image, until)) is not None:
        return tapped
    if style in ("mmseg", "mmpretrain") and layers is not None:
        return vit_maps(model, image, layers, style=style)
    if isinstance(model, HighResolutionNet):
        layers = range(1, model.num_branches + 1)
    chosen: dict[str, Any] = {} if layers is None else {"indices": list(layers)}
    if layers is None and until is not None and not isinstance(model, PlainEncoder):
        chosen = {"indices": list(range(until + 1)), "stop_early": True}
    features: list[Tensor] = model.forward_intermediates(image, intermediates_only=True, **chosen)
    return features
