"""timm: any of its models, with or without the config.json that a hub folder holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from timm.models import is_model
from timm.models.resnet import ResNet
from torch import nn

from transferseg.load import encoders
from transferseg.load.findings import Findings
from transferseg.load.formats import timm_config
from transferseg.load.formats.base import ENCODER_ONLY, Description, Format
from transferseg.load.formats.timm_config import named
from transferseg.load.listing import Listing
from transferseg.load.timm_index import bare, models_of, shapes_of
from transferseg.spec import InputSpec, ModelSpec
from transferseg.transfer import SOURCES, SourceFormat
from transferseg.transfer.sources import ENCODER_PREFIX


@dataclass(frozen=True)
class TimmFormat(Format):
    """timm's own names, in a file or in a folder as timm's hub repositories are.

    A ResNet becomes a classifier of ours, whose head is the same; any other model is built whole.
    """

    name: str = field(default="timm", init=False)

    def detect(self, listing: Listing) -> bool:
        """Names and shapes of a timm model, whatever its classes and channels; or it says so."""
        return bool(models_of(listing.shapes)) or resembles(listing, named(listing))

    def describe(self, listing: Listing, findings: Findings) -> Description:
        """A classifier, or an encoder where the file has no classifier layer."""
        if shaped := timm_config.shaped(listing):
            return describe(
                listing, findings, [shaped], findings.encoder([shaped], metadata=shaped)
            )
        found = encoders.candidates(listing.shapes)
        if not found:  # told by name, so that the error can name the tensors that do not fit
            told = findings.asked.get("encoder") or named(listing)
            return describe(listing, findings, [str(told)], findings.encoder([str(told)]))
        also = [name for name in models_of(listing.shapes) if name not in found]
        encoder = findings.encoder(found, metadata=named(listing), also=also)
        return describe(listing, findings, found, encoder)

    def naming(self, listing: Listing, spec: ModelSpec) -> SourceFormat:  # noqa: ARG002
        """Timm's keys behind the encoder's prefix, the head's in its place."""
        return naming(self.name, spec)


def describe(
    listing: Listing,
    findings: Findings,
    found: Sequence[str],
    encoder: str | None,
    *,
    arguments: Mapping[str, Any] | None = None,
    style: str = "timm",
    expected: Callable[[int], tuple[InputSpec, str]] | None = None,
) -> Description:
    """The classifier of a listing in timm's names; torchvision's shared names go this way too.

    Args:
        listing: what the file holds.
        findings: what keywords decide.
        found: encoders that fit.
        encoder: the chosen one, None where several remain.
        arguments: of timm's builder, where the encoder is not timm's own in everything.
        style: encoder option, where it computes otherwise than timm's.
        expected: number of channels -> the input that the ecosystem's weights expect, and why;
            by default the statistics of timm's weights.
    """
    any_name = encoder or found[0]
    count = encoders.head_shape(any_name, listing.shapes)
    channels = encoders.stem_channels(any_name, listing.shapes)
    if encoder is None:
        return Description(
            "classifier" if count else ENCODER_ONLY, None, count, channels, candidates=tuple(found)
        )
    if not count:
        return Description(ENCODER_ONLY, encoder, 0, channels)
    built = timm_config.built(listing, findings, encoder)
    if built.missing:
        return Description("classifier", encoder, count, channels, missing=built.missing)
    options = {**(arguments or {}), **built.arguments}
    given_options: dict[str, Any] = {"arguments": options} if options else {}
    if style != "timm":
        given_options["style"] = style
    if expected is None:
        given, why = _usual(listing, findings, encoder, channels)
    else:
        given, why = expected(channels)
    spec = findings.spec(
        "classifier",
        encoder,
        findings.classes(count, timm_config.label_names(listing)),
        given,
        input_why=why,
        input_metadata=timm_config.stated_input(listing, channels),
        encoder_options=given_options,
        decoder={} if linear(encoder) and not given_options else {"head": "timm"},
    )
    return Description("classifier", encoder, count, channels, spec)


def _usual(
    listing: Listing, findings: Findings, encoder: str, channels: int
) -> tuple[InputSpec, str]:
    """What timm's weights of a model expect; and of those that compute the same, if others."""
    why = f"the statistics of timm's weights of {encoder!r}"
    if encoder not in (findings.asked.get("encoder"), named(listing)):
        for name in encoders.alike(encoder, models_of(listing.shapes)):
            other = encoders.statistics(name, channels)
            why += f"; {name!r} computes the same on mean {other.mean}, std {other.std}"
    return encoders.statistics(encoder, channels), why


def naming(name: str, spec: ModelSpec) -> SourceFormat:
    """Timm's keys as those of a classifier, under the name of an ecosystem."""
    heads = {} if spec.decoder.get("head") == "timm" else {"fc.": "head."}
    return SourceFormat(
        name,
        {**heads, "": ENCODER_PREFIX},
        leave=SOURCES["timm"].leave,
        reasons=encoders.UNSAVED,
    )


def resembles(listing: Listing, encoder: str | None) -> bool:
    """Whether some of a listing's names are those of the timm model that it is said to be."""
    if not isinstance(encoder, str) or not is_model(encoder):
        return False
    return not listing.shapes.keys().isdisjoint(shapes_of(bare(encoder)))


def linear(name: str) -> bool:
    """Whether a timm model's head is one linear layer on the average of its last map."""
    model = bare(name)
    return type(model) is ResNet and isinstance(model.fc, nn.Linear)
