"""MMSegmentation's HRNet as timm's."""

from __future__ import annotations

from typing import Any

from timm.models.hrnet import cfg_cls

from transferseg.load.findings import Findings
from transferseg.load.formats.mmseg.config import Hints
from transferseg.load.formats.mmseg.parts import TENSOR, Body, NotBuiltError, Part

BLOCK = r"((conv|bn)[123]|downsample\.[01])"
KEYS = (
    rf"((conv|bn)[12]|layer1\.\d+\.{BLOCK}|transition[123](\.\d)+|"
    rf"stage[234]\.\d+\.(branches\.\d\.\d+\.{BLOCK}|fuse_layers(\.\d)+))\.{TENSOR}"
)
STEM = 64
#: timm's, as the sizes are called; the others are the same ones again
NAMES = tuple(name for name in cfg_cls if not name.endswith("ssld"))


def is_hrnet(part: Part) -> bool:
    """Whether a backbone is an HRNet."""
    return part.has("transition1.0.0.weight") and part.has("stage2.0.branches.0.0.conv1.weight")


def read_hrnet(part: Part, findings: Findings, hints: Hints) -> Body:  # noqa: ARG001
    """The encoder of an HRNet, of any width.

    Raises:
        NotBuiltError: something that timm's HRNet has not.
    """
    part.refuse_strangers(KEYS, "its HRNet")
    width, in_channels, *_ = part.of("conv1.weight", 4)
    if width != STEM:
        raise NotBuiltError(f"{part.prefix}conv1.weight gives {width} maps, expected {STEM}")
    stages = {"stage1": _stage(1, *_branch(part, "layer1."))}
    for number in (2, 3, 4):
        stages[f"stage{number}"] = _read_stage(part, f"stage{number}.")
    channels = tuple(stages["stage4"]["num_channels"])
    name = next((name for name in NAMES if _is(stages, cfg_cls[name])), None)
    options: dict[str, Any] = {"style": "mmseg"}
    if name is None:
        options["arguments"] = stages
    return Body(name or "hrnet_w18", channels, in_channels, "hrnet", options)


def _read_stage(part: Part, prefix: str) -> dict[str, Any]:
    modules = part.count(f"{prefix}{{}}.branches.0.0.conv1.weight")
    count = part.count(f"{prefix}0.branches.{{}}.0.conv1.weight")
    branches = [_branch(part, f"{prefix}0.branches.{index}.") for index in range(count)]
    blocks, channels, kinds = zip(*branches, strict=True) if branches else ((), (), ())
    if len(set(kinds)) != 1:
        raise NotBuiltError(f"the blocks of {part.prefix}{prefix}0.branches are of several kinds")
    return _stage(modules, list(blocks), list(channels), kinds[0])


def _branch(part: Part, prefix: str) -> tuple[Any, Any, str]:
    """Blocks, channels and kind of the blocks of a branch."""
    kind = "BOTTLENECK" if part.has(f"{prefix}0.conv3.weight") else "BASIC"
    channels = part.of(f"{prefix}0.conv1.weight", 4)[0]
    return part.count(prefix + "{}.conv1.weight"), channels, kind


def _stage(modules: int, blocks: Any, channels: Any, kind: str) -> dict[str, Any]:  # noqa: ANN401
    """A stage as timm's builder is told of it."""
    blocks = blocks if isinstance(blocks, list) else [blocks]
    channels = channels if isinstance(channels, list) else [channels]
    return {
        "num_modules": modules,
        "num_branches": len(channels),
        "block_type": kind,
        "num_blocks": blocks,
        "num_channels": channels,
        "fuse_method": "SUM",
    }


def _is(stages: dict[str, dict[str, Any]], known: dict[str, Any]) -> bool:
    """Whether these are the stages of a model of timm's."""
    return all(
        (list(value) if isinstance(value, tuple) else value) == stages[stage][name]
        for stage in stages
        for name, value in known[stage].items()
    )
