"""torchvision: classifiers, FCN and DeepLabV3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transferseg.load import encoders
from transferseg.load.findings import Findings
from transferseg.load.formats import timm as timm_format
from transferseg.load.formats import timm_config
from transferseg.load.formats.base import Description, Format
from transferseg.load.formats.torchvision_families import (
    describe_family,
    expected_input,
    family_naming,
    family_of,
)
from transferseg.load.listing import Listing, Shape
from transferseg.load.timm_index import models_of
from transferseg.spec import ModelSpec
from transferseg.transfer import SourceFormat
from transferseg.transfer.sources import ENCODER_PREFIX

#: torchvision's classifiers whose names are timm's.
SHARED = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
)
#: torchvision's families that are not read -> keys that together only they have.
NOT_READ: Mapping[str, tuple[str, ...]] = {
    "LRASPP": ("backbone.0.0.weight", "classifier.low_classifier.weight"),
    "DeepLabV3 over MobileNetV3": ("backbone.0.0.weight", "classifier.0.convs.0.0.weight"),
    "Swin V2": ("features.0.0.weight", "features.1.0.attn.logit_scale"),
    "MaxViT": ("stem.0.0.weight", "blocks.0.layers.0.layers.MBconv.layers.pre_norm.weight"),
    "MNASNet": ("layers.0.weight", "layers.8.0.layers.0.weight"),
    "ShuffleNetV2": ("conv1.0.weight", "stage2.0.branch1.0.weight", "conv5.0.weight"),
    "SqueezeNet": ("features.0.weight", "features.3.squeeze.weight"),
    "GoogLeNet": ("conv1.conv.weight", "inception3a.branch1.conv.weight"),
    "Inception V3": ("Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch1x1.conv.weight"),
    "AlexNet": ("features.10.weight", "classifier.1.weight", "classifier.6.weight"),
}
WHY: Mapping[str, str] = {
    "Swin V2": (
        ": its biases of query, key and value are one tensor, of which timm's has the first and "
        "the last third as two; save the model in timm's names"
    )
}
#: architecture of ours -> prefixes of torchvision's head -> ours.
HEADS: Mapping[str, Mapping[str, str]] = {
    "fcn": {
        "classifier.0.": "decoder.convs.0.conv.",
        "classifier.1.": "decoder.convs.0.bn.",
        "classifier.4.": "head.",
    },
    "deeplabv3": {
        "classifier.0.": "decoder.aspp.",
        "classifier.1.": "decoder.conv.",
        "classifier.2.": "decoder.bn.",
        "classifier.4.": "head.",
    },
    "classifier": {"classifier.": "head.", "features.": f"{ENCODER_PREFIX}features."},
}
#: prefixes of torchvision's auxiliary head -> ours.
AUXILIARY = {
    "aux_classifier.0.": "auxiliary_head.decoder.convs.0.conv.",
    "aux_classifier.1.": "auxiliary_head.decoder.convs.0.bn.",
    "aux_classifier.4.": "auxiliary_head.head.",
}


@dataclass(frozen=True)
class TorchvisionFormat(Format):
    """Classifiers in the names that timm shares, VGG's, and segmentation models over ResNets."""

    name: str = field(default="torchvision", init=False)

    def detect(self, listing: Listing) -> bool:
        """`backbone.` with a segmentation head, VGG's linear layers, or names that timm shares."""
        if _segments(listing) or _is_vgg(listing) or _not_read(listing) or family_of(listing):
            return True
        if timm_config.named(listing) is not None:
            return False
        return not set(SHARED).isdisjoint(models_of(listing.shapes))

    def describe(self, listing: Listing, findings: Findings) -> Description:
        """A classifier, or the segmentation model that the head's names tell."""
        if family := _not_read(listing):
            why = WHY.get(family, "")
            return Description(None, missing=f"torchvision's {family} is not read{why}")
        if _segments(listing):
            return _segmenter(listing, findings)
        if _is_vgg(listing):
            return _vgg(listing, findings)
        if (name := family_of(listing)) is not None:
            return describe_family(listing, findings, name)
        found = encoders.candidates(listing.shapes)
        encoder = findings.encoder(
            found,
            convention=next((name for name in found if name in SHARED), None),
            why="torchvision has no other",
            also=sorted(set(models_of(listing.shapes)) - set(found)),
        )
        return timm_format.describe(listing, findings, found, encoder, expected=expected_input)

    def naming(self, listing: Listing, spec: ModelSpec) -> SourceFormat:
        """The encoder's names are timm's, or become them; the head's become ours."""
        if (family := family_of(listing)) is not None:
            return family_naming(family)
        if spec.architecture == "classifier" and spec.decoder.get("head") != "vgg":
            return timm_format.naming(self.name, spec)
        return SourceFormat(
            self.name,
            {**HEADS[spec.architecture], **AUXILIARY, "backbone.": ENCODER_PREFIX},
            leave=("*.num_batches_tracked",),
        )


