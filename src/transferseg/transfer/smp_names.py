"""segmentation-models-pytorch's names of its own encoders as timm's, where the two differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transferseg.transfer.torchvision_names import FAMILY_NAMES

#: Behind this stand the names of the encoder, in smp and here.
_THEIRS, _OURS = r"^encoder\.", "encoder.model."


@dataclass(frozen=True)
class EncoderNames:
    """How the names of a family of smp's own encoders become ours.

    Attributes:
        rules: regular expression -> replacement, each applied in turn.
        sign: a key that only files of this family have.
    """

    rules: Mapping[str, str]
    sign: str


def _efficientnet(repeats: Sequence[int]) -> EncoderNames:
    """Blocks are counted through there, from 0; here they stand in stages of these sizes."""
    gate = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    first = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw", **gate}
    widening = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", **gate}
    widening |= {"_project_conv": "conv_pwl"}
    places = [(stage, block) for stage, size in enumerate(repeats) for block in range(size)]
    stems = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    return EncoderNames(
        {
            **{rf"{_THEIRS}{old}\.": f"{_OURS}{new}." for old, new in stems.items()},
            **{
                rf"{_THEIRS}_blocks\.{index}\.": f"{_OURS}blocks.{stage}.{block}."
                for index, (stage, block) in enumerate(places)
            },
            **{rf"^({_OURS}blocks\.0\.\d+)\.{k}\.": rf"\1.{v}." for k, v in first.items()},
            **{rf"^({_OURS}blocks\.\d\.\d+)\.{k}\.": rf"\1.{v}." for k, v in widening.items()},
            # the first stage does not widen, and so its blocks have no norm of that
            rf"^({_OURS}blocks\.0\.\d+)\._bn([12])\.": r"\1.bn\2.",
            **{
                rf"^({_OURS}blocks\.[1-9]\.\d+)\._bn{number}\.": rf"\1.bn{number + 1}."
                for number in range(3)
            },
        },
        "encoder._conv_stem.weight",
    )


def _mobilenet_v2() -> EncoderNames:
    """Those of torchvision behind the prefix."""
    bare = {rf"{_THEIRS}(?=features\.)": "", **FAMILY_NAMES["mobilenet_v2"].rules}
    again = {r"^(conv_stem|bn1|blocks|conv_head|bn2)\.": rf"{_OURS}\1."}
    return EncoderNames({**bare, **again}, "encoder.features.0.0.weight")


#: pattern on keys that go nowhere -> why
REASONS: Mapping[str, str] = {
    "classification_head.*": "a classification head on the encoder",
    **{
        f"encoder.{layer}.*": "a layer of the encoder on which no feature map depends"
        for layer in ("_conv_head", "_bn1", "conv_head", "bn2")
    },
}
#: smp's encoders of that family -> their names. Others are called as timm's are.
FAMILIES: Mapping[str, EncoderNames] = {
    "efficientnet-b0": _efficientnet((1, 2, 2, 3, 3, 4, 1)),
    "efficientnet-b1, b2": _efficientnet((2, 3, 3, 4, 4, 5, 2)),
    "efficientnet-b3": _efficientnet((2, 3, 3, 5, 5, 6, 2)),
    "efficientnet-b4": _efficientnet((2, 4, 4, 6, 6, 8, 2)),
    "efficientnet-b5": _efficientnet((3, 5, 5, 7, 7, 9, 3)),
    "efficientnet-b6": _efficientnet((3, 6, 6, 8, 8, 11, 3)),
    "efficientnet-b7": _efficientnet((4, 7, 7, 10, 10, 13, 4)),
    "mobilenet_v2": _mobilenet_v2(),
}
