"""Decoders by architecture name; adding one = a file, a line here, a line in the docs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transferseg.errors import SpecError, unknown_name
from transferseg.models.decoders.attention_unet import AttentionUNetDecoder
from transferseg.models.decoders.base import Decoder
from transferseg.models.decoders.deeplabv3 import DeepLabV3Decoder
from transferseg.models.decoders.deeplabv3plus import DeepLabV3PlusDecoder
from transferseg.models.decoders.fcn import FCNDecoder
from transferseg.models.decoders.psp import PSPDecoder
from transferseg.models.decoders.psp_smp import SmpPSPDecoder
from transferseg.models.decoders.unet import UNetDecoder
from transferseg.models.decoders.upernet import UPerNetDecoder
from transferseg.models.decoders.upernet_smp import SmpUPerNetDecoder

#: architecture name -> decoder class, called as `(channels, strides, **options)`
DECODERS: dict[str, type[Decoder]] = {
    "unet": UNetDecoder,
    "attention_unet": AttentionUNetDecoder,
    "deeplabv3": DeepLabV3Decoder,
    "deeplabv3plus": DeepLabV3PlusDecoder,
    "fcn": FCNDecoder,
    "psp": PSPDecoder,
    "psp_smp": SmpPSPDecoder,
    "upernet": UPerNetDecoder,
    "upernet_smp": SmpUPerNetDecoder,
}


def option_names(architecture: str) -> list[str]:
    """The options of an architecture's decoder.

    Example:
        >>> option_names("upernet")
        ['channels', 'pools', 'dropout', 'align_corners']
    """
    parameters = inspect.signature(DECODERS[architecture]).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def check_options(architecture: str, options: Mapping[str, Any]) -> None:
    """Refuse an option that the architecture's decoder does not have, and no truth value for one.

    Raises:
        SpecError: naming the option, what there is and what may be meant.

    Example:
        >>> check_options("unet", {"chanels": [8]})
        Traceback (most recent call last):
        transferseg.errors.SpecError: unknown option of 'unet' 'chanels': ...
    """
    if architecture not in tuple(DECODERS):
        raise SpecError(unknown_name("architecture", architecture, DECODERS))
    known = option_names(architecture)
    for name in options:
        if name not in known:
            raise SpecError(unknown_name(f"option of {architecture!r}", name, known))
    defaults = inspect.signature(DECODERS[architecture]).parameters
    for name, value in options.items():
        if isinstance(defaults[name].default, bool) and not isinstance(value, bool):
            raise SpecError(f"{name} of {architecture!r} must be true or false, got {value!r}.")
