"""MMPretrain, once MMClassification: its classifiers, and backbones of all kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from transferseg.errors import some
from transferseg.load.findings import Findings
from transferseg.load.formats.base import ENCODER_ONLY, Description, Format
from transferseg.load.formats.mmpretrain_whole import Whole, kind_of
from transferseg.load.formats.mmseg.config import INPUT_WHY, Hints, read_hints, usual_input
from transferseg.load.formats.mmseg.parts import Body, NotBuiltError, Part, settle_options
from transferseg.load.formats.mmseg.resnet import is_resnet, read_resnet
from transferseg.load.listing import Listing
from transferseg.spec import ModelSpec
from transferseg.transfer import SourceFormat
from transferseg.transfer.openmmlab import COMPUTED, REORDERED, RULES
from transferseg.transfer.sources import ENCODER_PREFIX
from transferseg.types import TargetMode

PARTS = ("backbone.", "neck.", "head.")


@dataclass(frozen=True)
class MMPretrainFormat(Format):
    """`backbone.` with `head.fc.`, or a backbone alone; ResNetV1c and V1d also without a prefix."""

    name: str = field(default="mmpretrain", init=False)

    def detect(self, listing: Listing) -> bool:
        """A classifier's head beside a backbone, or names that OpenMMLab alone has."""
        part = _backbone(listing)
        if not part.prefix:
            return part.has("stem.0.weight") and is_resnet(part)
        own = part.has("stem.0.weight") or kind_of(part) is not None
        return own or listing.has("head.fc.weight")

    def describe(self, listing: Listing, findings: Findings) -> Description:
        """A classifier with a linear head, or an encoder where the file has none."""
        hints = read_hints(listing.metadata)
        part = _backbone(listing)
        try:
            if not is_resnet(part):
                return _whole(listing, part, findings, hints)
            body = read_resnet(part, findings, hints)
            fc = Part("", listing.shapes)
            head = _head(listing)
            count = fc.of(head + "weight", 2)[0] if head else 0
        except NotBuiltError as refused:
            return Description(None, missing=str(refused))
        encoder = findings.encoder([body.encoder])
        assert encoder is not None  # one candidate
        settle_options(findings, body.options)
        if not count:
            return Description(ENCODER_ONLY, encoder, 0, body.in_channels)
        return _classifier(findings, hints, encoder, count, body)

    def naming(self, listing: Listing, spec: ModelSpec) -> SourceFormat:
        """OpenMMLab's names of backbones, and the linear layer."""
        if spec.decoder.get("head") == "timm":
            return _whole_naming(self.name, listing)
        return SourceFormat(
            self.name,
            {_head(listing): "head.", _backbone(listing).prefix: ENCODER_PREFIX},
            leave=("*.num_batches_tracked",),
            rules=RULES,
        )


def _whole(listing: Listing, part: Part, findings: Findings, hints: Hints) -> Description:
    """A classifier that timm has whole, or an encoder where the file has no head.

    Raises:
        NotBuiltError: another kind of backbone, or something that timm's model has not.
    """
    kind = kind_of(part)
    strange = [key for key in listing.shapes if not key.startswith(PARTS)]
    if kind is None or strange or not listing.under("head."):
        told = kind.title if kind else hints.text("backbone", "type") or "of another kind"
        beside = f" beside {some(strange)}" if strange else ""
        beside = beside or ("" if listing.under("head.") else " without a head")
        moved = "; its encoder goes into a model with create_model(..., weights=path)"
        raise NotBuiltError(
            f"of the classifiers those over ResNet, ViT, Swin and HRNet are built, and this is "
            f"{told}{beside}{moved if kind else ''}"
        )
    neck, head = Part("neck.", listing.under("neck.")), Part("head.", listing.under("head."))
    built = kind.read(part, neck, findings, hints)
    layer = _layer(listing).removeprefix("head.")
    head.refuse_strangers(rf"{re.escape(layer)}(weight|bias)", f"the head of {kind.title}")
    count = head.of(f"{layer}weight", 2)[0]
    encoder = findings.fixed("encoder", built.encoder)
    settle_options(findings, built.options)
    return _classifier(findings, hints, encoder, count, built, decoder={"head": "timm"})


def _classifier(
    findings: Findings,
    hints: Hints,
    encoder: str,
    count: int,
    body: Body | Whole,
    decoder: Mapping[str, object] = MappingProxyType({}),
) -> Description:
    spec = findings.spec(
        "classifier",
        encoder,
        findings.classes(count, hints.classes),
        usual_input(body.in_channels),
        input_why=INPUT_WHY,
        input_metadata=hints.input_spec(body.in_channels),
        mode_metadata=_mode(hints, count),
        decoder=decoder,
        encoder_options=body.options,
    )
    return Description("classifier", encoder, count, body.in_channels, spec)


def _mode(hints: Hints, count: int) -> TargetMode | None:
    """That of several labels, where the config says that the head is for them."""
    several = (hints.text("head", "type") or "").rpartition(".")[2].startswith("MultiLabel")
    return "multilabel" if several and count > 1 else None


def _whole_naming(name: str, listing: Listing) -> SourceFormat:
    kind = kind_of(_backbone(listing))
    assert kind is not None  # describe() said so
    return SourceFormat(
        name,
        {_layer(listing): f"{ENCODER_PREFIX}{kind.layer}", "backbone.": ENCODER_PREFIX},
        leave=("*.num_batches_tracked",),
        rules={**kind.rules, **RULES},
        adapters=REORDERED,
        reasons=COMPUTED,
    )


def _layer(listing: Listing) -> str:
    """The prefix of the linear layer of a classifier that is whole."""
    return "head.layers.head." if listing.has("head.layers.head.weight") else "head.fc."


def _backbone(listing: Listing) -> Part:
    """The backbone, with or without its prefix; without it the linear layer is no part of it."""
    if behind := listing.under("backbone."):
        return Part("backbone.", behind)
    shapes = {k: s for k, s in listing.shapes.items() if not k.startswith("fc.")}
    return Part("", shapes)


def _head(listing: Listing) -> str:
    """The prefix of the linear layer, "" where there is none."""
    heads = ("head.fc.",) if listing.under("backbone.") else ("fc.",)
    return next((head for head in heads if listing.under(head)), "")
