"""segmentation-models-pytorch: `save_pretrained` folders and bare state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from transferseg.load.findings import Findings
from transferseg.load.formats.base import Description, Format
from transferseg.load.formats.smp_decoders import (
    DECODERS,
    Layout,
    not_built,
    of_another,
    refusal,
)
from transferseg.load.formats.smp_encoders import SmpEncoder, find_encoder, scheme_of
from transferseg.load.listing import Listing
from transferseg.spec import ModelSpec
from transferseg.transfer import SourceFormat
from transferseg.types import TargetMode

#: What its activation makes of the classes, where there are several -> the mode that stands for it.
MODES: Mapping[str, TargetMode] = {
    "sigmoid": "multilabel",
    "softmax": "multiclass",
    "softmax2d": "multiclass",
    "logsoftmax": "multiclass",
}


@dataclass(frozen=True)
class SmpFormat(Format):
    """Unet, DeepLabV3, DeepLabV3Plus, PSPNet and UPerNet over encoders whose weights fit timm's."""

    name: str = field(default="smp", init=False)

    def detect(self, listing: Listing) -> bool:
        """Its three parts by name."""
        parts = {key.split(".")[0] for key in listing.shapes}
        return listing.has("segmentation_head.0.weight") and {"encoder", "decoder"} <= parts

    def describe(self, listing: Listing, findings: Findings) -> Description:
        """The model that the decoder's names tell, or by name the one that is not built."""
        layout = next((one for one in DECODERS if listing.has(one.key)), None)
        if layout is None or of_another(listing) is not None:
            encoder = find_encoder(listing, findings)
            told = not_built(listing)
            return Description(None, encoder.name, missing=f"{told}{_moved(encoder)}")
        if why := refusal(listing, layout):
            return Description(None, missing=f"smp's {layout.title} {why}, which is not built")
        encoder = find_encoder(listing, findings)
        count = listing.shapes["segmentation_head.0.weight"][0]
        if encoder.name is None:
            return Description(
                None if encoder.missing else layout.architecture,
                None,
                count,
                encoder.channels,
                candidates=encoder.candidates,
                missing=encoder.missing,
            )
        return _model(listing, findings, layout, encoder, encoder.name)

    def naming(self, listing: Listing, spec: ModelSpec) -> SourceFormat:
        """The encoder's names as the transfer room has them, and the decoder's become ours."""
        layout = next(one for one in DECODERS if one.architecture == spec.architecture)
        known = scheme_of(listing)
        return replace(known, name=self.name, rename={**layout.rename, **known.rename})


def _model(
    listing: Listing, findings: Findings, layout: Layout, encoder: SmpEncoder, name: str
) -> Description:
    count = listing.shapes["segmentation_head.0.weight"][0]
    fits = layout.options(listing, findings, encoder)
    if isinstance(fits, str):
        return Description(None, name, count, encoder.channels, missing=fits)
    given, why = encoder.expected()
    spec = findings.spec(
        layout.architecture,
        name,
        findings.classes(count),
        given,
        input_why=why,
        mode=_mode(listing, findings, count),
        encoder_options=findings.fixed("encoder_options", encoder.options()),
        **fits,
    )
    return Description(layout.architecture, name, count, encoder.channels, spec)


def _mode(listing: Listing, findings: Findings, count: int) -> TargetMode | None:
    """The mode that the activation of the folder's config asks for."""
    activation = listing.config().get("activation")
    if count == 1 or activation not in MODES:
        return None
    findings.note(
        "activation", activation, "metadata", "the logits before it are given; the mode tells it"
    )
    return MODES[str(activation)]


def _moved(encoder: SmpEncoder) -> str:
    if encoder.name is None:
        return ""
    options = f"encoder_options={encoder.options()}, " if encoder.styled else ""
    return (
        "; its encoder goes into another model: "
        f"create_model(..., {encoder.name!r}, {options}weights=path)"
    )
