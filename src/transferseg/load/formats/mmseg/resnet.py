"""MMSegmentation's ResNet (V1b, V1c, V1d) and ResNeXt as timm's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import is_model

from transferseg.load.findings import Findings
from transferseg.load.formats.mmseg.config import Hints, refuse_unless
from transferseg.load.formats.mmseg.parts import TENSOR, Body, NotBuiltError, Part

KEYS = r"(stem\.[013467]|conv1|bn1|layer[1-4]\.\d+\.((conv|bn)[123]|downsample\.[012]))\." + TENSOR
WIDTHS = [64, 128, 256, 512]
#: has a third convolution a block, blocks of the stages -> timm's number
NUMBERS: Mapping[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
    (True, (3, 24, 36, 3)): 200,
}

#: strides and dilations of the stages -> output stride
DILATED: Mapping[tuple[tuple[int, ...], tuple[int, ...]], int] = {
    ((1, 2, 2, 2), (1, 1, 1, 1)): 32,
    ((1, 2, 2, 1), (1, 1, 1, 2)): 16,
    ((1, 2, 1, 1), (1, 1, 2, 4)): 8,
}


def is_resnet(part: Part) -> bool:
    """Whether a backbone begins as a ResNet does; HRNet has a `layer1` alone."""
    return part.has("layer1.0.conv1.weight") and not part.has("transition1.0.0.weight")


def read_resnet(part: Part, findings: Findings, hints: Hints) -> Body:  # noqa: ARG001
    """The encoder of a ResNet, of any depth and width.

    Raises:
        NotBuiltError: something that timm's ResNet has not.
    """
    part.refuse_strangers(KEYS, "its ResNet")
    refuse_unless(hints, "backbone", "style", (None, "pytorch"))
    refuse_unless(hints, "backbone", "multi_grid", (None,))
    bottleneck = part.has("layer1.0.conv3.weight")
    depths = tuple(part.count(f"layer{stage}.{{}}.conv1.weight") for stage in (1, 2, 3, 4))
    last = "conv3" if bottleneck else "conv2"
    channels = tuple(part.of(f"layer{stage}.0.{last}.weight", 4)[0] for stage in (1, 2, 3, 4))
    if bottleneck and any(width % 4 for width in channels):
        raise NotBuiltError(f"{part.prefix}layer*.0.conv3.weight give {channels} maps, no fourfold")
    planes = [width // 4 for width in channels] if bottleneck else list(channels)
    suffix, arguments, in_channels = _stem(part)
    name, more = _named(bottleneck, depths, suffix, arguments, _groups(part, planes, bottleneck))
    if planes != WIDTHS:
        more["channels"] = planes
    options = {"arguments": more} if more else {}
    return Body(name, channels, in_channels, "resnet", options)


def _stem(part: Part) -> tuple[str, dict[str, Any], int]:
    """Timm's letter of the stem ("c", "d" with averaging shortcuts), its arguments, channels."""
    averages = part.has("layer2.0.downsample.2.weight")
    if not part.has("stem.0.weight"):
        width, in_channels, *_ = part.of("conv1.weight", 4)
        if width != 64:
            raise NotBuiltError(f"{part.prefix}conv1.weight gives {width} maps, expected 64")
        return "", {"avg_down": True} if averages else {}, in_channels
    width, in_channels, *_ = part.of("stem.0.weight", 4)
    arguments: dict[str, Any] = {"stem_type": "deep", "stem_width": width}
    return "c", arguments | ({"avg_down": True} if averages else {}), in_channels


def _groups(part: Part, planes: list[int], bottleneck: bool) -> tuple[int, int]:
    """Groups of the 3x3 convolutions, and how wide one is at 64 planes.

    Raises:
        NotBuiltError: no number of groups.
    """
    if not bottleneck:
        return 1, 64
    width, inner, *_ = part.of("layer1.0.conv2.weight", 4)
    groups = width // inner
    if groups * inner != width:
        raise NotBuiltError(
            f"{part.prefix}layer1.0.conv2.weight has {width} maps of {inner} channels each, which "
            "is no number of groups"
        )
    return groups, width * 64 // (planes[0] * groups)


def _named(
    bottleneck: bool,
    depths: tuple[int, ...],
    suffix: str,
    arguments: dict[str, Any],
    groups: tuple[int, int],
) -> tuple[str, dict[str, Any]]:
    """Timm's name that says the most of it, and the arguments for the rest."""
    arguments = dict(arguments)
    usual = 50 if bottleneck else 18
    number = NUMBERS.get((bottleneck, depths), usual)
    if (bottleneck, depths) not in NUMBERS:
        arguments["layers"] = list(depths)
    begin, end = f"resnet{number}", ""
    if groups != (1, 64):
        begin, end = f"resnext{number}", f"_{groups[0]}x{groups[1]}d"
        if not is_model(begin + end):
            begin, end = f"resnet{number}", ""
            arguments |= {"cardinality": groups[0], "base_width": groups[1]}
    letter = "d" if suffix and "avg_down" in arguments else suffix
    if not letter or not is_model(begin + letter + end):
        return begin + end, arguments
    for said in ("stem_type", "avg_down"):
        arguments.pop(said, None)
    if arguments["stem_width"] == 32:
        del arguments["stem_width"]
    return begin + letter + end, arguments


def stride_and_style(hints: Hints) -> tuple[int | None, str | None]:
    """Output stride and way of dilating that the config says, where it does.

    Raises:
        NotBuiltError: strides and dilations of another kind.
    """
    strides = hints.whole("backbone", "strides")
    if strides is None:
        return None, None
    dilations = hints.whole("backbone", "dilations") or [1, 1, 1, 1]
    stride = DILATED.get((tuple(strides), tuple(dilations)))
    if stride is None:
        raise NotBuiltError(f"its config says strides {strides} with dilations {dilations}")
    if stride == 32 or hints.flag("backbone", "contract_dilation"):
        return stride, None
    if hints.number("backbone", "depth") in (18, 34):
        raise NotBuiltError("its config dilates basic blocks without contract_dilation")
    return stride, "smp"  # every block of a stage alike
