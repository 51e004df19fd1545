"""Self-supervised trainings: MoCo, DINO, DINOv2, MAE, and those of lightly and solo-learn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from transferseg.load import encoders
from transferseg.load.findings import Findings
from transferseg.load.formats import renamed, timm_config
from transferseg.load.formats import timm as timm_format
from transferseg.load.formats.base import ENCODER_ONLY, Description, Format
from transferseg.load.listing import Listing, Shape
from transferseg.load.timm_index import models_of
from transferseg.spec import ModelSpec
from transferseg.transfer import SOURCES, SourceFormat
from transferseg.transfer.self_supervised import NAMINGS

#: timm's models that these trainings are run on, of those with the same names and shapes.
USUAL = re.compile(r"resnet\d+|vit_\w+_patch\d+_(\d+|(reg4_)?dinov2|clip_\d+)|deit_\w+")
#: What MAE's fine-tuned ViTs have in the place of the last norm.
POOLED = "fc_norm."


@dataclass(frozen=True)
class SelfSupervisedFormat(Format):
    """Encoders with the projectors, momentum copies and queues of their training.

    MAE's fine-tuned classifiers are read too, whose norm comes after the pooling.
    """

    name: str = field(default="self-supervised", init=False)

    def detect(self, listing: Listing) -> bool:
        """The signs of one of the trainings, or a ViT pooled before its norm; none of timm's."""
        if timm_config.named(listing) is not None:
            return False
        return naming_of(listing) is not None or bool(_pooled(listing))

    def describe(self, listing: Listing, findings: Findings) -> Description:
        """An encoder alone; a fine-tuned MAE is a classifier."""
        if shapes := _pooled(listing):
            return _fine_tuned(listing, shapes, findings)
        known = naming_of(listing)
        assert known is not None  # detect() said so
        shapes = renamed.unplaced(renamed.timm_shapes(listing.shapes, SOURCES[known]))
        found = encoders.candidates(shapes)
        if not found:
            why = f"its encoder ({known}) has the names and shapes of no timm model"
            return Description(None, missing=why)
        findings.note("naming", known, "convention", "a training that saves such names")
        encoder = _encoder(findings, found, shapes)
        channels = encoders.stem_channels(encoder or found[0], shapes)
        several = () if encoder else tuple(found)
        wanted = SOURCES[known].wanted(listing.shapes, listing.metadata)
        missing = f"build it with encoder_options={{'arguments': {wanted}}}" if wanted else ""
        return Description(ENCODER_ONLY, encoder, 0, channels, candidates=several, missing=missing)

    def naming(self, listing: Listing, spec: ModelSpec) -> SourceFormat:
        """Of an encoder the table of its training; of a classifier timm's."""
        known = naming_of(listing)
        return SOURCES[known] if known else timm_format.naming(self.name, spec)


def naming_of(listing: Listing) -> str | None:
    """The naming in `NAMINGS` whose signs a file has; the first of several.

    Example:
        >>> naming_of(Listing("a.pth", {"encoder_q.conv1.weight": (64, 3, 7, 7)}, {}))
        'MoCo'
    """
    return next((name for name in NAMINGS if SOURCES[name].may_name(listing.shapes)), None)


def _encoder(findings: Findings, found: list[str], shapes: Mapping[str, Shape]) -> str | None:
    return findings.encoder(
        found,
        convention=next((name for name in found if USUAL.fullmatch(name)), None),
        why="the architecture as published, which such trainings use",
        also=sorted(set(models_of(shapes)) - set(found)),
    )


def _pooled(listing: Listing) -> dict[str, Shape]:
    """The shapes of a ViT whose norm comes after the pooling, under the name of a last norm."""
    if not listing.has(f"{POOLED}weight", "head.weight", "blocks.0.norm1.weight", "cls_token"):
        return {}
    shapes = {
        f"norm.{key.removeprefix(POOLED)}" if key.startswith(POOLED) else key: shape
        for key, shape in listing.shapes.items()
    }
    plain = len(shapes) == len(listing.shapes) and not listing.has("norm.weight")
    return shapes if plain and models_of(shapes) and not models_of(listing.shapes) else {}


def _fine_tuned(listing: Listing, shapes: Mapping[str, Shape], findings: Findings) -> Description:
    found = encoders.candidates(shapes)
    encoder = _encoder(findings, found, shapes)
    if encoder is None:
        return Description("classifier", None, candidates=tuple(found))
    why = "a ViT normed after its pooling; timm's with global_pool='avg' has these names too"
    findings.note("naming", "MAE, fine-tuned", "convention", f"{why} and computes the same")
    count, channels = listing.shapes["head.weight"][0], listing.shapes["patch_embed.proj.weight"][1]
    spec = findings.spec(
        "classifier",
        encoder,
        findings.classes(count),
        encoders.statistics("resnet50", channels),
        input_why="MAE is trained on ImageNet's statistics",
        decoder={"head": "timm"},
        encoder_options={"arguments": {"global_pool": "avg"}},
    )
    return Description("classifier", encoder, count, channels, spec)
