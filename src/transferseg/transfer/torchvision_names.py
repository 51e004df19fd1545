"""torchvision's names of classifiers as those of timm's models, where the two differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transferseg.transfer.adapters import Adapter, SameValues

#: Of batch norms, where torchvision's builder has another than timm's.
EPSILON = {"bn_eps": 0.001}
_SQUEEZE = {"fc1": "se.conv_reduce", "fc2": "se.conv_expand"}
#: Inside a block that widens first. Its squeeze-and-excitation stands at 2, or is not there.
_WIDENING = {
    **{r"0\.0": "conv_pw", r"0\.1": "bn1", r"1\.0": "conv_dw", r"1\.1": "bn2"},
    **{r"[23]\.0": "conv_pwl", r"[23]\.1": "bn3"},
    **{rf"2\.{old}": new for old, new in _SQUEEZE.items()},
}
#: Inside the first block, which does not.
_SEPARABLE = {
    **{r"0\.0": "conv_dw", r"0\.1": "bn1", r"[12]\.0": "conv_pw", r"[12]\.1": "bn2"},
    **{rf"1\.{old}": new for old, new in _SQUEEZE.items()},
}
_PLAIN = {r"0\.0": "conv", r"0\.1": "bn1"}
_FUSED = {r"0\.0": "conv_exp", r"0\.1": "bn1", r"1\.0": "conv_pwl", r"1\.1": "bn2"}
_STEM = {r"^features\.0\.0\.": "conv_stem.", r"^features\.0\.1\.": "bn1."}


@dataclass(frozen=True)
class FamilyNames:
    """How the names of a family of torchvision's become timm's.

    Attributes:
        rules: regular expression -> replacement, each applied in turn.
        adapters: pattern on torchvision's keys -> how such a tensor becomes timm's.
        recomputed: patterns on the keys of tables that are computed again.
        wants: pattern on torchvision's keys -> arguments without which timm's computes something
            else.
    """

    rules: Mapping[str, str]
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    recomputed: tuple[str, ...] = ()
    wants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _inside(where: str, names: Mapping[str, str]) -> dict[str, str]:
    """Rules for what a block holds, its own name being timm's already."""
    return {rf"^({where})\.block\.{old}\.": rf"\1.{new}." for old, new in names.items()}


def _placed(sizes: Sequence[int]) -> dict[str, str]:
    """Rules for blocks that are counted through, from 1, in stages of these sizes."""
    places = [(stage, block) for stage, size in enumerate(sizes) for block in range(size)]
    return {
        rf"^features\.{index}\.(block|conv)\.": rf"blocks.{stage}.{block}.block."
        for index, (stage, block) in enumerate(places, start=1)
    }


def _mobilenet_v2() -> FamilyNames:
    first = {r"0\.0": "conv_dw", r"0\.1": "bn1", "1": "conv_pw", "2": "bn2"}
    widening = {
        **{r"0\.0": "conv_pw", r"0\.1": "bn1", r"1\.0": "conv_dw", r"1\.1": "bn2"},
        **{"2": "conv_pwl", "3": "bn3"},
    }
    return FamilyNames(
        {
            **_STEM,
            r"^features\.18\.0\.": "conv_head.",
            r"^features\.18\.1\.": "bn2.",
            **_placed((1, 2, 3, 4, 3, 3, 1)),
            **_inside(r"blocks\.0\.0", first),
            **_inside(r"blocks\.\d\.\d", widening),
            r"^classifier\.1\.": "classifier.",
        }
    )


def _mobilenet_v3(sizes: Sequence[int]) -> FamilyNames:
    last = sum(sizes) + 1
    return FamilyNames(
        {
            **_STEM,
            rf"^features\.{last}\.0\.": f"blocks.{len(sizes)}.0.conv.",
            rf"^features\.{last}\.1\.": f"blocks.{len(sizes)}.0.bn1.",
            **_placed(sizes),
            **_inside(r"blocks\.0\.0", _SEPARABLE),
            **_inside(r"blocks\.\d\.\d", _WIDENING),
            r"^classifier\.0\.": "conv_head.",
            r"^classifier\.3\.": "classifier.",
        },
        {"classifier.0.weight": SameValues()},
        wants={"*": EPSILON},
    )


