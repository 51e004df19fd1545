"""MMSegmentation's Swin as timm's."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from transferseg.load.findings import Findings
from transferseg.load.formats.mmseg.config import Hints, refuse_unless
from transferseg.load.formats.mmseg.parts import Body, NotBuiltError, Part

ENDS = r"(weight|bias)"
KEYS = (
    rf"patch_embed\.(projection|norm)\.{ENDS}|norm[0-3]\.{ENDS}|"
    rf"stages\.[0-3]\.(downsample\.(norm\.{ENDS}|reduction\.weight)|"
    rf"blocks\.\d+\.(norm[12]\.{ENDS}|attn\.w_msa\.((qkv|proj)\.{ENDS}|relative_position_\w+)|"
    rf"ffn\.layers\.(0\.0|1)\.{ENDS}))"
)
TABLE = "attn.w_msa.relative_position_bias_table"
#: width, blocks, heads, window -> timm's name
NAMES: Mapping[tuple[int, tuple[int, ...], tuple[int, ...], int], str] = {
    (96, (2, 2, 6, 2), (3, 6, 12, 24), 7): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2), (3, 6, 12, 24), 7): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2), (4, 8, 16, 32), 7): "swin_base_patch4_window7_224",
    (128, (2, 2, 18, 2), (4, 8, 16, 32), 12): "swin_base_patch4_window12_384",
    (192, (2, 2, 18, 2), (6, 12, 24, 48), 7): "swin_large_patch4_window7_224",
    (192, (2, 2, 18, 2), (6, 12, 24, 48), 12): "swin_large_patch4_window12_384",
}


def is_swin(part: Part) -> bool:
    """Whether a backbone is a Swin in OpenMMLab's names."""
    return part.has(f"stages.0.blocks.0.{TABLE}")


def read_swin(part: Part, findings: Findings, hints: Hints) -> Body:  # noqa: ARG001
    """The encoder of a Swin, of any size and window.

    Raises:
        NotBuiltError: something that timm's Swin has not.
    """
    part.refuse_strangers(KEYS, "its Swin")
    refuse_unless(hints, "backbone", "out_indices", (None, [0, 1, 2, 3]))
    name, arguments, in_channels = swin_arguments(part)
    options: dict[str, Any] = {"style": "mmseg"}
    if arguments:
        options["arguments"] = arguments
    width = part.of("patch_embed.projection.weight", 4)[0]
    return Body(name, tuple(width * 2**stage for stage in range(4)), in_channels, "swin", options)


def swin_arguments(part: Part) -> tuple[str, dict[str, Any], int]:
    """Timm's name of a Swin in OpenMMLab's names, arguments for the rest, and image channels.

    Raises:
        NotBuiltError: tensors are missing, or a window is not square.
    """
    width, in_channels, *_ = part.of("patch_embed.projection.weight", 4)
    stages = range(4)
    depths = tuple(part.count(f"stages.{stage}.blocks.{{}}.norm1.weight") for stage in stages)
    tables = [part.of(f"stages.{stage}.blocks.0.{TABLE}", 2) for stage in stages]
    heads = tuple(table[1] for table in tables)
    window = (isqrt(tables[0][0]) + 1) // 2
    if (2 * window - 1) ** 2 != tables[0][0]:
        raise NotBuiltError(f"{part.prefix}stages.0.blocks.0.{TABLE} is of no square window")
    name, arguments = _named(width, depths, heads, window)
    hidden = part.of("stages.0.blocks.0.ffn.layers.0.0.weight", 2)[0]
    if hidden != 4 * width:
        arguments["mlp_ratio"] = hidden / width
    if not part.has("stages.0.blocks.0.attn.w_msa.qkv.bias"):
        arguments["qkv_bias"] = False
    return name, arguments, in_channels


def _named(
    width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int
) -> tuple[str, dict[str, Any]]:
    """Timm's name that says the most of it, and the arguments for the rest."""
    if name := NAMES.get((width, depths, heads, window)):
        return name, {}
    if name := NAMES.get((width, depths, heads, 7)):
        return name, {"window_size": window}
    arguments = {"embed_dim": width, "depths": list(depths), "num_heads": list(heads)}
    return "swin_tiny_patch4_window7_224", {**arguments, "window_size": window}
