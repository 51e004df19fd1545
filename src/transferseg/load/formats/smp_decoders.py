"""segmentation-models-pytorch's decoders: which is ours, with which options, and what is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from transferseg.load.findings import Findings
from transferseg.load.formats.smp_encoders import SmpEncoder
from transferseg.load.listing import Listing

#: fields of the spec, or why the model is not built
Fields: TypeAlias = dict[str, Any] | str


@dataclass(frozen=True)
class Layout:
    """A decoder of smp's that we build.

    Attributes:
        title: smp's class.
        architecture: ours.
        key: by which it is recognised.
        options: what of the spec the listing tells.
        norm: prefix of one batch norm; empty where smp has no choice of it.
        depth: of the encoder, by smp's default; None where the options see to others.
        upsampling: of the logits, by smp's default; None where it follows the stride.
        rename: prefix -> prefix, in the decoder.
    """

    title: str
    architecture: str
    key: str
    options: Callable[[Listing, Findings, SmpEncoder], Fields]
    norm: str = ""
    depth: int | None = 5
    upsampling: int | None = None
    rename: Mapping[str, str] = field(default_factory=dict)


def refusal(listing: Listing, layout: Layout) -> str | None:
    """What of the listing or of its config is not built, as the middle of a sentence."""
    config = listing.config()
    if norm := _other_norm(listing, layout):
        return f"with decoder_use_norm={norm}"
    if config.get("decoder_interpolation", "nearest") != "nearest":
        return f"with decoder_interpolation={config['decoder_interpolation']!r}"
    if config.get("activation") not in (None, "identity", "sigmoid", *_SOFT):
        return f"with activation={config['activation']!r}"
    factor = config.get("upsampling")
    if factor is not None and layout.upsampling is not None and factor != layout.upsampling:
        return f"with upsampling={factor!r}, whose logits have not the image's size,"
    depth = config.get("encoder_depth", layout.depth)
    if layout.depth is not None and depth != layout.depth:
        return f"with encoder_depth={depth!r}"
    more = [k for k, v in config.items() if v is not None and not k.startswith(_SETTLED)]
    return f"with {more[0]}={config[more[0]]!r}" if more else None


#: What else the config of smp's classes holds; other names are arguments of a timm encoder.
_SETTLED = ("_", "encoder_", "decoder_", "psp_", *("activation", "aux_params", "classes"),
            *("in_channels", "upsampling"))  # fmt: skip
_SOFT = ("softmax", "softmax2d", "logsoftmax")


def _other_norm(listing: Listing, layout: Layout) -> str | None:
    """Another norm than batch norm in the decoder, named as far as the file tells."""
    if not layout.norm:
        return None
    config = listing.config()
    told = config.get("decoder_use_norm", config.get("decoder_use_batchnorm", True))
    counted = listing.has(f"{layout.norm}num_batches_tracked")
    elsewhere = any(
        key.startswith("encoder.") and key.endswith("num_batches_tracked") for key in listing.shapes
    )
    if told not in (True, "batchnorm") and told != {"type": "batchnorm"}:
        return repr(told)
    if not listing.has(f"{layout.norm}running_mean"):
        return "another than batch norm"
    return "'inplace'" if elsewhere and not counted else None


def not_built(listing: Listing) -> str:
    """The name of an architecture of smp's that is not built."""
    told = listing.config().get("_model_class")
    which = told if isinstance(told, str) else of_another(listing)
    return f"smp's {which} is not built" if which else "its decoder is none of smp's that are known"


def of_another(listing: Listing) -> str | None:
    """Which of `NOT_BUILT` a listing is of; MAnet shares some of Unet's names."""
    return next((title for title, key in NOT_BUILT.items() if listing.has(key)), None)


def _unet(listing: Listing, findings: Findings, encoder: SmpEncoder) -> Fields:
    widths: list[int] = []
    while (key := f"decoder.blocks.{len(widths)}.conv1.0.weight") in listing.shapes:
        widths.append(listing.shapes[key][0])
    depth = listing.config().get("encoder_depth", len(widths))
    if not 2 < len(widths) < 6 or depth != len(widths):
        return f"smp's Unet with encoder_depth={depth!r} and {len(widths)} blocks is not built"
    center = listing.has("decoder.center.0.0.weight")
    attended = listing.has("decoder.blocks.0.attention1.attention.sSE.0.weight")
    decoder: dict[str, Any] = {"channels": findings.fixed("channels", widths)}
    if stride := findings.fixed("stride", None if depth == 5 else 2**depth):
        decoder["stride"] = stride
    if findings.fixed("center", center):
        decoder["center"] = True
    if findings.fixed("attention", "scse" if attended else None):
        decoder["attention"] = "scse"
    if any(stride == 1 for _, stride in encoder.maps()):
        decoder["full_resolution_skip"] = findings.fixed("full_resolution_skip", False)
    if not any(stride == 2 for _, stride in encoder.maps()):
        decoder["rounding"] = findings.fixed("rounding", "down")
    return {"decoder": decoder, "output_stride": findings.fixed("output_stride", 32)}


