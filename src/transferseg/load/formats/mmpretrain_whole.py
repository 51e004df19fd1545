"""MMPretrain's classifiers over ViT, Swin and HRNet as timm's, whole: what their tensors tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transferseg.load.findings import Findings
from transferseg.load.formats.mmseg.config import Hints, refuse_unless
from transferseg.load.formats.mmseg.hrnet import is_hrnet, read_hrnet
from transferseg.load.formats.mmseg.parts import TENSOR, NotBuiltError, Part
from transferseg.load.formats.mmseg.swin import KEYS as SWIN_KEYS
from transferseg.load.formats.mmseg.swin import is_swin, swin_arguments
from transferseg.load.formats.mmseg.vit import arguments_of_vit, check_norm

BLOCK = r"((conv|bn)[123]|downsample\.[01])"
NECK = (
    rf"(0\.)?(increase_layers\.[0-3]\.0\.{BLOCK}|"
    rf"(downsample_layers\.[0-2]|final_layer)\.(conv|bn))\.{TENSOR}"
)
LAST_CONV, MAPS = "final_layer.conv.weight", 2048
ENDS = r"(weight|bias)"
VIT_KEYS = (
    rf"cls_token|pos_embed|patch_embed\.projection\.{ENDS}|ln[12]\.{ENDS}|"
    rf"layers\.\d+\.(ln[12]\.{ENDS}|attn\.(qkv|proj|attn\.out_proj)\.{ENDS}|"
    rf"attn\.attn\.in_proj_{ENDS}|ffn\.layers\.(0\.0|1)\.{ENDS})"
)
#: width and blocks -> heads, of MMPretrain's sizes whose heads are not 64 wide
HEADS: Mapping[tuple[int, int], int] = {(768, 8): 8, (1280, 32): 16, (1408, 40): 16}
#: its "arch" where it is the config alone that tells them: MoCo v3's small has 32 wide ones
NAMED_HEADS: Mapping[str | None, int] = {"mocov3-s": 12, "mocov3-small": 12}
#: What timm calls the neck that joins HRNet's scales.
OF_HRNET = {
    r"^neck\.0\.": "neck.",  # the first of a list of necks, as in the published configs
    r"^neck\.increase_layers\.": "backbone.incre_modules.",
    r"^neck\.downsample_layers\.(\d)\.conv\.": r"backbone.downsamp_modules.\1.0.",
    r"^neck\.downsample_layers\.(\d)\.bn\.": r"backbone.downsamp_modules.\1.1.",
    r"^neck\.final_layer\.conv\.": "backbone.final_layer.0.",
    r"^neck\.final_layer\.bn\.": "backbone.final_layer.1.",
}


@dataclass(frozen=True)
class Whole:
    """A classifier as timm builds it.

    Attributes:
        encoder: timm's name.
        in_channels: that the first convolution reads.
        options: of the encoder.
    """

    encoder: str
    in_channels: int
    options: Mapping[str, Any]


def _vit(part: Part, neck: Part, findings: Findings, hints: Hints) -> Whole:
    part.refuse_strangers(VIT_KEYS, "its ViT")
    neck.refuse_strangers("(?!)", "a classifier over ViT")
    refuse_unless(hints, "backbone", "interpolate_mode", (None, "bicubic"))
    check_norm(hints)
    width, in_channels, *patch = part.of("patch_embed.projection.weight", 4)
    depth = part.count("layers.{}.ln1.weight")
    bias = part.has("layers.0.attn.qkv.bias") or part.has("layers.0.attn.attn.in_proj_bias")
    heads = NAMED_HEADS.get(hints.text("backbone", "arch"), HEADS.get((width, depth)))
    name, arguments = arguments_of_vit(
        part, findings, hints, (width, depth, *patch), bias=bias, heads=heads
    )
    pooled = part.has("ln2.weight")
    if pooled == part.has("ln1.weight"):
        raise NotBuiltError(
            "of backbone.ln1 (after the last block) and backbone.ln2 (after the pooling) it has "
            f"{'both' if pooled else 'none'}, expected one"
        )
    refuse_unless(hints, "backbone", "out_type", (None, "avg_featmap" if pooled else "cls_token"))
    if pooled:
        arguments["global_pool"] = "avg"
    options: dict[str, Any] = {"style": "mmpretrain"}
    if arguments:
        options["arguments"] = arguments
    return Whole(name, in_channels, options)


def _swin(part: Part, neck: Part, findings: Findings, hints: Hints) -> Whole:  # noqa: ARG001
    known = rf"{SWIN_KEYS}|norm\.{ENDS}|.*\.attn_mask"
    part.refuse_strangers(known, "its Swin")
    neck.refuse_strangers("(?!)", "a classifier over Swin")
    refuse_unless(hints, "backbone", "pad_small_map", (None, False))
    refuse_unless(hints, "backbone", "out_indices", (None, [3]))
    name, arguments, in_channels = swin_arguments(part)
    options: dict[str, Any] = {"style": "mmpretrain"}
    if arguments:
        options["arguments"] = arguments
    return Whole(name, in_channels, options)


def _hrnet(part: Part, neck: Part, findings: Findings, hints: Hints) -> Whole:
    body = read_hrnet(part, findings, hints)
    neck.refuse_strangers(NECK, "the neck of an HRNet classifier")
    last = "0.final_layer.conv.weight" if neck.has("0.final_layer.conv.weight") else LAST_CONV
    if neck.of(last, 4)[0] != MAPS:
        raise NotBuiltError(f"neck.{last} gives {neck.of(last, 4)[0]} maps, expected {MAPS}")
    arguments = {**body.options.get("arguments", {}), "head_conv_bias": False}
    return Whole(body.encoder, body.in_channels, {"arguments": arguments})


@dataclass(frozen=True)
class Kind:
    """A kind of backbone whose classifiers are timm's.

    Attributes:
        title: as it stands in messages.
        known: whether a backbone is of this kind.
        read: the classifier, from the backbone and the neck; raises NotBuiltError.
        layer: timm's name of the linear layer.
        rules: regular expression on keys -> timm's name behind `backbone.`, before OpenMMLab's own.
    """

    title: str
    known: Callable[[Part], bool]
    read: Callable[[Part, Part, Findings, Hints], Whole]
    layer: str
    rules: Mapping[str, str]


KINDS = (
    Kind(
        "a ViT",
        lambda part: part.has("layers.0.ln1.weight"),
        _vit,
        "head.",
        {r"^backbone\.ln2\.": "backbone.fc_norm."},
    ),
    Kind("a Swin", is_swin, _swin, "head.fc.", {r"^backbone\.norm3\.": "backbone.norm."}),
    Kind("an HRNet", is_hrnet, _hrnet, "classifier.", OF_HRNET),
)


def kind_of(part: Part) -> Kind | None:
    """Which of the kinds a backbone is, by the names that OpenMMLab alone gives it.

    Example:
        >>> kind_of(Part("backbone.", {"layers.0.ln1.weight": (8,)})).title
        'a ViT'
    """
    return next((kind for kind in KINDS if kind.known(part)), None)
