"""transferseg's own checkpoint folders: the spec stands in them."""

from __future__ import annotations

from dataclasses import dataclass, field

from transferseg.load.findings import Findings
from transferseg.load.formats.base import Description, Format
from transferseg.load.listing import Listing
from transferseg.spec import ModelSpec
from transferseg.transfer import SOURCES, SourceFormat


@dataclass(frozen=True)
class OwnFormat(Format):
    """A folder that `save_pretrained` wrote."""

    name: str = field(default="transferseg", init=False)

    def detect(self, listing: Listing) -> bool:
        """A spec stands beside the weights."""
        return listing.spec is not None

    def describe(self, listing: Listing, findings: Findings) -> Description:
        """What the spec says; nothing is open."""
        spec = listing.spec
        assert spec is not None  # detect() said so
        findings.encoder([spec.encoder])
        spec = spec.replace(classes=findings.classes(len(spec.classes), spec.classes))
        for name in ("mode", "threshold", "output_stride", "dilation", "encoder_options"):
            findings.fixed(name, getattr(spec, name), shown_by="config.json")
        findings.fixed("input_spec", spec.input, shown_by="config.json")
        for name, value in spec.decoder.items():
            findings.fixed(name, value, shown_by="config.json")
        return Description(
            spec.architecture, spec.encoder, len(spec.classes), spec.input.channels, spec
        )

    def naming(self, listing: Listing, spec: ModelSpec) -> SourceFormat:  # noqa: ARG002
        """Its own names."""
        return SourceFormat(self.name, SOURCES[self.name].rename)