def _deeplab(key: str, stride: int, **layout: Any) -> Callable[..., Fields]:  # noqa: ANN401
    def options(listing: Listing, findings: Findings, encoder: SmpEncoder) -> Fields:
        body = key if listing.has(f"{key}convs.0.0.weight") else "decoder.0."
        width, read = listing.shapes[f"{body}convs.0.0.weight"][:2]
        separable = listing.has(f"{body}convs.1.0.1.weight")
        if separable is not ("layout" in layout):
            return f"smp's decoder with decoder_aspp_separable={separable} is not built"
        if read != encoder.maps()[-1][0]:
            return "smp's DeepLab with encoder_depth below 5 is not built"
        style = "timm" if encoder.universal else "smp"
        if style == "smp" and not (encoder.styled or str(encoder.name).startswith("resne")):
            return f"smp's way of dilating {encoder.name!r} is not built"
        if encoder.averages():
            return f"timm's way of dilating {encoder.name!r}, whose shortcuts average, is not built"
        config, why = listing.config(), "smp's builder"
        rates = config.get("decoder_atrous_rates")
        decoder = {
            **layout,
            "channels": findings.fixed("channels", width),
            "rates": findings.open("rates", [12, 24, 36], why=why, metadata=rates),
            "dropout": findings.open(
                "dropout", 0.5, why=why, metadata=config.get("decoder_aspp_dropout")
            ),
            "align_corners": findings.fixed("align_corners", True),
        }
        given = config.get("encoder_output_stride")
        return {
            "decoder": decoder,
            "output_stride": findings.open("output_stride", stride, why=why, metadata=given),
            "dilation": findings.fixed("dilation", style),
        }

    return options


def _psp(listing: Listing, findings: Findings, encoder: SmpEncoder) -> Fields:
    read = listing.shapes["decoder.psp.blocks.0.pool.1.0.weight"][1]
    strides = [stride for width, stride in encoder.maps() if width == read]
    if 8 not in strides:
        return "smp's PSPNet with another encoder_depth than 3 is not built"
    config = listing.config()
    decoder = {
        "channels": findings.fixed("channels", listing.shapes["decoder.conv.0.weight"][0]),
        "stride": findings.fixed("stride", 8),
        "dropout": findings.open(
            "dropout", 0.2, why="smp's builder", metadata=config.get("psp_dropout")
        ),
    }
    return {"decoder": decoder, "output_stride": findings.fixed("output_stride", 32)}


def _upernet(listing: Listing, findings: Findings, encoder: SmpEncoder) -> Fields:  # noqa: ARG001
    if not listing.has("decoder.feature_norms.3.weight"):
        return "smp's UPerNet with encoder_depth below 5 is not built"
    width = listing.shapes["decoder.fusion_block.0.weight"][0]
    decoder = {"channels": findings.fixed("channels", width)}
    return {"decoder": decoder, "output_stride": findings.fixed("output_stride", 32)}


DECODERS: tuple[Layout, ...] = (
    Layout(
        "Unet",
        "unet",
        "decoder.blocks.0.conv1.0.weight",
        _unet,
        "decoder.blocks.0.conv1.1.",
        depth=None,
    ),
    Layout(
        "PSPNet",
        "psp_smp",
        "decoder.psp.blocks.0.pool.1.0.weight",
        _psp,
        "decoder.conv.1.",
        depth=3,
        upsampling=8,
    ),
    Layout(
        "UPerNet",
        "upernet_smp",
        "decoder.feature_norms.0.weight",
        _upernet,
        "decoder.fusion_block.1.",
        upsampling=4,
        rename={"decoder.": "decoder.body."},
    ),
    Layout(
        "DeepLabV3Plus",
        "deeplabv3plus",
        "decoder.aspp.0.convs.0.0.weight",
        _deeplab("decoder.aspp.0.", 16, layout="projection"),
        upsampling=4,
        rename={
            "decoder.aspp.0.": "decoder.aspp.",
            "decoder.aspp.1.": "decoder.bottleneck.0.",
            "decoder.aspp.2.": "decoder.bottleneck.1.",
            "decoder.block1.0.": "decoder.reduce.conv.",
            "decoder.block1.1.": "decoder.reduce.bn.",
            "decoder.block2.": "decoder.convs.",
        },
    ),
    *(
        Layout(
            "DeepLabV3",
            "deeplabv3",
            f"{aspp}convs.0.0.weight",
            _deeplab("decoder.aspp.", 8),
            # before smp 0.4 the decoder was one Sequential
            rename={
                "decoder.0.": "decoder.aspp.",
                "decoder.1.": "decoder.conv.",
                "decoder.2.": "decoder.bn.",
            },
        )
        for aspp in ("decoder.aspp.", "decoder.0.")
    ),
)
#: smp's architectures that are not built -> a key that tells them.
NOT_BUILT: Mapping[str, str] = {
    "UnetPlusPlus": "decoder.blocks.x_0_0.conv1.0.weight",
    "FPN": "decoder.p5.weight",
    "Linknet": "decoder.blocks.0.block.0.0.weight",
    "MAnet": "decoder.center.top_conv.weight",
    "PAN": "decoder.fpa.branch1.1.conv.weight",
    "Segformer": "decoder.mlp_stage.0.linear.weight",
    "DPT": "decoder.reassemble_blocks.0.project_to_feature_dim.weight",
    "UPerNet of smp before 0.5": "decoder.fpn_stages.0.conv_norm_relu.0.weight",
}
