"""`inspect_checkpoint`: what a checkpoint holds, without building its model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from transferseg.errors import some
from transferseg.load.findings import Assumption, Findings
from transferseg.load.formats import ENCODER_ONLY, FORMATS, Description, Format
from transferseg.load.formats.timm import resembles
from transferseg.load.listing import Listing, read_listing
from transferseg.spec import InputSpec, ModelSpec
from transferseg.types import TargetMode

#: What may be said of any checkpoint; other keywords are options of a decoder.
KEYWORDS = (
    *("encoder", "classes", "mode", "threshold", "output_stride", "dilation", "input_spec"),
    "encoder_options",
)


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint holds; printed as a table.

    Attributes:
        path: of the file or folder.
        format: a name in `FORMATS`; None where none recognises it.
        architecture: of the model: of `list_architectures()`, "classifier", "autoencoder",
            "encoder" for an encoder alone; None for one that transferseg does not build.
        encoder: its name; None where several fit.
        classes: how many the head has, 0 where there is no head.
        in_channels: of the image; None where no format tells.
        spec: what rebuilds the model; None for an encoder alone, or where something is open.
        candidates: encoders that fit equally well and compute different things.
        assumed: what keys and shapes do not tell, and where it was taken from.
        peeled: wrappers around the weights, outermost first.
        others: what else is in the file.
        tensors: how many.
        parameters: how many values they have together, buffers included.
        dtypes: of the tensors.
        missing: why `load_checkpoint` would refuse it; empty where it would not.

    Example:
        >>> import tempfile, timm, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(timm.create_model("tf_efficientnet_b0").state_dict(), f"{folder}/a.pth")
        ...     info = inspect_checkpoint(f"{folder}/a.pth")
        >>> info.encoder, info.candidates
        (None, ('efficientnet_b0', 'efficientnet_blur_b0', 'tf_efficientnet_b0'))
    """

    path: str
    format: str | None
    architecture: str | None
    encoder: str | None
    classes: int
    in_channels: int | None
    spec: ModelSpec | None
    candidates: tuple[str, ...]
    assumed: tuple[Assumption, ...]
    peeled: tuple[str, ...]
    others: tuple[str, ...]
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]
    missing: str = ""

    def __str__(self) -> str:
        rows = [
            ("format", self.format or "not recognised"),
            ("architecture", self.architecture or "not known"),
            ("encoder", self.encoder or " or ".join(self.candidates) or "not known"),
            ("classes", str(self.classes or "no head")),
            ("input channels", str(self.in_channels or "not known")),
            ("tensors", f"{self.tensors:,} ({self.parameters:,} values, {', '.join(self.dtypes)})"),
            *(("peeled", prefix) for prefix in self.peeled),
            *(("beside them", name) for name in self.others),
            *(("assumed", str(one)) for one in self.assumed),
        ]
        if self.missing:
            rows.append(("not loaded", self.missing))
        lines = [f"{name.ljust(16)}{value}" for name, value in rows]
        return "\n".join([self.path, *lines])

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-ready values."""
        values = {**vars(self), "spec": self.spec and self.spec.to_dict()}
        values["assumed"] = [{**vars(a), "value": _plain(a.value)} for a in self.assumed]
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1)


def inspect_checkpoint(
    path: str | os.PathLike[str],
    *,
    entry: str | None = None,
    encoder: str | None = None,
    classes: int | Sequence[str] | None = None,
    mode: TargetMode | None = None,
    threshold: float | None = None,
    output_stride: int | None = None,
    dilation: str | None = None,
    input_spec: InputSpec | None = None,
    encoder_options: Mapping[str, Any] | None = None,
    **decoder: Any,  # noqa: ANN401 - the decoder's own options
) -> CheckpointInfo:
    """What a checkpoint of any known ecosystem holds, from its names and shapes.

    Of safetensors files the header alone is read. The file's metadata is a hint: it decides what
    names and shapes leave open, and nothing that they tell.

    Args:
        path: a checkpoint file, or a folder with one: transferseg's own, a hub repository's,
            sharded ones too.
        entry: which of several sets of weights in the file, such as "ema".
        encoder: which of several encoders of equal shapes it is.
        classes: their names, or their number, which must be the head's.
        mode: as in `create_model`.
        threshold: as in `create_model`.
        output_stride: that the model was trained with, where the file does not tell.
        dilation: as in `create_model`.
        input_spec: what the weights expect of an image.
        encoder_options: as in `create_model`.
        **decoder: options of the decoder that no shape tells, such as `align_corners` or `rates`.

    Raises:
        CheckpointError: the file cannot be read, or a keyword contradicts it or says nothing about
            it.

    Example:
        >>> import tempfile, timm, torch
        >>> theirs = timm.create_model("resnet10t", num_classes=5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(theirs.state_dict(), f"{folder}/a.pth")
        ...     info = inspect_checkpoint(f"{folder}/a.pth")
        >>> info.format, info.architecture, info.encoder, info.classes
        ('timm', 'classifier', 'resnet10t', 5)
    """
    asked = {
        "encoder": encoder,
        "classes": classes,
        "mode": mode,
        "threshold": threshold,
        "output_stride": output_stride,
        "dilation": dilation,
        "input_spec": input_spec,
        "encoder_options": encoder_options,
        **decoder,
    }
    return examine(read_listing(path, entry=entry), asked).info


@dataclass(frozen=True)
class Examined:
    """A listing, the format that recognised it, and what that makes of it."""

    listing: Listing
    format: Format | None
    info: CheckpointInfo


def examine(listing: Listing, asked: Mapping[str, Any]) -> Examined:
    """Find the format of a listing and let it describe the model.

    Raises:
        CheckpointError: a keyword contradicts the file or says nothing about it.
    """
    found = next((known for known in FORMATS.values() if known.detect(listing)), None)
    if found is None and resembles(listing, asked.get("encoder")):
        found = FORMATS["timm"]
    findings = Findings(listing.origin, asked)
    if found is None:
        described = Description(
            None, missing=f"its names are of no known format: {some(listing.shapes)}"
        )
    else:
        described = found.describe(listing, findings)
        if described.spec is not None:
            findings.refuse_idle()
        elif described.architecture in (ENCODER_ONLY, "classifier"):  # they have no decoder
            findings.refuse_idle(KEYWORDS)
    return Examined(listing, found, _info(listing, found, described, findings))


def _info(
    listing: Listing, found: Format | None, described: Description, findings: Findings
) -> CheckpointInfo:
    return CheckpointInfo(
        path=listing.origin,
        format=found.name if found else None,
        architecture=described.architecture,
        encoder=described.encoder,
        classes=described.classes,
        in_channels=described.in_channels if described.architecture else None,
        spec=described.spec,
        candidates=described.candidates,
        assumed=tuple(findings.assumed),
        peeled=listing.peeled,
        others=listing.others,
        tensors=len(listing.shapes),
        parameters=listing.parameters,
        dtypes=tuple(sorted({str(d).removeprefix("torch.") for d in listing.dtypes.values()})),
        missing=_missing(described),
    )


def _missing(described: Description) -> str:
    """Why there is no model to build."""
    if described.architecture == ENCODER_ONLY and described.encoder:
        alone = "it holds an encoder and no head: create_model(..., weights=path) takes it"
        return described.missing or alone
    if described.candidates:
        names = ", ".join(described.candidates)
        return f"several encoders have these names and shapes: say encoder= one of {names}"
    return described.missing


def _plain(value: object) -> object:
    """A settled value for JSON: a spec as its fields."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
