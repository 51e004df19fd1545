"""OpenMMLab's names of networks whose parameters are timm's, and tensors that stand otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from transferseg.transfer.adapters import Adapter, Shape

#: Names of MMSegmentation's and MMPretrain's backbones, and of the neck above a ViT -> ours; what
#: they leave alone (`backbone.layer1.`) is timm's name already.
RULES: Mapping[str, str] = {
    # ResNetV1c and V1d: three convolutions first
    r"^(backbone\.|)stem\.7\.": r"\1bn1.",
    r"^(backbone\.|)stem\.": r"\1conv1.",
    # ViT and Swin
    r"^backbone\.patch_embed\.projection\.": "backbone.patch_embed.proj.",
    r"^backbone\.ln1\.": "backbone.norm.",
    r"^(backbone)\.layers\.(\d+)\.ln([12])\.": r"\1.layers.\2.norm\3.",
    r"^backbone\.layers\.": "backbone.blocks.",
    r"\.attn\.attn\.in_proj_": ".attn.qkv.",
    r"\.attn\.attn\.out_proj\.": ".attn.proj.",
    r"\.ffn\.layers\.0\.0\.": ".mlp.fc1.",
    r"\.ffn\.layers\.1\.": ".mlp.fc2.",
    r"^neck\.(lateral_convs|convs)\.(\d)\.conv\.": r"encoder.pyramid.\1.\2.",
    r"^backbone\.norm(\d)\.": r"encoder.norms.\1.",
    # the downsampling that ends a stage there begins the next one in timm
    r"^backbone\.stages\.0\.downsample\.": "backbone.layers.1.downsample.",
    r"^backbone\.stages\.1\.downsample\.": "backbone.layers.2.downsample.",
    r"^backbone\.stages\.2\.downsample\.": "backbone.layers.3.downsample.",
    r"^backbone\.stages\.": "backbone.layers.",
    r"\.attn\.w_msa\.": ".attn.",
    # U-Net, whose blocks are counted from the shallowest there, from the deepest here
    r"^backbone\.encoder\.(\d)\.\d\.convs\.0\.conv\.": r"backbone.stages.\1.conv1.",
    r"^backbone\.encoder\.(\d)\.\d\.convs\.1\.conv\.": r"backbone.stages.\1.conv2.",
    r"^backbone\.encoder\.(\d)\.\d\.convs\.0\.bn\.": r"backbone.stages.\1.norm1.",
    r"^backbone\.encoder\.(\d)\.\d\.convs\.1\.bn\.": r"backbone.stages.\1.norm2.",
    r"^backbone\.decoder\.0\.": "unet.3.",
    r"^backbone\.decoder\.1\.": "unet.2.",
    r"^backbone\.decoder\.2\.": "unet.1.",
    r"^backbone\.decoder\.3\.": "unet.0.",
    r"^unet\.(\d)\.upsample\.interp_upsample\.1\.": r"decoder.ups.\1.",
    r"^unet\.(\d)\.conv_block\.convs\.0\.conv\.": r"decoder.blocks.\1.conv1.0.",
    r"^unet\.(\d)\.conv_block\.convs\.0\.bn\.": r"decoder.blocks.\1.conv1.1.",
    r"^unet\.(\d)\.conv_block\.convs\.1\.conv\.": r"decoder.blocks.\1.conv2.0.",
    r"^unet\.(\d)\.conv_block\.convs\.1\.bn\.": r"decoder.blocks.\1.conv2.1.",
}
#: Patterns on keys that are OpenMMLab's alone; `backbone.` is a prefix of many.
TELLING = (
    *("decode_head.*", "head.fc.*", "backbone.stem.*", "stem.7.weight"),
    *("backbone.patch_embed.projection.weight", "backbone.transition1.*"),
)
#: Tensors of their files that a network does not need -> why.
COMPUTED = dict.fromkeys(
    ("*.relative_position_index", "*.attn_mask"), "a table that is computed again"
)


def merging_as_timm(values: Tensor) -> Tensor:
    """Swin's patch merging with its inputs in timm's order.

    Of its `reduction.weight`, `norm.weight` and `norm.bias`. MMSegmentation unfolds: for each
    channel the four pixels (00, 01, 10, 11); timm concatenates the channels of the pixels
    00, 10, 01, 11.

    Args:
        values: (..., 4 C).

    Returns:
        The same values, (..., 4 C).

    Example:
        >>> import torch
        >>> merging_as_timm(torch.arange(8)).tolist()
        [0, 4, 2, 6, 1, 5, 3, 7]
    """
    return values.reshape(*values.shape[:-1], -1, 2, 2).transpose(-1, -3).flatten(-3)


def merging_as_mmseg(values: Tensor) -> Tensor:
    """The way back from `merging_as_timm`.

    Example:
        >>> import torch
        >>> merging_as_mmseg(merging_as_timm(torch.arange(8))).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return values.reshape(*values.shape[:-1], 2, 2, -1).transpose(-1, -3).flatten(-3)


def skips_last(weight: Tensor) -> Tensor:
    """A U-Net's first convolution of a block with its inputs in our order.

    MMSegmentation concatenates the skip connection, then what comes up, half of the channels each;
    here what comes up is first.

    Args:
        weight: (out, 2 C, kh, kw).

    Returns:
        The same values.

    Example:
        >>> skips_last(torch.arange(4.0).reshape(1, 4, 1, 1)).flatten().tolist()
        [2.0, 3.0, 0.0, 1.0]
    """
    skip, path = weight.chunk(2, dim=1)
    return torch.cat([path, skip], dim=1)


@dataclass(frozen=True)
class Reordered(Adapter):
    """The same values in another order, for tensors of equal shape.

    Args:
        name: as it stands in the report.
        note: what stands where, for the report.
        order: the source's tensor -> ours.

    Example:
        >>> Reordered("skips_last", "", skips_last).fits((8, 4, 3, 3), (8, 4, 3, 3))
        True
    """

    name: str
    note: str
    order: Callable[[Tensor], Tensor] = field(repr=False)

    def fits(self, source: Shape, target: Shape) -> bool:
        """Equal shapes."""
        return source == target

    def apply(self, source: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002
        """See the class."""
        return self.order(source)


#: Pattern on the keys of their files -> what such a tensor needs.
REORDERED: Mapping[str, Adapter] = {
    "backbone.stages.*.downsample.*": Reordered(
        "patch_merging", "inputs in timm's order: pixel by pixel, not by channel", merging_as_timm
    ),
    "backbone.decoder.*.conv_block.convs.0.conv.weight": Reordered(
        "skips_last", "the skip connection's half behind what comes up", skips_last
    ),
}
