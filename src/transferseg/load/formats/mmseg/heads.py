"""MMSegmentation's decode heads as decoders, and its auxiliary FCN head."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transferseg.errors import some
from transferseg.load.findings import Findings
from transferseg.load.formats.mmseg.config import Hints, refuse_unless
from transferseg.load.formats.mmseg.parts import TENSOR, Body, NotBuiltError, Part

CONV = rf"\.(conv|bn)\.{TENSOR}"
SEPARABLE = rf"\.(depth|point)wise_conv{CONV}"
LAST = r"conv_seg\.(weight|bias)|"
POOLING = {
    r"^decode_head\.psp_modules\.": "decoder.pooling.pools.",
    r"^decode_head\.bottleneck\.": "decoder.pooling.bottleneck.",
}
ATROUS = {
    r"^decode_head\.image_pool\.": "decoder.aspp.image_pool.",
    r"^decode_head\.aspp_modules\.": "decoder.aspp.branches.",
}
#: Of the last convolution of every head, and of the auxiliary head.
COMMON = {
    r"^decode_head\.conv_seg\.": "head.",
    r"^auxiliary_head\.conv_seg\.": "auxiliary_head.head.",
    r"^auxiliary_head\.conv_cat\.": "auxiliary_head.decoder.concat.",
    r"^auxiliary_head\.convs\.": "auxiliary_head.decoder.convs.",
}


@dataclass(frozen=True)
class Given:
    """What a head is described from."""

    part: Part
    body: Body
    findings: Findings
    hints: Hints

    def read(self, key: str) -> None:
        """Refuse a head that reads another map than the deepest, or than all of HRNet's.

        Raises:
            NotBuiltError: naming the convolution that reads it.
        """
        found, body = self.part.of(key, 4)[1], self.body
        wanted = sum(body.channels) if body.parallel else body.channels[-1]
        if found != wanted:
            raise NotBuiltError(
                f"{self.part.prefix}{key} reads {found} channels, but the deepest map has {wanted}"
            )

    def align_corners(self) -> bool:
        """As the keyword or the config says; False but in the 769 networks."""
        said = self.hints.flag("decode_head", "align_corners")
        why = "as in all but the networks for 769 x 769 crops"
        return self.findings.open("align_corners", False, why=why, metadata=said)

    def dropout(self, usual: float) -> float:
        """Of the training alone."""
        said = self.hints.number("decode_head", "dropout_ratio")
        said = None if said is None else max(0.0, float(said))
        return self.findings.open("dropout", usual, why="the published configs", metadata=said)

    def pools(self) -> list[int]:
        """Sides of the grids of the pyramid pooling, of which the keys tell the number."""
        count = self.part.count("psp_modules.{}.1.conv.weight")
        said = self.hints.whole("decode_head", "pool_scales")
        if count != 4 and not (said or self.findings.asked.get("pools")):
            raise NotBuiltError(
                f"it pools over {count} grids, whose sides no key tells: say pools="
            )
        pools = self.findings.open("pools", [1, 2, 3, 6], why="the paper's", metadata=said)
        if len(pools) != count:
            raise NotBuiltError(
                f"it pools over {count} grids, but pools= has {len(pools)}: {pools}"
            )
        return list(pools)

    def rates(self, output_stride: int) -> list[int]:
        """Of the atrous convolutions."""
        said = self.hints.whole("decode_head", "dilations")
        usual = [96 * k // output_stride for k in (1, 2, 3)]
        known = said[1:] if said and said[0] == 1 else None
        return list(self.findings.open("rates", usual, why="the paper's", metadata=known))


@dataclass(frozen=True)
class Head:
    """A kind of decode head.

    Attributes:
        architecture: of ours.
        only: a key that none of the kinds after it has.
        keys: pattern of its keys, in full.
        rules: regular expression on keys -> ours.
        options: the decoder's, from the shapes; it is told the output stride too.
        output_stride: of a ResNet under it, in the published configs.
    """

    architecture: str
    only: str
    keys: str
    options: Callable[[Given, int], dict[str, Any]]
    output_stride: int = 8
    rules: Mapping[str, str] = field(default_factory=dict)


def _fcn(given: Given, output_stride: int) -> dict[str, Any]:  # noqa: ARG001
    part, found = given.part, given.findings
    channels, _, kernel, _ = part.of("convs.0.conv.weight", 4)
    given.read("convs.0.conv.weight")
    refuse_unless(given.hints, "decode_head", "dilation", (None, 1))
    return {
        "channels": found.fixed("channels", channels),
        "num_convs": found.fixed("num_convs", part.count("convs.{}.conv.weight")),
        "kernel_size": found.fixed("kernel_size", kernel),
        "concat": found.fixed("concat", part.has("conv_cat.conv.weight")),
        "dropout": given.dropout(0.0 if given.body.parallel else 0.1),
        "align_corners": given.align_corners(),
    }


def _psp(given: Given, output_stride: int) -> dict[str, Any]:  # noqa: ARG001
    given.read("psp_modules.0.1.conv.weight")
    return _pooled(given)


def _upernet(given: Given, output_stride: int) -> dict[str, Any]:  # noqa: ARG001
    keys = [f"lateral_convs.{index}.conv.weight" for index in range(3)]
    keys.append("psp_modules.0.1.conv.weight")
    found = tuple(given.part.of(key, 4)[1] for key in keys)
    if found != given.body.channels[-4:]:
        raise NotBuiltError(
            f"it reads maps of {found} channels, the backbone's {given.body.channels}"
        )
    return _pooled(given)


def _pooled(given: Given) -> dict[str, Any]:
    channels = given.part.of("bottleneck.conv.weight", 4)[0]
    return {
        "channels": given.findings.fixed("channels", channels),
        "pools": given.pools(),
        "dropout": given.dropout(0.1),
        "align_corners": given.align_corners(),
    }


def _deeplabv3(given: Given, output_stride: int) -> dict[str, Any]:
    given.read("image_pool.1.conv.weight")
    channels = given.part.of("image_pool.1.conv.weight", 4)[0]
    return {
        "channels": given.findings.fixed("channels", channels),
        "layout": given.findings.fixed("layout", "bottleneck"),
        "rates": given.rates(output_stride),
        "dropout": given.dropout(0.1),
        "align_corners": given.align_corners(),
    }


def _deeplabv3plus(given: Given, output_stride: int) -> dict[str, Any]:
    low, read, *_ = given.part.of("c1_bottleneck.conv.weight", 4)
    if read != given.body.channels[0]:
        raise NotBuiltError(
            f"{given.part.prefix}c1_bottleneck.conv.weight reads {read} channels, but the map at "
            f"stride 4 has {given.body.channels[0]}"
        )
    options = _deeplabv3(given, output_stride)
    return {**options, "low_channels": given.findings.fixed("low_channels", low)}


#: Tried in this order.
HEADS = (
    Head(
        "upernet",
        "fpn_bottleneck.conv.weight",
        rf"{LAST}(psp_modules\.\d+\.1|bottleneck|(lateral|fpn)_convs\.[0-2]|fpn_bottleneck){CONV}",
        _upernet,
        32,
        {
            **POOLING,
            r"^decode_head\.lateral_convs\.": "decoder.laterals.",
            r"^decode_head\.fpn_convs\.": "decoder.convs.",
            r"^decode_head\.fpn_bottleneck\.": "decoder.bottleneck.",
        },
    ),
    Head(
        "deeplabv3plus",
        "sep_bottleneck.0.depthwise_conv.conv.weight",
        rf"{LAST}(image_pool\.1|aspp_modules\.0|bottleneck|c1_bottleneck){CONV}|"
        rf"(aspp_modules\.[1-3]|sep_bottleneck\.[01]){SEPARABLE}",
        _deeplabv3plus,
        8,
        {
            **ATROUS,
            r"^decode_head\.bottleneck\.": "decoder.bottleneck.",
            r"^decode_head\.c1_bottleneck\.": "decoder.reduce.",
            r"^decode_head\.sep_bottleneck\.": "decoder.convs.",
            r"^(decoder\..*\.)(depth|point)wise_conv\.": r"\1\2wise.",
        },
    ),
    Head(
        "deeplabv3",
        "image_pool.1.conv.weight",
        rf"{LAST}(image_pool\.1|aspp_modules\.[0-3]|bottleneck){CONV}",
        _deeplabv3,
        8,
        {**ATROUS, r"^decode_head\.bottleneck\.": "decoder."},
    ),
    Head(
        "psp",
        "psp_modules.0.1.conv.weight",
        rf"{LAST}(psp_modules\.\d+\.1|bottleneck){CONV}",
        _psp,
        8,
        POOLING,
    ),
    Head(
        "fcn",
        "convs.0.conv.weight",
        rf"{LAST}(convs\.\d+|conv_cat){CONV}",
        _fcn,
        8,
        {
            r"^decode_head\.convs\.": "decoder.convs.",
            r"^decode_head\.conv_cat\.": "decoder.concat.",
        },
    ),
)


def head_of(part: Part, hints: Hints) -> Head:
    """The kind of a decode head.

    Raises:
        NotBuiltError: another kind, or tensors that such a head has not; they are named.
    """
    known = ", ".join(head.architecture for head in HEADS)
    head = next((head for head in HEADS if part.has(head.only)), None)
    kind = hints.text("decode_head", "type")
    named = f" ({kind})" if kind else ""
    if head is None:
        for like in reversed(HEADS):  # what is there may be a part of one
            if all(re.fullmatch(like.keys, key) for key in part.shapes):
                raise NotBuiltError(f"there is no {part.prefix}{like.only}")
        keys = some(part.prefix + key for key in part.shapes)
        raise NotBuiltError(f"its decode head{named} is none of {known}: its keys are {keys}")
    part.refuse_strangers(head.keys, f"a decode head of the kind {head.architecture!r}{named}")
    refuse_unless(hints, "decode_head", "multi_grid", (None,))
    return head


def unet_options(given: Given) -> dict[str, Any]:
    """Of the U-Net decoder, whose last convolutions are an FCN head there.

    Raises:
        NotBuiltError: a head that this decoder has not.
    """
    part, width = given.part, given.body.channels[0]
    channels, read, kernel, _ = part.of("convs.0.conv.weight", 4)
    if (channels, read, kernel) != (width, width, 3) or part.has("conv_cat.conv.weight"):
        raise NotBuiltError(
            f"{part.prefix}convs.0.conv.weight is {part.of('convs.0.conv.weight', 4)}; over this "
            f"U-Net {width} channels to {width}, 3x3, without conv_cat, are built"
        )
    return {
        "upsampling": given.findings.fixed("upsampling", "bilinear"),
        "num_convs": given.findings.fixed("num_convs", part.count("convs.{}.conv.weight")),
        "dropout": given.dropout(0.1),
    }


def auxiliary_of(given: Given, classes: int) -> tuple[dict[str, Any], str]:
    """The options of the auxiliary head, or none and why it is left out.

    Args:
        given: of `auxiliary_head.`.
        classes: rows of the main head.

    Raises:
        NotBuiltError: an FCN head that is not whole, or does not fit the others.
    """
    part, body = given.part, given.body
    if given.findings.asked.get("auxiliary") is False:
        given.findings.open("auxiliary", False, why="")
        return {}, "given by the caller"
    try:
        part.refuse_strangers(rf"{LAST}(convs\.\d+|conv_cat){CONV}", "an auxiliary FCN head")
    except NotBuiltError as refused:
        return {}, str(refused)
    if body.kind == "unet":
        return {}, "it reads a map of the U-Net's decoder"
    channels, read, kernel, _ = part.of("convs.0.conv.weight", 4)
    if (rows := part.of("conv_seg.weight", 4)[0]) != classes:
        raise NotBuiltError(
            f"{part.prefix}conv_seg.weight has {rows} classes, the main head {classes}: to leave "
            "it out say auxiliary=False"
        )
    options = {
        "channels": channels,
        "num_convs": part.count("convs.{}.conv.weight"),
        "kernel_size": kernel,
        "concat": part.has("conv_cat.conv.weight"),
    }
    if body.parallel and read == sum(body.channels):
        return options, ""
    fitting = [i - 4 for i, width in enumerate(body.channels[-4:]) if width == read]
    if not fitting:
        raise NotBuiltError(
            f"{part.prefix}convs.0.conv.weight reads {read} channels, but the maps have "
            f"{body.channels}: to leave it out say auxiliary=False"
        )
    index = fitting[0]
    if len(fitting) > 1:
        said = given.hints.whole("auxiliary_head", "in_index")
        said_index = said[0] - 4 if said and 0 <= said[0] < 4 else None
        why = "the configs of ViT and DeiT read the last map"
        index = given.findings.open("auxiliary_index", -1, why=why, metadata=said_index)
    return {"index": index, **options}, ""
