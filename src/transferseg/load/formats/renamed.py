"""What a file's tensors are called in timm's names, and which of timm's builders makes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any, TypeAlias

from transferseg.load.listing import Shape
from transferseg.load.timm_index import bare, models_of
from transferseg.transfer import SourceFormat
from transferseg.transfer.naming import name_keys
from transferseg.transfer.resampling import REGISTERS_PLACED
from transferseg.transfer.sources import ENCODER_PREFIX

#: What timm's builder of a name is given: the name, and arguments where they differ from its own.
Build: TypeAlias = tuple[str, dict[str, Any]]
#: timm's models that compute what the papers' do, without options of timm's own.
PLAIN_NAMES = re.compile(
    r"resnet(18|34|50|101|152)|convnext_(tiny|small|base|large|xlarge)"
    r"|vit_(tiny|small|base|large|huge|giant)_patch\d+_(\d+|(reg4_)?dinov2)"
    r"|swin_(tiny|small|base|large)_patch4_window\d+_\d+"
)


def timm_shapes(shapes: Mapping[str, Shape], scheme: SourceFormat) -> dict[str, Shape]:
    """The shapes of a timm model's tensors, from a file in another naming.

    Parts that make no tensor are left out, and so is what the naming says goes nowhere; the heads
    that an encoder does without stay.

    Example:
        >>> from transferseg.transfer import SOURCES
        >>> parts = {f"encoder.layer.0.attention.attention.{p}.bias": (8,) for p in
        ...          ("query", "key", "value")}
        >>> timm_shapes(parts, SOURCES["transformers vit"])
        {'blocks.0.attn.qkv.bias': (24,)}
    """
    asked = {}
    for key in shapes:
        if (name := scheme.target_key(key)).startswith(ENCODER_PREFIX) and not _nowhere(
            key, scheme
        ):
            asked[key] = name.removeprefix(ENCODER_PREFIX)
    return dict(name_keys(asked, shapes).shapes)


def _nowhere(key: str, scheme: SourceFormat) -> bool:
    why = scheme.why_unused(key)
    return why is not None and not why.startswith(f"{scheme.name} table")


def _depth(shapes: Mapping[str, Shape], prefix: str) -> int:
    """How many modules are counted under a prefix."""
    numbers = {k.removeprefix(prefix).split(".")[0] for k in shapes if k.startswith(prefix)}
    return len(numbers)


def vit(shapes: Mapping[str, Shape], heads: int) -> Build:
    """A ViT, or a DINOv2 where it has layer scale: its size from its tensors.

    Args:
        shapes: in timm's names.
        heads: of the attention, which no shape tells.

    Raises:
        KeyError: tensors that every ViT has are missing.

    Example:
        >>> import timm, torch
        >>> from transferseg.load.timm_index import bare, shapes_of
        >>> name, arguments = vit(shapes_of(bare("vit_tiny_patch16_224")), 3)
        >>> name, arguments["embed_dim"], arguments["img_size"]
        ('vit_base_patch16_224', 192, 224)
    """
    width, _, patch, _ = shapes["patch_embed.proj.weight"]
    wide = shapes["blocks.0.mlp.fc1.weight"][0]
    name, registers = "vit_base_patch16_224", shapes.get("reg_token", (1, 0, width))[1]
    if "blocks.0.ls1.gamma" in shapes:
        gated = shapes["blocks.0.mlp.fc2.weight"][1] != wide
        name = "vit_giant_patch14_dinov2" if gated else "vit_base_patch14_dinov2"
    return name, {
        **({"reg_tokens": registers, **REGISTERS_PLACED} if registers else {}),
        "img_size": isqrt(shapes["pos_embed"][1] - 1) * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": _depth(shapes, "blocks."),
        "num_heads": heads,
        "mlp_ratio": wide / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
    }


def swin(shapes: Mapping[str, Shape]) -> Build:
    """A Swin of four stages; the tables of its windows tell heads and window.

    The image size, which nothing in the weights depends on, is that at which the last stage's map
    is one window, so that no window is built smaller than its table.

    Raises:
        KeyError: tensors that every Swin has are missing.

    Example:
        >>> from transferseg.load.timm_index import bare, shapes_of
        >>> swin(shapes_of(bare("swin_tiny_patch4_window7_224")))[1]["num_heads"]
        [3, 6, 12, 24]
    """
    width, _, patch, _ = shapes["patch_embed.proj.weight"]
    tables = [
        shapes[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(4)
    ]
    window = (isqrt(tables[0][0]) + 1) // 2
    return "swin_tiny_patch4_window7_224", {
        "img_size": patch * 8 * window,
        "patch_size": patch,
        "window_size": window,
        "embed_dim": width,
        "depths": [_depth(shapes, f"layers.{stage}.blocks.") for stage in range(4)],
        "num_heads": [heads for _, heads in tables],
        "mlp_ratio": shapes["layers.0.blocks.0.mlp.fc1.weight"][0] / width,
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in shapes,
    }


def convnext(shapes: Mapping[str, Shape]) -> Build:
    """A ConvNeXt with layer scale.

    Raises:
        KeyError: tensors that every ConvNeXt has are missing.

    Example:
        >>> from transferseg.load.timm_index import bare, shapes_of
        >>> convnext(shapes_of(bare("convnext_atto")))[1]["dims"]
        [40, 80, 160, 320]
    """
    return "convnext_tiny", {
        "patch_size": shapes["stem.0.weight"][2],
        "depths": [_depth(shapes, f"stages.{stage}.blocks.") for stage in range(4)],
        "dims": [shapes[f"stages.{stage}.blocks.0.conv_dw.bias"][0] for stage in range(4)],
    }


def shortest(build: Build, shapes: Mapping[str, Shape]) -> Build:
    """The same by a name of timm's alone, where it has one of that size.

    Args:
        build: as one of the functions above gives it.
        shapes: in timm's names.

    Example:
        >>> from transferseg.load.timm_index import bare, shapes_of
        >>> shapes = shapes_of(bare("vit_tiny_patch16_224"))
        >>> shortest(vit(shapes, 3), shapes), shortest(vit(shapes, 4), shapes)[0]
        (('vit_tiny_patch16_224', {}), 'vit_base_patch16_224')
    """
    heads, placed = build[1].get("num_heads"), "reg_token" in shapes
    for name in models_of(unplaced(shapes)):
        if PLAIN_NAMES.fullmatch(name):
            blocks = getattr(bare(name), "blocks", None)
            if not blocks or blocks[0].attn.num_heads == heads:
                return name, dict(REGISTERS_PLACED) if placed else {}
    return build


def unplaced(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes that timm's model of a name with registers has: no position but the patches'.

    Others stay as they are.

    Example:
        >>> unplaced({"reg_token": (1, 4, 8), "pos_embed": (1, 10, 8)})["pos_embed"]
        (1, 9, 8)
    """
    positions = shapes.get("pos_embed", ())
    if "reg_token" not in shapes or len(positions) != 3:
        return dict(shapes)
    return {**shapes, "pos_embed": (positions[0], positions[1] - 1, positions[2])}


def resnet(shapes: Mapping[str, Shape]) -> Build:
    """A ResNet with the 7x7 stem, of basic blocks or bottlenecks.

    Raises:
        KeyError: tensors that every ResNet has are missing.

    Example:
        >>> from transferseg.load.timm_index import bare, shapes_of
        >>> resnet(shapes_of(bare("resnet34")))
        ('resnet18', {'layers': [3, 4, 6, 3], 'channels': [64, 128, 256, 512]})
    """
    name = "resnet50" if "layer1.0.conv3.weight" in shapes else "resnet18"
    return name, {
        "layers": [_depth(shapes, f"layer{stage}.") for stage in range(1, 5)],
        "channels": [shapes[f"layer{stage}.0.conv1.weight"][0] for stage in range(1, 5)],
    }
