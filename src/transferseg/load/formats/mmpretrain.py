"""MMPretrain, once MMClassification: ResNet classifiers, and backbones of all kinds."""

from __future__ import annotations

from dataclasses import dataclass, field

from transferseg.load.findings import Findings
from transferseg.load.formats.base import ENCODER_ONLY, Description, Format
from transferseg.load.formats.mmseg.config import INPUT_WHY, read_hints, usual_input
from transferseg.load.formats.mmseg.parts import NotBuiltError, Part, settle_options
from transferseg.load.formats.mmseg.resnet import is_resnet, read_resnet
from transferseg.load.listing import Listing
from transferseg.spec import ModelSpec
from transferseg.transfer import SourceFormat
from transferseg.transfer.openmmlab import RULES
from transferseg.transfer.sources import ENCODER_PREFIX

#: kind -> a key that tells it, of backbones whose classifiers compute otherwise than ours
OTHERS = {
    "a Swin": "stages.0.blocks.0.attn.w_msa.relative_position_bias_table",
    "a ViT": "layers.0.ln1.weight",
    "an HRNet": "stage2.0.branches.0.0.conv1.weight",
}


@dataclass(frozen=True)
class MMPretrainFormat(Format):
    """`backbone.` with `head.fc.`, or a backbone alone; ResNetV1c and V1d also without a prefix."""

    name: str = field(default="mmpretrain", init=False)

    def detect(self, listing: Listing) -> bool:
        """A classifier's head beside a backbone, or names that OpenMMLab alone has."""
        part = _backbone(listing)
        if not part.prefix:
            return part.has("stem.0.weight") and is_resnet(part)
        own = part.has("stem.0.weight") or _other_kind(part) is not None
        return own or listing.has("head.fc.weight")

    def describe(self, listing: Listing, findings: Findings) -> Description:
        """A classifier with a linear head, or an encoder where the file has none."""
        hints = read_hints(listing.metadata)
        part = _backbone(listing)
        try:
            if not is_resnet(part):
                kind = _other_kind(part) or hints.text("backbone", "type") or "not a ResNet"
                raise NotBuiltError(
                    f"of the classifiers those over ResNets are built, and this is {kind}; its "
                    "encoder goes into a model with create_model(..., weights=path)"
                )
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
        spec = findings.spec(
            "classifier",
            encoder,
            findings.classes(count, hints.classes),
            usual_input(body.in_channels),
            input_why=INPUT_WHY,
            input_metadata=hints.input_spec(body.in_channels),
            encoder_options=body.options,
        )
        return Description("classifier", encoder, count, body.in_channels, spec)

    def naming(self, listing: Listing, spec: ModelSpec) -> SourceFormat:  # noqa: ARG002
        """OpenMMLab's names of backbones, and the linear layer."""
        return SourceFormat(
            self.name,
            {_head(listing): "head.", _backbone(listing).prefix: ENCODER_PREFIX},
            leave=("*.num_batches_tracked",),
            rules=RULES,
        )


def _other_kind(part: Part) -> str | None:
    """What a backbone is that is no ResNet, by the names that OpenMMLab alone gives it."""
    return next((kind for kind, key in OTHERS.items() if part.has(key)), None)


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
