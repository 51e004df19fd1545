"""MMSegmentation's U-Net, a backbone there, as our plain encoder and U-Net decoder."""

from __future__ import annotations

from transferseg.load.findings import Findings
from transferseg.load.formats.mmseg.config import Hints, refuse_unless
from transferseg.load.formats.mmseg.parts import TENSOR, Body, NotBuiltError, Part
from transferseg.models.plain import PLAIN, plain_channels

KEYS = (
    rf"(encoder\.(0\.0|[1-4]\.1)\.convs\.[01]\.(conv|bn)|decoder\.[0-3]\.(conv_block\.convs\.[01]|"
    rf"upsample\.interp_upsample\.1)\.(conv|bn))\.{TENSOR}"
)
STAGES = 5


def is_unet(part: Part) -> bool:
    """Whether a backbone is a U-Net."""
    return part.has("encoder.0.0.convs.0.conv.weight") and any(
        key.startswith("decoder.0.") for key in part.shapes
    )


def read_unet(part: Part, findings: Findings, hints: Hints) -> Body:
    """The plain encoder of a U-Net, of any width.

    Raises:
        NotBuiltError: another number of stages, or another way up.
    """
    part.refuse_strangers(KEYS, "its U-Net with five stages and bilinear upsampling")
    refuse_unless(hints, "backbone", "strides", (None, [1] * STAGES))
    refuse_unless(hints, "backbone", "downsamples", (None, [True] * (STAGES - 1)))
    width, in_channels, *_ = part.of("encoder.0.0.convs.0.conv.weight", 4)
    channels = plain_channels(width)
    for stage, wanted in enumerate(channels):
        key = f"encoder.{stage}.{min(stage, 1)}.convs.0.conv.weight"
        if part.of(key, 4)[0] != wanted:
            raise NotBuiltError(
                f"{part.prefix}{key} gives {part.of(key, 4)[0]} maps, expected {wanted}"
            )
    findings.fixed("output_stride", 2 ** (STAGES - 1), shown_by="its stages")
    name = next((name for name, usual in PLAIN.items() if usual == width), "plain")
    options = {} if name in PLAIN and PLAIN[name] == width else {"arguments": {"width": width}}
    return Body(name, channels, in_channels, "unet", options)
