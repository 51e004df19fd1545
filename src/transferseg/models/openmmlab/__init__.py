"""Where MMSegmentation computes something else than timm with the same weights.

The encoder option "style" chooses. Parameters keep timm's names and places in both styles, so that
weights go from one to the other; `weights` has what their values need on the way from a file of
MMSegmentation's.
"""

from __future__ import annotations

from typing import Any

from timm.layers import LayerNorm2d
from timm.models.hrnet import HighResolutionNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from transferseg.errors import SpecError
from transferseg.models.openmmlab.hrnet import fuse_bilinearly
from transferseg.models.openmmlab.swin import pad_before_shifting
from transferseg.models.openmmlab.vit import check_vit, vit_maps

__all__ = ["adopt", "arguments_of", "check_style", "out_norms", "vit_maps"]

#: timm's models of which MMSegmentation computes something else
DIFFERENT = (VisionTransformer, SwinTransformer, HighResolutionNet)


def check_style(style: str, name: str, model_class: type[nn.Module] | None) -> None:
    """Refuse a style that the encoder has not.

    Args:
        style: "timm" or "mmseg".
        name: of the encoder, for the message.
        model_class: timm's; None for an encoder that is not timm's.

    Raises:
        SpecError: "mmseg" of an encoder that computes alike in both.
    """
    if style == "mmseg" and model_class not in DIFFERENT:
        raise SpecError(
            "style 'mmseg' is one of timm's VisionTransformer, SwinTransformer and "
            f"HighResolutionNet, which encoder {name!r} is not; leave style out. (MMSegmentation's "
            "ResNets compute as timm's; where they are dilated, give dilation='mmseg'.)"
        )


def arguments_of(style: str, model_class: type[nn.Module]) -> dict[str, Any]:
    """What timm's builder must be told for a style: Swin's windows are never shrunk.

    Example:
        >>> arguments_of("mmseg", SwinTransformer)
        {'always_partition': True}
    """
    partition = style == "mmseg" and issubclass(model_class, SwinTransformer)
    return {"always_partition": True} if partition else {}


def adopt(model: Any, name: str) -> None:  # noqa: ANN401 - a timm model
    """Make one of timm's models, just built, compute as MMSegmentation's, in place.

    A ViT stays as it is: its maps are read by `vit_maps`.

    Args:
        model: a ViT, Swin or HRNet.
        name: of the encoder, for the message.

    Raises:
        SpecError: a ViT with parts that MMSegmentation's has not.
    """
    if isinstance(model, VisionTransformer):
        check_vit(model, name)
    elif isinstance(model, SwinTransformer):
        pad_before_shifting(model)
    elif isinstance(model, HighResolutionNet):
        fuse_bilinearly(model)


def out_norms(model: nn.Module, channels: tuple[int, ...]) -> nn.ModuleList | None:
    """The norms of Swin's maps, `norm0` to `norm3` in MMSegmentation; None for other models.

    Example:
        >>> out_norms(nn.Identity(), (8, 16)) is None
        True
    """
    if not isinstance(model, SwinTransformer):
        return None
    return nn.ModuleList(LayerNorm2d(width, eps=1e-5) for width in channels)
