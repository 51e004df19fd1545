"""The config.json of a timm hub folder: what it says of the model, as far as it can be one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.models import is_model

from transferseg.errors import SpecError
from transferseg.load.encoders import differs, layout
from transferseg.load.findings import Findings, numbers
from transferseg.load.listing import Listing
from transferseg.load.timm_index import bare, digest, models_of, shapes_of
from transferseg.models.variant import REFUSED, Variant
from transferseg.spec import InputSpec

#: Arguments that timm writes and that neither names, shapes nor results of a classifier show.
IDLE = frozenset(
    (
        "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
        "pretrained_strict", "pretrained_model_args", "num_classes", "in_chans", "drop_rate",
        "drop_path_rate", "dynamic_img_size", "strict_img_size", "device", "dtype", "scriptable",
        "exportable", "no_jit",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Built:
    """What timm's builder was given for a file's model beside its name.

    Attributes:
        arguments: those that make another model of it.
        missing: why such a model is not built; empty where it is.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""


def named(listing: Listing) -> str | None:
    """What the config.json of a hub folder calls the model, if timm has it."""
    given = listing.config().get("architecture")
    name = given.split(".")[0] if isinstance(given, str) else ""
    return name if is_model(name) else None


def label_names(listing: Listing) -> list[str] | None:
    """The names of the classes, where it is a list of names."""
    given = listing.config().get("label_names")
    listed = isinstance(given, list) and all(isinstance(name, str) for name in given)
    return given if listed else None


def stated_input(listing: Listing, channels: int) -> InputSpec | None:
    """The mean and std, if an image can be scaled by them."""
    config = listing.config()
    stated: Any = config.get("pretrained_cfg", config)
    mean, std = (stated.get(k) for k in ("mean", "std")) if isinstance(stated, Mapping) else (0, 0)
    mean, std = numbers(mean), numbers(std)
    if not mean or len(mean) != len(std):
        return None
    try:
        return InputSpec.from_statistics(mean, std, channels=channels)
    except SpecError:
        return None


def built(listing: Listing, findings: Findings, name: str) -> Built:
    """The arguments of `encoder_options=`, else of the config.json.

    Args:
        listing: what the file holds.
        findings: what keywords decide.
        name: of the timm model.

    Returns:
        No arguments where the model is what its name says.
    """
    asked = findings.asked.get("encoder_options")
    given = _stated(listing, name)
    if asked is not None:
        if not isinstance(asked, Mapping) or set(asked) - {"arguments"}:
            return Built(missing=f"a whole timm model has the option arguments alone, got {asked}")
        given = asked.get("arguments")
    try:
        arguments = Variant.of(name, given).arguments
        changed = bool(arguments) and differs(name, arguments)
    except Exception as error:  # timm's builders raise whatever an argument makes wrong
        if asked is None and set(given or ()) == {"global_pool"} and "unexpected" in str(error):
            return Built()  # a model without this argument has one way of pooling
        return Built(missing=f"timm's {name!r} is not built with {given}: {error}")
    if not changed and asked is None:
        return Built()
    options = {"arguments": given}
    findings.open("encoder_options", options, why="", metadata=options)
    return Built(arguments)


def shaped(listing: Listing) -> str | None:
    """The model that the config.json names, where its arguments make the file's shapes."""
    name = named(listing)
    arguments = _stated(listing, name) if name else None
    if name is None or not arguments:
        return None
    try:
        model = bare(name, **Variant.of(name, arguments).arguments)
    except Exception:  # arguments that timm refuses; `built` says so where they matter
        return None
    kept = layout(name)
    same = digest(listing.shapes, kept) == digest(shapes_of(model), kept)
    return name if same else None


def _stated(listing: Listing, name: str) -> dict[str, Any] | None:
    """What timm's builder was given beside classes and channels, None where nothing is said."""
    told, config = named(listing), listing.config()
    if told is None or (name != told and told not in models_of(listing.shapes)):
        return None  # the config.json of another model
    stated = config.get("model_args")
    pool = {"global_pool": config["global_pool"]} if config.get("global_pool") else {}
    given = {**pool, **(stated if isinstance(stated, Mapping) else {})}
    idle = {key for key, value in given.items() if key in REFUSED and not value}
    idle |= {key for key in given if key in IDLE or given[key] is None}
    if given.get("output_stride") == 32:
        idle.add("output_stride")
    return {key: value for key, value in given.items() if key not in idle}
