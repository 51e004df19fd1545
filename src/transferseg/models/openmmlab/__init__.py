"""Where MMSegmentation and others compute something else than timm with the same weights.

The encoder option "style" chooses. Parameters keep timm's names and places in both styles, so that
weights go from one to the other; `transfer.openmmlab` has what their values need on the way from a
file of MMSegmentation's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXt
from timm.models.hrnet import HighResolutionNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from transferseg.errors import SpecError
from transferseg.models.openmmlab.hrnet import fuse_bilinearly
from transferseg.models.openmmlab.swin import pad_before_shifting
from transferseg.models.openmmlab.vit import check_vit, vit_logits, vit_maps
from transferseg.models.smp_style import taps_of

__all__ = ["adopt", "arguments_of", "check_style", "out_norms", "vit_logits", "vit_maps"]

#: timm's models of which MMSegmentation computes something else
DIFFERENT = (VisionTransformer, SwinTransformer, ConvNeXt, HighResolutionNet)
#: other styles -> timm's models of which these libraries compute something else
OTHERS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "transformers": (SwinTransformer,),
    "torchvision": (SwinTransformer,),
    "mmpretrain": (VisionTransformer, SwinTransformer),
}


def check_style(style: str, name: str, model_class: type[nn.Module] | None) -> None:
    """Refuse a style that the encoder has not.

    Args:
        style: one of `variant.STYLES`.
        name: of the encoder, for the message.
        model_class: timm's; None for an encoder that is not timm's.

    Raises:
        SpecError: a style of an encoder that computes as in timm.
    """
    if style == "smp":
        taps_of(name)
    if style in OTHERS and model_class not in OTHERS[style]:
        known = " and ".join(known.__name__ for known in OTHERS[style])
        raise SpecError(
            f"style {style!r} is one of timm's {known}, which encoder {name!r} is not; leave style "
            "out."
        )
    if style == "mmseg" and model_class not in DIFFERENT:
        raise SpecError(
            "style 'mmseg' is one of timm's VisionTransformer, SwinTransformer, ConvNeXt and "
            f"HighResolutionNet, which encoder {name!r} is not; leave style out. (MMSegmentation's "
            "ResNets compute as timm's; where they are dilated, give dilation='mmseg'.)"
        )


def arguments_of(style: str, model_class: type[nn.Module]) -> dict[str, Any]:
    """What timm's builder must be told for a style: Swin's windows are never shrunk.

    Example:
        >>> arguments_of("mmseg", SwinTransformer)
        {'always_partition': True}
    """
    partition = style != "timm" and issubclass(model_class, SwinTransformer)
    return {"always_partition": True} if partition else {}


def adopt(model: Any, name: str, style: str = "mmseg") -> None:  # noqa: ANN401 - a timm model
    """Make one of timm's models, just built, compute as in another style, in place.

    A ViT stays as it is, `vit_maps` and `vit_logits` read it; and so does a ConvNeXt, whose maps
    get norms.

    Args:
        model: a ViT, Swin, ConvNeXt or HRNet.
        name: of the encoder, for the message.
        style: one of `variant.STYLES` but "timm".

    Raises:
        SpecError: a ViT with parts that MMSegmentation's has not.
    """
    if isinstance(model, VisionTransformer):
        check_vit(model, name)
    elif isinstance(model, SwinTransformer):
        pad_before_shifting(model, style)
    elif isinstance(model, HighResolutionNet):
        fuse_bilinearly(model)


def out_norms(model: nn.Module, channels: tuple[int, ...]) -> nn.ModuleList | None:
    """The norms of Swin's and ConvNeXt's maps, `norm0` to `norm3` there; None for other models.

    Example:
        >>> out_norms(nn.Identity(), (8, 16)) is None
        True
    """
    if not isinstance(model, (SwinTransformer, ConvNeXt)):
        return None
    eps = 1e-5 if isinstance(model, SwinTransformer) else 1e-6
    return nn.ModuleList(LayerNorm2d(width, eps=eps) for width in channels)
