"""MMSegmentation 0.x and 1.x: the networks that its backbones and decode heads make together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transferseg.load.findings import Findings
from transferseg.load.formats.base import Description, Format
from transferseg.load.formats.mmseg.config import INPUT_WHY, Hints, read_hints, usual_input
from transferseg.load.formats.mmseg.heads import (
    COMMON,
    HEADS,
    Given,
    Head,
    auxiliary_of,
    head_of,
    unet_options,
)
from transferseg.load.formats.mmseg.hrnet import is_hrnet, read_hrnet
from transferseg.load.formats.mmseg.parts import Body, NotBuiltError, Part, settle_options
from transferseg.load.formats.mmseg.resnet import is_resnet, read_resnet, stride_and_style
from transferseg.load.formats.mmseg.swin import is_swin, read_swin
from transferseg.load.formats.mmseg.unet import is_unet, read_unet
from transferseg.load.formats.mmseg.vit import is_vit, read_vit
from transferseg.load.listing import Listing
from transferseg.spec import ModelSpec
from transferseg.transfer import SourceFormat
from transferseg.transfer.openmmlab import COMPUTED, REORDERED, RULES
from transferseg.transfer.sources import ENCODER_PREFIX

PARTS = ("backbone.", "decode_head.", "neck.", "auxiliary_head.")
#: Of networks of Hugging Face transformers that have parts of these names.
OF_TRANSFORMERS = (
    *("decode_head.classifier.", "backbone.embeddings."),
    *("backbone.encoder.layers.", "backbone.encoder.stages."),
)
UNREAD = "the auxiliary head, which serves training alone, is not built here"
WHY_THRESHOLD = "MMSegmentation's for a head of one row"


@dataclass(frozen=True)
class MMSegFormat(Format):
    """`backbone.` and `decode_head.`, with a `neck.` and an `auxiliary_head.` or without."""

    name: str = field(default="mmseg", init=False)

    def detect(self, listing: Listing) -> bool:
        """Both of the parts that every network there has; transformers' UPerNet has them too."""
        if any(key.startswith(OF_TRANSFORMERS) for key in listing.shapes):
            return False
        return bool(listing.under("backbone.")) and bool(listing.under("decode_head."))

    def describe(self, listing: Listing, findings: Findings) -> Description:
        """The segmentation model; refused by name where ours compute something else."""
        hints = read_hints(listing.metadata)
        try:
            strange = [key for key in listing.shapes if not key.startswith(PARTS)]
            Part("", dict.fromkeys(strange, ())).refuse_strangers("(?!)", "such a network")
            head_part = Part("decode_head.", listing.under("decode_head."))
            head = head_of(head_part, hints)
            body = body_of(listing, findings, hints)
            return _described(listing, head, Given(head_part, body, findings, hints))
        except NotBuiltError as refused:
            return Description(None, missing=str(refused))

    def naming(self, listing: Listing, spec: ModelSpec) -> SourceFormat:  # noqa: ARG002
        """OpenMMLab's names of backbones, and those of the head."""
        unet = spec.architecture == "unet"
        wanted = "fcn" if unet else spec.architecture
        head = next(head for head in HEADS if head.architecture == wanted)
        unread = {} if spec.auxiliary else {"auxiliary_head.*": UNREAD}
        return SourceFormat(
            self.name,
            {"backbone.": ENCODER_PREFIX},
            leave=("*.num_batches_tracked",),
            rules={**RULES, **COMMON, **head.rules},
            adapters=REORDERED,
            reasons={**COMPUTED, **unread},
        )


def body_of(listing: Listing, findings: Findings, hints: Hints) -> Body:
    """The backbone of a listing as an encoder.

    Raises:
        NotBuiltError: it is of another kind, or has what ours has not.
    """
    part = Part("backbone.", listing.under("backbone."))
    neck = Part("neck.", listing.under("neck."))
    if is_vit(part):
        return read_vit(part, neck, findings, hints)
    neck.refuse_strangers("(?!)", "a network over this backbone")
    for known, read in (
        (is_hrnet, read_hrnet),
        (is_swin, read_swin),
        (is_unet, read_unet),
        (is_resnet, read_resnet),
    ):
        if known(part):
            return read(part, findings, hints)
    kind = hints.text("backbone", "type")
    named = f" ({kind})" if kind else ""
    part.refuse_strangers("(?!)", f"a backbone that is built{named}")
    raise NotBuiltError("it has no backbone")


def _described(listing: Listing, head: Head, given: Given) -> Description:
    body, findings, hints = given.body, given.findings, given.hints
    encoder = findings.encoder([body.encoder])
    assert encoder is not None  # one candidate
    settle_options(findings, body.options)
    count = given.part.of("conv_seg.weight", 4)[0]
    architecture, fields = _architecture(head, given)
    auxiliary = Part("auxiliary_head.", listing.under("auxiliary_head."))
    if auxiliary.shapes:
        options, why = auxiliary_of(Given(auxiliary, body, findings, hints), count)
        fields["auxiliary"] = options or False
        if why:
            findings.note("auxiliary head", "not read", "keys", why)
    if slides := hints.sliding():
        findings.note("inference", slides, "metadata", "the config's test_cfg; ours reads whole")
    said = hints.number("decode_head", "threshold")
    spec = findings.spec(
        architecture,
        encoder,
        findings.classes(count, _names(hints, count)),
        usual_input(body.in_channels),
        input_why=INPUT_WHY,
        input_metadata=hints.input_spec(body.in_channels),
        threshold=0.3 if count == 1 else 0.5,
        threshold_why=WHY_THRESHOLD if count == 1 else "",
        threshold_metadata=said if said and 0 < said < 1 else None,
        encoder_options=body.options,
        **fields,
    )
    return Description(architecture, encoder, count, body.in_channels, spec)


def _architecture(head: Head, given: Given) -> tuple[str, dict[str, Any]]:
    """Ours, and the fields of the spec that go with it."""
    body, findings = given.body, given.findings
    if body.kind == "unet":
        if head.architecture != "fcn":
            raise NotBuiltError(f"a head of the kind {head.architecture!r} over U-Net is not built")
        return "unet", {"decoder": unet_options(given), "output_stride": 16}
    if body.kind != "resnet":
        findings.fixed("output_stride", 32, shown_by="its backbone")
        return head.architecture, {"decoder": head.options(given, 32)}
    said, style = stride_and_style(given.hints)
    why = "the published configs of this head"
    stride = findings.open("output_stride", head.output_stride, why=why, metadata=said)
    fields: dict[str, Any] = {"output_stride": stride}
    if stride < 32:
        why = "half the dilation in the first block of a stage"
        fields["dilation"] = findings.open("dilation", "mmseg", why=why, metadata=style)
    return head.architecture, {**fields, "decoder": head.options(given, stride)}


def _names(hints: Hints, count: int) -> tuple[str, ...] | None:
    """The class names; of a head with one row for two classes the second, the foreground."""
    names = hints.classes
    return names[1:] if names is not None and count == 1 and len(names) == 2 else names
