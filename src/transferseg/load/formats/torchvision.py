"""torchvision: classifiers, FCN and DeepLabV3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from transferseg.load import encoders
from transferseg.load.findings import Findings
from transferseg.load.formats import timm as timm_format
from transferseg.load.formats import timm_config
from transferseg.load.formats.base import Description, Format
from transferseg.load.listing import Listing, Shape
from transferseg.load.timm_index import models_of
from transferseg.spec import InputSpec, ModelSpec
from transferseg.transfer import SOURCES, SourceFormat
from transferseg.transfer.sources import ENCODER_PREFIX

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUT_WHY = "torchvision's weights expect ImageNet's statistics"
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
    "MobileNetV3": ("features.0.0.weight", "features.1.block.0.0.weight"),
    "Swin V2": ("features.0.0.weight", "features.1.0.attn.logit_scale"),
    "RegNet": ("stem.0.weight", "trunk_output.block1.block1-0.proj.0.weight"),
    "AlexNet": ("features.10.weight", "classifier.1.weight", "classifier.6.weight"),
}
#: Families of other names than timm's that are read -> keys that together only they have.
TRANSLATED: Mapping[str, tuple[str, ...]] = {
    "MobileNetV2": ("features.0.0.weight", "features.1.conv.0.0.weight"),
    "EfficientNet": ("features.0.0.weight", "features.1.0.block.0.0.weight"),
    "ConvNeXt": ("features.0.0.weight", "features.1.0.layer_scale"),
    "Swin": ("features.0.0.weight", "features.1.0.attn.relative_position_bias_table"),
    "DenseNet": ("features.conv0.weight", "features.denseblock1.denselayer1.norm.1.weight"),
    "ViT": ("conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight"),
}
#: How timm's models begin that compute something else than torchvision's of the same shapes.
ALTERED = ("tf_", "efficientnet_blur_")
#: How timm's models end whose batch norms have another epsilon than torchvision's.
OTHER_EPSILON = ("efficientnet_b5", "efficientnet_b6", "efficientnet_b7")
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
AUXILIARY = {"aux_classifier.*": "the auxiliary head, which serves training alone"}


@dataclass(frozen=True)
class TorchvisionFormat(Format):
    """Classifiers in timm's names or in torchvision's own, and segmentation over ResNets."""

    name: str = field(default="torchvision", init=False)

    def detect(self, listing: Listing) -> bool:
        """`backbone.` with a segmentation head, VGG's linear layers, or names that timm shares."""
        if _segments(listing) or _is_vgg(listing):
            return True
        if _family(listing, TRANSLATED) or _family(listing, NOT_READ):
            return True
        if timm_config.named(listing) is not None:
            return False
        return not set(SHARED).isdisjoint(models_of(listing.shapes))

    def describe(self, listing: Listing, findings: Findings) -> Description:
        """A classifier, or the segmentation model that the head's names tell."""
        if family := _family(listing, NOT_READ):
            return Description(None, missing=f"torchvision's {family} is not read")
        if _segments(listing):
            return _segmenter(listing, findings)
        if _is_vgg(listing):
            return _vgg(listing, findings)
        if family := _family(listing, TRANSLATED):
            return _translated(listing, findings, family)
        found = encoders.candidates(listing.shapes)
        encoder = findings.encoder(
            found,
            convention=next((name for name in found if name in SHARED), None),
            why="torchvision has no other",
            also=sorted(set(models_of(listing.shapes)) - set(found)),
        )
        return _classifier(listing, findings, found, encoder)

    def naming(self, listing: Listing, spec: ModelSpec) -> SourceFormat:
        """The encoder's names are timm's or become them; the head's become ours."""
        if family := _family(listing, TRANSLATED):
            return replace(SOURCES[f"torchvision {family}"], name=self.name)
        if spec.architecture == "classifier" and spec.decoder.get("head") != "vgg":
            return timm_format.naming(self.name, spec)
        return SourceFormat(
            self.name,
            {**HEADS[spec.architecture], "backbone.": ENCODER_PREFIX},
            leave=("*.num_batches_tracked",),
            reasons=AUXILIARY,
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


def _family(listing: Listing, families: Mapping[str, tuple[str, ...]]) -> str | None:
    return next((family for family, keys in families.items() if listing.has(*keys)), None)


def _input(channels: int) -> InputSpec:
    return InputSpec.from_statistics(MEAN, STD, channels=channels)


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
    spec = findings.spec(
        architecture,
        encoder,
        findings.classes(count),
        _input(channels),
        input_why=INPUT_WHY,
        output_stride=findings.open("output_stride", 8, why=why),
        dilation=findings.open("dilation", "timm", why="torchvision's way, which timm's is"),
        decoder=options,
    )
    return Description(architecture, encoder, count, channels, spec)


def _translated(listing: Listing, findings: Findings, family: str) -> Description:
    """A classifier in names of torchvision's own: that of timm which has all of it."""
    scheme = SOURCES[f"torchvision {family}"]
    shapes = {}
    for key, shape in listing.shapes.items():
        name = scheme.target_key(key).removeprefix(ENCODER_PREFIX)
        shapes[name] = shape if scheme.adapter_for(key) is None else (prod(shape),)
    found = [name for name in encoders.candidates(shapes) if not name.endswith(OTHER_EPSILON)]
    if not found:
        return Description(None, missing=f"torchvision's {family} of these shapes is not read")
    also = [name for name in models_of(shapes) if name not in found]
    usual = next((name for name in found if not name.startswith(ALTERED)), None)
    encoder = findings.encoder(found, convention=usual, why="torchvision has no other", also=also)
    return _classifier(replace(listing, shapes=shapes), findings, found, encoder)


def _classifier(
    listing: Listing, findings: Findings, found: Sequence[str], encoder: str | None
) -> Description:
    channels = encoders.stem_channels(encoder or found[0], listing.shapes)
    expected = (_input(channels), INPUT_WHY)
    return timm_format.describe(listing, findings, found, encoder, expected=expected)


def _vgg(listing: Listing, findings: Findings) -> Description:
    body = {k: s for k, s in listing.shapes.items() if k.startswith("features.")}
    encoder = _choose(findings, body)
    count, channels = listing.shapes["classifier.6.weight"][0], body["features.0.weight"][1]
    if encoder is None:
        return Description("classifier", None, count, channels, missing="its VGG is not known")
    spec = findings.spec(
        "classifier",
        encoder,
        findings.classes(count),
        _input(channels),
        input_why=INPUT_WHY,
        decoder={
            "head": "vgg",
            "head_width": findings.fixed("head_width", listing.shapes["classifier.0.weight"][0]),
            "dropout": findings.open("dropout", 0.5, why="torchvision's builder"),
        },
    )
    return Description("classifier", encoder, count, channels, spec)
