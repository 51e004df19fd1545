"""torchvision's classifiers whose names are not timm's, as timm's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transferseg.load.findings import Findings
from transferseg.load.formats import renamed
from transferseg.load.formats import timm as timm_format
from transferseg.load.formats.base import Description
from transferseg.load.listing import Listing, Shape
from transferseg.load.timm_index import models_of
from transferseg.spec import InputSpec
from transferseg.transfer import SOURCES, SourceFormat
from transferseg.transfer.sources import ENCODER_PREFIX
from transferseg.transfer.torchvision_names import EPSILON

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUT_WHY = "torchvision's weights expect ImageNet's statistics"


@dataclass(frozen=True)
class Family:
    """A family of torchvision's classifiers.

    Attributes:
        title: as torchvision calls it.
        keys: that together only it has.
        encoders: timm's models that compute the same -> arguments of timm's builder that they need.
        build: what timm builds with such shapes, where any size is known by them.
        style: the encoder option that makes it compute the same.
    """

    title: str
    keys: tuple[str, ...]
    encoders: Mapping[str, Mapping[str, Any]]
    build: Callable[[Mapping[str, Shape]], renamed.Build] | None = None
    style: str = "timm"


def _all(names: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Mapping[str, Any]]:
    return dict.fromkeys(names.split(), arguments or {})


#: family, as `transfer.SOURCES` has it behind "torchvision_" -> what it is.
FAMILIES: Mapping[str, Family] = {
    "mobilenet_v2": Family(
        "MobileNetV2",
        ("features.0.0.weight", "features.1.conv.0.0.weight", "features.18.0.weight"),
        _all("mobilenetv2_100 mobilenetv2_035 mobilenetv2_050 mobilenetv2_075"),
    ),
    "mobilenet_v3_small": Family(
        "MobileNetV3",
        ("features.0.0.weight", "features.1.block.0.0.weight", "features.12.0.weight"),
        _all("mobilenetv3_small_100 mobilenetv3_small_075 mobilenetv3_small_050", EPSILON),
    ),
    "mobilenet_v3_large": Family(
        "MobileNetV3",
        ("features.0.0.weight", "features.1.block.0.0.weight", "features.16.0.weight"),
        _all("mobilenetv3_large_100 mobilenetv3_large_075", EPSILON),
    ),
    "efficientnet": Family(
        "EfficientNet",
        ("features.0.0.weight", "features.1.0.block.1.fc1.weight"),
        _all(" ".join(f"efficientnet_b{k}" for k in range(5)))
        | _all(" ".join(f"efficientnet_b{k}" for k in range(5, 8)), EPSILON),
    ),
    "efficientnet_v2": Family(
        "EfficientNetV2",
        ("features.0.0.weight", "features.1.0.block.0.0.weight", "features.2.0.block.1.0.weight"),
        _all("efficientnetv2_s efficientnetv2_m efficientnetv2_l", EPSILON),
    ),
    "convnext": Family(
        "ConvNeXt",
        ("features.0.0.weight", "features.1.0.layer_scale"),
        _all("convnext_tiny convnext_small convnext_base convnext_large"),
    ),
    "swin": Family(
        "Swin",
        ("features.0.0.weight", "features.1.0.attn.relative_position_bias_table"),
        _all(" ".join(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base"))),
        renamed.swin,
        "torchvision",
    ),
    "densenet": Family(
        "DenseNet",
        ("features.conv0.weight", "features.denseblock1.denselayer1.norm.1.weight"),
        _all("densenet121 densenet161 densenet169 densenet201"),
    ),
    "vit": Family(
        "ViT",
        ("conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight"),
        _all(
            "vit_base_patch16_224 vit_base_patch32_224 vit_large_patch16_224 "
            "vit_large_patch32_224 vit_huge_patch14_224 vit_base_patch16_384 vit_base_patch32_384 "
            "vit_large_patch16_384 vit_tiny_patch16_224 vit_small_patch16_224"
        ),
    ),
    "regnet": Family(
        "RegNet",
        ("stem.0.weight", "trunk_output.block1.block1-0.proj.0.weight"),
        _all(
            "regnetx_004_tv regnetx_008 regnetx_016 regnetx_032 regnetx_080 regnetx_160 "
            "regnetx_320 regnety_004 regnety_008_tv regnety_016 regnety_032 regnety_080_tv "
            "regnety_160 regnety_320"
        ),
    ),
}


def family_of(listing: Listing) -> str | None:
    """Which of `FAMILIES` a listing is of."""
    fitting = (name for name, family in FAMILIES.items() if listing.has(*family.keys))
    return next(fitting, None)


def describe_family(listing: Listing, findings: Findings, name: str) -> Description:
    """A classifier with timm's model inside, or an encoder where there is no head."""
    family = FAMILIES[name]
    in_timms = replace(listing, shapes=_timm_shapes(listing, SOURCES[f"torchvision_{name}"]))
    built = _built(family, in_timms.shapes)
    if built is None:
        return Description(None, missing=_unknown(family))
    encoder = findings.encoder([built[0]])
    return timm_format.describe(
        in_timms,
        findings,
        [built[0]],
        encoder,
        arguments=built[1],
        style=family.style,
        expected=expected_input,
    )


def _built(family: Family, shapes: Mapping[str, Shape]) -> renamed.Build | None:
    """What timm builds with these shapes; None where it has no such model."""
    if family.build is not None:
        try:
            return renamed.shortest(family.build(shapes), shapes)
        except (KeyError, IndexError, ValueError):  # it lacks tensors, or they have other ranks
            return None
    found = [one for one in family.encoders if one in models_of(shapes)]
    return (found[0], dict(family.encoders[found[0]])) if found else None


def family_naming(name: str) -> SourceFormat:
    """The names of a family, reported as torchvision's."""
    return replace(SOURCES[f"torchvision_{name}"], name="torchvision", unused=())


def expected_input(channels: int) -> tuple[InputSpec, str]:
    """What torchvision's weights expect of an image, and why."""
    return InputSpec.from_statistics(MEAN, STD, channels=channels), INPUT_WHY


def _unknown(family: Family) -> str:
    known = ", ".join(family.encoders)
    return (
        f"names of torchvision's {family.title}, but its shapes are of none of those that compute "
        f"what a timm model does ({known})"
    )


def _timm_shapes(listing: Listing, names: SourceFormat) -> dict[str, Shape]:
    """The listing in timm's names, and in timm's shapes where an adapter makes them."""
    shapes: dict[str, Shape] = {}
    for key, shape in listing.shapes.items():
        timms = names.target_key(key).removeprefix(ENCODER_PREFIX)
        if names.adapter_for(key) is not None:
            shape = (*shape, 1, 1) if len(shape) == 2 else shape[:1]
        shapes[timms] = shape
    return shapes
