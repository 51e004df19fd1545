"""torchvision's names of the families that timm names otherwise, as timm's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from torch import Tensor

from transferseg.transfer.adapters import Adapter, Shape

#: What of a block of MobileNetV2 and EfficientNet is where: (torchvision's, timm's).
Block = Sequence[tuple[str, str]]
#: Depths of the stages of MobileNetV2, whose blocks torchvision counts through.
MOBILENET_DEPTHS = (1, 2, 3, 4, 3, 3, 1)


@dataclass(frozen=True)
class Flatten(Adapter):
    """The same values along one axis.

    Example:
        >>> import torch
        >>> tuple(Flatten().apply(torch.zeros(4, 1, 1), torch.zeros(4)).shape)
        (4,)
    """

    name: str = field(default="flatten", init=False)
    note: str = field(default="axes of length one dropped", init=False)

    def fits(self, source: Shape, target: Shape) -> bool:
        """One axis with as many values as the source has."""
        return target == (prod(source),)

    def apply(self, source: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002
        """See the class."""
        return source.flatten()


def swin() -> dict[str, str]:
    """Swin: stages and mergings in one list, each merging before its stage in timm."""
    rules = {r"^features\.0\.0\.": "patch_embed.proj.", r"^features\.0\.2\.": "patch_embed.norm."}
    for stage in range(4):
        rules[rf"^features\.{2 * stage + 1}\."] = f"layers.{stage}.blocks."
        if stage:
            rules[rf"^features\.{2 * stage}\."] = f"layers.{stage}.downsample."
    return {**rules, r"\.mlp\.0\.": ".mlp.fc1.", r"\.mlp\.3\.": ".mlp.fc2.", r"^head\.": "head.fc."}


def convnext() -> dict[str, str]:
    """ConvNeXt: stages and downsamplings in one list."""
    rules = {r"^features\.0\.": "stem."}
    for stage in range(4):
        rules[rf"^features\.{2 * stage + 1}\.(\d+)\."] = rf"stages.{stage}.blocks.\1."
        if stage:
            rules[rf"^features\.{2 * stage}\."] = f"stages.{stage}.downsample."
    names = ("conv_dw", "norm", "mlp.fc1", "mlp.fc2")
    inside = zip((0, 2, 3, 5), names, strict=True)
    rules |= {rf"\.block\.{index}\.": f".{name}." for index, name in inside}
    ends = {r"^classifier\.0\.": "head.norm.", r"^classifier\.2\.": "head.fc."}
    return {**rules, r"\.layer_scale$": ".gamma", **ends}


def vit() -> dict[str, str]:
    """ViT: a MultiheadAttention in torch's own names, linear layers of two versions."""
    return {
        r"^conv_proj\.": "patch_embed.proj.",
        r"^class_token$": "cls_token",
        r"^encoder\.pos_embedding$": "pos_embed",
        r"^encoder\.ln\.": "norm.",
        r"^heads\.head\.": "head.",
        r"^encoder\.layers\.encoder_layer_(\d+)\.": r"blocks.\1.",
        r"\.ln_(\d)\.": r".norm\1.",
        r"\.self_attention\.in_proj_": ".attn.qkv.",
        r"\.self_attention\.out_proj\.": ".attn.proj.",
        r"\.mlp\.(?:0|linear_1)\.": ".mlp.fc1.",
        r"\.mlp\.(?:3|linear_2)\.": ".mlp.fc2.",
    }


def mobilenet_v2() -> dict[str, str]:
    """MobileNetV2: blocks counted through."""
    plain = (("0.0", "conv_dw"), ("0.1", "bn1"), ("1", "conv_pw"), ("2", "bn2"))
    expanded = (
        *(("0.0", "conv_pw"), ("0.1", "bn1"), ("1.0", "conv_dw"), ("1.1", "bn2")),
        *(("2", "conv_pwl"), ("3", "bn3")),
    )
    rules: dict[str, str] = {}
    index = 1
    for stage, depth in enumerate(MOBILENET_DEPTHS):
        for block in range(depth):
            inside = expanded if stage else plain
            rules |= _block(rf"features\.{index}\.conv", f"blocks.{stage}.{block}", inside)
            index += 1
    return {**rules, **_ends(index)}


def efficientnet() -> dict[str, str]:
    """EfficientNet B0 to B4 (from B5 on its batch norms have another epsilon than timm's)."""
    squeeze = (("fc1", "se.conv_reduce"), ("fc2", "se.conv_expand"))
    plain = (
        *(("0.0", "conv_dw"), ("0.1", "bn1"), ("2.0", "conv_pw"), ("2.1", "bn2")),
        *((f"1.{theirs}", ours) for theirs, ours in squeeze),
    )
    expanded = (
        *(("0.0", "conv_pw"), ("0.1", "bn1"), ("1.0", "conv_dw"), ("1.1", "bn2")),
        *(("3.0", "conv_pwl"), ("3.1", "bn3")),
        *((f"2.{theirs}", ours) for theirs, ours in squeeze),
    )
    rules: dict[str, str] = {}
    for stage in range(7):
        inside = expanded if stage else plain
        rules |= _block(rf"features\.{stage + 1}\.(\d+)\.block", rf"blocks.{stage}.\1", inside)
    return {**rules, **_ends(8)}


def densenet() -> dict[str, str]:
    """DenseNet as torchvision's files have it; its own loader drops this point too."""
    return {r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.": r"\1\2."}


def _block(theirs: str, ours: str, inside: Block) -> dict[str, str]:
    return {rf"^{theirs}\.{a.replace('.', chr(92) + '.')}\.": f"{ours}.{b}." for a, b in inside}


def _ends(last: int) -> dict[str, str]:
    """The stem, the last convolution and the classifier around the blocks."""
    return {
        r"^features\.0\.0\.": "conv_stem.",
        r"^features\.0\.1\.": "bn1.",
        rf"^features\.{last}\.0\.": "conv_head.",
        rf"^features\.{last}\.1\.": "bn2.",
        r"^classifier\.1\.": "classifier.",
    }


#: family -> pattern on keys of networks that are not to be taken for timm's -> why.
REFUSED: Mapping[str, Mapping[str, str]] = {
    "EfficientNet": {
        "features.1.2.block.*": "from EfficientNet-B5 on torchvision's batch norms have epsilon "
        "0.001 where timm's have 0.00001; for an encoder that has it too (bn_eps), rename= the keys"
    }
}
#: family -> its rules, in the words of `SourceFormat.rules`.
FAMILIES: Mapping[str, Mapping[str, str]] = {
    "Swin": swin(),
    "ConvNeXt": convnext(),
    "ViT": vit(),
    "MobileNetV2": mobilenet_v2(),
    "EfficientNet": efficientnet(),
    "DenseNet": densenet(),
}
