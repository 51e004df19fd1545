"""The U-Net for brain MRI as its authors publish it (Buda 2019)."""

from __future__ import annotations

from dataclasses import dataclass, field

from transferseg.load.findings import Findings
from transferseg.load.formats.base import Description, Format
from transferseg.load.listing import Listing
from transferseg.spec import InputSpec, ModelSpec
from transferseg.transfer import SOURCES, SourceFormat

#: Keys that together only this network has.
ITS_OWN = (
    "encoder1.enc1conv1.weight",
    "bottleneck.bottleneckconv1.weight",
    "upconv4.weight",
    "decoder4.dec4conv1.weight",
    "conv.weight",
)
INPUT_WHY = (
    "the values as they are: this network is fed images that were normalised each by its own mean "
    "and std, which no fixed mean and std express"
)


@dataclass(frozen=True)
class BrainFormat(Format):
    """The U-Net of the LGG brain-MRI data set: our `unet` over the plain encoder.

    The published network ends in a sigmoid; ours gives the logits before it, and the spec's mode
    (binary, or multilabel with more than one output) and threshold stand for it.
    """

    name: str = field(default="brain", init=False)

    def detect(self, listing: Listing) -> bool:
        """Its first, lowest and last blocks by name."""
        return listing.has(*ITS_OWN)

    def describe(self, listing: Listing, findings: Findings) -> Description:
        """A U-Net whose width, channels and classes the shapes tell."""
        width, channels = listing.shapes["encoder1.enc1conv1.weight"][:2]
        encoder = findings.encoder(["plain"])
        count = listing.shapes["conv.weight"][0]
        options = {} if width == 32 else {"arguments": {"width": width}}
        spec = findings.spec(
            "unet",
            str(encoder),
            findings.classes(count),
            InputSpec(channels=channels),
            input_why=INPUT_WHY,
            mode="binary" if count == 1 else "multilabel",
            output_stride=findings.fixed("output_stride", 16),
            encoder_options=findings.fixed("encoder_options", options),
        )
        return Description("unet", spec.encoder, count, channels, spec)

    def naming(self, listing: Listing, spec: ModelSpec) -> SourceFormat:  # noqa: ARG002
        """The table of the transfer room."""
        return SOURCES[self.name]
