"""MMSegmentation's ViT and DeiT, with and without its neck, as timm's."""

from __future__ import annotations

from math import isqrt
from typing import Any

from transferseg.load.findings import Findings
from transferseg.load.formats.mmseg.config import Hints, refuse_unless
from transferseg.load.formats.mmseg.parts import TENSOR, Body, NotBuiltError, Part, opened

KEYS = (
    r"cls_token|pos_embed|patch_embed\.projection\.(weight|bias)|ln1\.(weight|bias)|"
    r"layers\.\d+\.(ln[12]\.(weight|bias)|attn\.attn\.in_proj_(weight|bias)|"
    r"(attn\.attn\.out_proj|ffn\.layers\.0\.0|ffn\.layers\.1)\.(weight|bias))"
)
NECK = rf"(lateral_convs|convs)\.[0-3]\.conv\.{TENSOR}"
#: width -> timm's name, blocks and heads
NAMES = {
    192: ("vit_tiny_patch16_224", 12, 3),
    384: ("vit_small_patch16_224", 12, 6),
    768: ("vit_base_patch16_224", 12, 12),
    1024: ("vit_large_patch16_224", 24, 16),
}
MAPS = 4


def is_vit(part: Part) -> bool:
    """Whether a backbone is a ViT in the names of MMSegmentation."""
    return part.has("layers.0.ln1.weight") and part.has("pos_embed")


def read_vit(part: Part, neck: Part, findings: Findings, hints: Hints) -> Body:
    """The encoder of a ViT, of any size.

    Args:
        part: the backbone.
        neck: what stands above it; empty where nothing does.
        findings: what keywords decide.
        hints: what the file says.

    Raises:
        NotBuiltError: something that timm's ViT has not.
    """
    part.refuse_strangers(KEYS, "its ViT")
    neck.refuse_strangers(NECK, "its neck")
    refuse_unless(hints, "backbone", "interpolate_mode", (None, "bicubic"))
    refuse_unless(hints, "backbone", "with_cls_token", (None, True))
    refuse_unless(hints, "neck", "scales", (None, [4, 2, 1, 0.5]))
    check_norm(hints)
    width, in_channels, *patch = part.of("patch_embed.projection.weight", 4)
    depth = part.count("layers.{}.ln1.weight")
    bias = part.has("layers.0.attn.attn.in_proj_bias")
    name, arguments = arguments_of_vit(part, findings, hints, (width, depth, *patch), bias=bias)
    options: dict[str, Any] = {"style": "mmseg"}
    if arguments:
        options["arguments"] = arguments
    options |= {
        "pyramid": "multilevel" if neck.shapes else "none",
        "layers": _layers(findings, hints, depth),
        "final_norm": part.has("ln1.weight"),
        "patch_bias": part.has("patch_embed.projection.bias"),
    }
    if neck.shapes:
        width = options["channels"] = neck.of("convs.0.conv.weight", 4)[0]
    return Body(name, (width,) * len(options["layers"]), in_channels, "vit", options)


def check_norm(hints: Hints) -> None:
    """Refuse a config with another epsilon than 1e-6, with which ViTs are published.

    Raises:
        NotBuiltError: naming it.
    """
    norm = hints.values("backbone", "norm_cfg")
    if norm and norm.get("eps", 1e-5) != 1e-6:
        raise NotBuiltError(
            f"its config norms with {dict(norm)}, which is not built: eps must be 1e-6"
        )


def arguments_of_vit(
    part: Part,
    findings: Findings,
    hints: Hints,
    sizes: tuple[int, ...],
    *,
    bias: bool,
    heads: int | None = None,
) -> tuple[str, dict[str, Any]]:
    """Timm's name, and the arguments for what it does not say.

    Args:
        part: the backbone.
        findings: what keywords decide.
        hints: what the file says.
        sizes: width, number of blocks, height and width of a patch.
        bias: whether query, key and value have one.
        heads: of the published network of that size, where they are not 64 wide.

    Raises:
        NotBuiltError: sizes that no ViT of timm's has, or that leave the heads open.
    """
    width, depth, *patch = sizes
    name, blocks, usual_heads = NAMES.get(width, NAMES[768])
    arguments: dict[str, Any] = {}
    if width not in NAMES:
        arguments["embed_dim"] = width
    if depth != blocks:
        arguments["depth"] = depth
    heads = _heads(findings, hints, width, heads)
    if heads != usual_heads:
        arguments["num_heads"] = heads
    hidden = part.of("layers.0.ffn.layers.0.0.weight", 2)[0]
    if hidden != 4 * width:
        arguments["mlp_ratio"] = hidden // width if hidden % width == 0 else hidden / width
    if patch != [16, 16]:
        if patch[0] != patch[1]:
            raise NotBuiltError(
                f"{part.prefix}patch_embed.projection.weight is not square: {patch}"
            )
        arguments["patch_size"] = patch[0]
    if not bias:
        arguments["qkv_bias"] = False
    size = _size(part, hints, patch[0])
    if size != 224:
        arguments["img_size"] = size
    return name, arguments


def _heads(findings: Findings, hints: Hints, width: int, usual: int | None) -> int:
    arch = hints.values("backbone", "arch").get("num_heads")  # MMPretrain's way to say it
    said = hints.number("backbone", "num_heads") or (arch if type(arch) is int else None)
    known = findings.asked.get("num_heads") or findings.asked.get("encoder_options") or said
    if width % 64 and not known and not usual:
        raise NotBuiltError(f"a width of {width} does not tell the number of heads: say num_heads=")
    heads: int = opened(
        findings, "num_heads", usual or max(1, width // 64),
        why="the published network of that size" if usual else "64 channels a head",
        metadata=None if said is None else int(said),
    )  # fmt: skip
    if type(heads) is not int or heads < 1 or width % heads:
        raise NotBuiltError(f"a width of {width} has no {heads!r} heads: say num_heads=")
    return heads


def _size(part: Part, hints: Hints, patch: int) -> int | list[int]:
    """Sides of the image that the position embedding is for."""
    cells = part.of("pos_embed", 3)[1] - 1
    said = hints.whole("backbone", "img_size") or []
    said = said * 2 if len(said) == 1 else said
    if len(said) == 2 and (said[0] // patch) * (said[1] // patch) == cells:
        return said[0] if said[0] == said[1] else said
    side = isqrt(max(cells, 0))
    if side < 1 or side * side != cells:
        raise NotBuiltError(
            f"{part.prefix}pos_embed has {cells} positions, which make no square grid"
        )
    return side * patch


def _layers(findings: Findings, hints: Hints, depth: int) -> list[int]:
    said = hints.whole("backbone", "out_indices")
    if said is not None:
        said = [depth - 1 if index == -1 else index for index in said]
    usual = [depth * quarter // MAPS - 1 for quarter in range(1, MAPS + 1)]
    why = "the last block of each quarter"
    layers = opened(findings, "layers", usual, why=why, metadata=said)
    wanted = isinstance(layers, (list, tuple)) and len(layers) == MAPS
    if not wanted or any(type(i) is not int or not 0 <= i < depth for i in layers):
        raise NotBuiltError(f"layers {layers!r} are not {MAPS} of its blocks 0 to {depth - 1}")
    return list(layers)