def _efficientnet(wants: str, *unwidened: Mapping[str, str]) -> FamilyNames:
    """Of the first stages what their blocks hold; those of the others widen.

    Args:
        wants: pattern on the keys of the networks whose batch norms have another epsilon.
        *unwidened: one a stage, from the first.
    """
    inside: dict[str, str] = {}
    for stage, names in enumerate(unwidened):
        inside |= _inside(rf"blocks\.{stage}\.\d+", names)
    return FamilyNames(
        {
            **_STEM,
            r"^features\.\d\.0\.(?!block)": "conv_head.",
            r"^features\.\d\.1\.(?!block)": "bn2.",
            **{rf"^features\.{k}\.(\d+)\.block": rf"blocks.{k - 1}.\1.block" for k in range(1, 9)},
            **inside,
            **_inside(r"blocks\.\d\.\d+", _WIDENING),
            r"^classifier\.1\.": "classifier.",
        },
        wants={wants: EPSILON},
    )


def _stages(name: str) -> dict[str, str]:
    """Rules for four stages at odd places, with what halves the map between them."""
    stages = {rf"^features\.{2 * k + 1}\.(\d+)\.": rf"{name}.{k}.blocks.\1." for k in range(4)}
    return stages | {rf"^features\.{2 * k}\.": f"{name}.{k}.downsample." for k in range(1, 4)}


def _convnext() -> FamilyNames:
    block = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}
    return FamilyNames(
        {
            r"^features\.0\.": "stem.",
            **_stages("stages"),
            **_inside(r"stages\.\d\.blocks\.\d+", block),
            r"\.layer_scale$": ".gamma",
            r"^classifier\.0\.": "head.norm.",
            r"^classifier\.2\.": "head.fc.",
        },
        {"*.layer_scale": SameValues()},
    )


def _swin() -> FamilyNames:
    return FamilyNames(
        {
            r"^features\.0\.0\.": "patch_embed.proj.",
            r"^features\.0\.2\.": "patch_embed.norm.",
            **_stages("layers"),
            r"\.mlp\.0\.": ".mlp.fc1.",
            r"\.mlp\.3\.": ".mlp.fc2.",
            r"^head\.": "head.fc.",
        },
        recomputed=("*.relative_position_index",),
    )


def _vit() -> FamilyNames:
    return FamilyNames(
        {
            r"^class_token$": "cls_token",
            r"^conv_proj\.": "patch_embed.proj.",
            r"^encoder\.pos_embedding$": "pos_embed",
            r"^encoder\.layers\.encoder_layer_(\d+)\.": r"blocks.\1.",
            r"\.ln_([12])\.": r".norm\1.",
            r"\.self_attention\.in_proj_": ".attn.qkv.",
            r"\.self_attention\.out_proj\.": ".attn.proj.",
            r"\.mlp\.(?:0|linear_1)\.": ".mlp.fc1.",
            r"\.mlp\.(?:3|linear_2)\.": ".mlp.fc2.",
            r"^encoder\.ln\.": "norm.",
            r"^heads\.head\.": "head.",
        }
    )


def _regnet() -> FamilyNames:
    inside = {r"proj\.0": "downsample.conv", r"proj\.1": "downsample.bn", r"f\.se\.": "se."}
    for index, branch in enumerate("abc", start=1):
        inside |= {
            rf"f\.{branch}\.0": f"conv{index}.conv",
            rf"f\.{branch}\.1": f"conv{index}.bn",
        }
    deepest = 40  # blocks of a stage; the largest of torchvision's has 17
    return FamilyNames(
        {
            r"^stem\.0\.": "stem.conv.",
            r"^stem\.1\.": "stem.bn.",
            **{
                rf"^trunk_output\.block(\d)\.block\d-{index}\.": rf"s\1.b{index + 1}."
                for index in range(deepest)
            },
            **{rf"^(s\d\.b\d+)\.{old}": rf"\1.{new}" for old, new in inside.items()},
            r"^fc\.": "head.fc.",
        }
    )


#: family -> its names
FAMILY_NAMES: Mapping[str, FamilyNames] = {
    "mobilenet_v2": _mobilenet_v2(),
    "mobilenet_v3_small": _mobilenet_v3((1, 2, 3, 2, 3)),
    "mobilenet_v3_large": _mobilenet_v3((1, 2, 3, 4, 2, 3)),
    # only from B5 on has the first stage a third block
    "efficientnet": _efficientnet("features.1.2.block.*", _SEPARABLE),
    "efficientnet_v2": _efficientnet("*", _PLAIN, _FUSED, _FUSED),
    "convnext": _convnext(),
    "swin": _swin(),
    "densenet": FamilyNames({r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.": r"\1\2."}),
    "vit": _vit(),
    "regnet": _regnet(),
}