def _segments(listing: Listing) -> bool:
    fcn = listing.has("classifier.0.weight", "classifier.1.running_mean", "classifier.4.weight")
    deeplab = listing.has("classifier.0.convs.0.0.weight", "classifier.4.weight")
    if not listing.has("backbone.conv1.weight") or not (fcn or deeplab):
        return False
    first = "classifier.0.weight" if fcn else "classifier.0.convs.0.0.weight"
    read = ("backbone.conv1.weight", first, "classifier.4.weight")
    return all(len(listing.shapes[key]) == 4 for key in read)


def _is_vgg(listing: Listing) -> bool:
    linear = [f"classifier.{index}.weight" for index in (0, 3, 6)]
    dims = {"features.0.weight": 4, **dict.fromkeys(linear, 2)}
    return all(len(listing.shapes.get(key, ())) == count for key, count in dims.items())


def _not_read(listing: Listing) -> str | None:
    return next((family for family, keys in NOT_READ.items() if listing.has(*keys)), None)


def _auxiliary(listing: Listing, read: int) -> bool | dict[str, int]:
    """Whether there is an auxiliary head, and how wide where it is not a quarter of what it reads.

    Args:
        listing: of a segmentation model.
        read: channels of the deepest feature map; the auxiliary head's map has half of them.
    """
    if not listing.has("aux_classifier.0.weight"):
        return False
    width = listing.shapes["aux_classifier.0.weight"][0]
    return True if width == read // 8 else {"channels": width}


def _choose(findings: Findings, body: Mapping[str, Shape]) -> str | None:
    """The encoder whose names these are; of look-alikes the one that torchvision has."""
    found = encoders.candidates(body, encoder=True)
    known = next((name for name in found if name in SHARED or name.startswith("vgg")), None)
    return findings.encoder(found, convention=known, why="torchvision has no other")


def _segmenter(listing: Listing, findings: Findings) -> Description:
    body = listing.under("backbone.")
    encoder = _choose(findings, body)
    fcn = listing.has("classifier.0.weight")
    architecture = "fcn" if fcn else "deeplabv3"
    count, channels = listing.shapes["classifier.4.weight"][0], body["conv1.weight"][1]
    if encoder is None:
        found = tuple(encoders.candidates(body, encoder=True))
        why = "its backbone is no ResNet that is known"
        return Description(architecture, None, count, channels, candidates=found, missing=why)
    first = listing.shapes["classifier.0.weight" if fcn else "classifier.0.convs.0.0.weight"]
    why = "torchvision's builder"
    options: dict[str, Any] = {
        "channels": findings.fixed("channels", first[0]),
        "align_corners": findings.open("align_corners", False, why=why),
    }
    if fcn:
        options |= {"num_convs": 1, "concat": False}
    else:
        options["rates"] = findings.open("rates", [12, 24, 36], why=why)
    given, input_why = expected_input(channels)
    spec = findings.spec(
        architecture,
        encoder,
        findings.classes(count),
        given,
        input_why=input_why,
        auxiliary=findings.fixed("auxiliary", _auxiliary(listing, first[1])),
        output_stride=findings.open("output_stride", 8, why=why),
        dilation=findings.open("dilation", "timm", why="torchvision's way, which timm's is"),
        decoder=options,
    )
    return Description(architecture, encoder, count, channels, spec)


def _vgg(listing: Listing, findings: Findings) -> Description:
    body = {k: s for k, s in listing.shapes.items() if k.startswith("features.")}
    encoder = _choose(findings, body)
    count, channels = listing.shapes["classifier.6.weight"][0], body["features.0.weight"][1]
    if encoder is None:
        return Description("classifier", None, count, channels, missing="its VGG is not known")
    given, input_why = expected_input(channels)
    spec = findings.spec(
        "classifier",
        encoder,
        findings.classes(count),
        given,
        input_why=input_why,
        decoder={
            "head": "vgg",
            "head_width": findings.fixed("head_width", listing.shapes["classifier.0.weight"][0]),
            "dropout": findings.open("dropout", 0.5, why="torchvision's builder"),
        },
    )
    return Description("classifier", encoder, count, channels, spec)
