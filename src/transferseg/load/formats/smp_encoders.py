"""Which of timm's models the encoder of a segmentation-models-pytorch file is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from transferseg.load import encoders
from transferseg.load.findings import Findings
from transferseg.load.formats.torchvision_families import MEAN, STD
from transferseg.load.listing import Listing
from transferseg.load.timm_index import Shape, bare, models_of
from transferseg.models.capabilities import encoder_capabilities
from transferseg.spec import InputSpec
from transferseg.transfer import SOURCES, SourceFormat
from transferseg.transfer.smp_names import FAMILIES
from transferseg.transfer.sources import ENCODER_PREFIX

#: smp's own encoders that compute what a timm model does -> that model.
NATIVE: Mapping[str, str] = {
    **{name: name for name in (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
        "resnext101_32x4d", "resnext101_32x8d", "resnext101_32x16d", "resnext101_32x32d",
        "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
    )},
    "se_resnet50": "legacy_seresnet50",
    "se_resnet101": "legacy_seresnet101",
    "se_resnet152": "legacy_seresnet152",
    "se_resnext50_32x4d": "legacy_seresnext50_32x4d",
    "se_resnext101_32x4d": "legacy_seresnext101_32x4d",
    "senet154": "legacy_senet154",
}  # fmt: skip
#: smp's own encoders whose weights fit a timm model that is read in the style "smp" -> that model.
STYLED: Mapping[str, str] = {
    **{f"efficientnet-b{size}": f"tf_efficientnet_b{size}" for size in range(8)},
    **{f"timm-efficientnet-{size}": f"efficientnet_{size}" for size in
       (*(f"b{number}" for number in range(9)), "l2")},
    **{f"timm-tf_efficientnet_lite{size}": f"efficientnet_lite{size}" for size in range(5)},
    "mobilenet_v2": "mobilenetv2_100",
    **{name: name for name in ("densenet121", "densenet161", "densenet169", "densenet201")},
}  # fmt: skip
#: smp's own encoders that no timm model is: other maps or paddings -> a key that tells them.
OTHERS: Mapping[str, str] = {
    "mit_b*": "encoder.patch_embed1.proj.weight",
    "dpn": "encoder.features.conv1_1.conv.weight",
    "inceptionresnetv2": "encoder.conv2d_1a.conv.weight",
    "inceptionv4": "encoder.features.0.conv.weight",
    "xception": "encoder.block1.rep.0.conv1.weight",
    "mobileone": "encoder.stage0.rbr_scale.conv.weight",
    "timm-skresnet": "encoder.layer1.0.conv1.paths.0.conv.weight",
}


@dataclass(frozen=True)
class SmpEncoder:
    """An encoder that was recognised, or why not.

    Attributes:
        name: timm's; None where several fit or none does.
        channels: of the image.
        universal: whether it is a "tu-" encoder, timm's model in smp's wrapper.
        styled: whether timm's model gives smp's maps in the style "smp" alone.
        candidates: several that fit.
        missing: why there is none.
    """

    name: str | None
    channels: int = 3
    universal: bool = False
    styled: bool = False
    candidates: tuple[str, ...] = ()
    missing: str = ""

    def expected(self) -> tuple[InputSpec, str]:
        """What its weights expect of an image, and why."""
        if self.universal and self.name is not None:
            why = f"the statistics of timm's weights of {self.name!r}"
            return encoders.statistics(self.name, self.channels), why
        if self.name is not None and "_lite" in self.name:
            why = "the statistics of timm's weights, which smp's of this encoder are"
            return encoders.statistics(f"tf_{self.name}", self.channels), why
        why = "smp's weights of this encoder expect ImageNet's statistics"
        return InputSpec.from_statistics(MEAN, STD, channels=self.channels), why

    def averages(self) -> bool:
        """Whether its shortcuts average (ResNet-D), which timm does otherwise when it dilates."""
        blocks = (m for m in bare(str(self.name)).modules() if hasattr(m, "downsample"))
        shortcuts = (block.downsample for block in blocks)
        return any(
            isinstance(shortcut, nn.Sequential) and isinstance(shortcut[0], nn.AvgPool2d)
            for shortcut in shortcuts
        )

    def maps(self) -> list[tuple[int, int]]:
        """Channels and stride of each feature map, undilated."""
        if self.styled:
            known = encoder_capabilities(str(self.name), style="smp")
            return [*zip(known.channels, known.strides, strict=True)]
        told = bare(str(self.name)).feature_info
        return [(one["num_chs"], one["reduction"]) for one in told]

    def options(self) -> dict[str, str]:
        """The encoder options of the spec."""
        return {"style": "smp"} if self.styled else {}


def find_encoder(listing: Listing, findings: Findings) -> SmpEncoder:
    """The encoder of a listing in smp's names."""
    body = _body(listing, scheme_of(listing))
    universal = any(key.startswith("encoder.model.") for key in listing.shapes)
    styled = [] if universal else _styled(body, listing)
    if universal:
        found, same = encoders.candidates(body, encoder=True), models_of(body, encoder=True)
    else:
        natives = (n for n in models_of(body, encoder=True) if n in NATIVE.values())
        found = same = styled or [*natives]
    if not found:
        return SmpEncoder(None, universal=universal, missing=_missing(listing, universal=universal))
    also = [name for name in same if name not in found]
    name = findings.encoder(found, metadata=_named(listing), also=also)
    channels = encoders.stem_channels(found[0], body)
    several = tuple(found) if name is None else ()
    return SmpEncoder(name, channels, universal, bool(styled), several)


def scheme_of(listing: Listing) -> SourceFormat:
    """How the names of a listing in smp's become ours: as its encoder's do."""
    known = (SOURCES[f"smp {family}"] for family in FAMILIES)
    fitting = [one for one in known if one.may_name(listing.shapes)]
    exact = (one for one in fitting if _styled(_body(listing, one), listing))
    return next(exact, fitting[0] if fitting else SOURCES["smp"])


def _body(listing: Listing, scheme: SourceFormat) -> dict[str, Shape]:
    """The shapes of the encoder in timm's names."""
    named = ((scheme.target_key(key), shape) for key, shape in listing.shapes.items())
    return {k.removeprefix(ENCODER_PREFIX): s for k, s in named if k.startswith(ENCODER_PREFIX)}


def _styled(body: Mapping[str, Shape], listing: Listing) -> list[str]:
    """Of timm's models that a body fits the one that smp's own encoder is in the style "smp"."""
    tensorflow = listing.has("encoder._conv_stem.weight")
    able = [name for name in STYLED.values() if name.startswith("tf_") is tensorflow]
    return [name for name in models_of(body) if name in able]


def _named(listing: Listing) -> str | None:
    """What the folder's config calls it, as timm does."""
    given = listing.config().get("encoder_name")
    if not isinstance(given, str):
        return None
    return {**NATIVE, **STYLED}.get(given, given.removeprefix("tu-").partition(".")[0])


def _missing(listing: Listing, *, universal: bool) -> str:
    told = listing.config().get("encoder_name")
    known = next((title for title, key in OTHERS.items() if listing.has(key)), None)
    name = told if isinstance(told, str) else known
    if universal:
        which = f"its encoder {name}" if name else "its encoder"
        return (
            f"{which} behind 'encoder.model.' has not the names and shapes of a "
            "whole timm encoder (smp leaves stages out where encoder_depth is below 5)"
        )
    which = f"smp's encoder {name}" if name else "its encoder"
    return (
        f"{which} is not built; of smp's own encoders ResNet, "
        "ResNeXt, VGG, SENet, EfficientNet, MobileNetV2 and DenseNet are built"
    )
