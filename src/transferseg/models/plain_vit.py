"""What a plain ViT needs beside its blocks: checked options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transferseg.errors import SpecError, some, unknown_name
from transferseg.models.pyramid import DEFAULT_PYRAMID, PYRAMIDS
from transferseg.models.values import is_whole

OPTIONS = ("pyramid", "layers", "channels")
#: of the style "mmseg" alone, with their defaults
MMSEG_OPTIONS = {"final_norm": False, "patch_bias": True}


@dataclass(frozen=True)
class PlainViT:
    """A transformer whose maps all have one stride.

    Attributes:
        patch: side of its patches in pixels, the stride of its maps.
        depth: number of its blocks.
        width: channels of its maps.
    """

    patch: int
    depth: int
    width: int


@dataclass(frozen=True)
class PlainOptions:
    """How a plain ViT's maps become an encoder's, every choice made.

    Attributes:
        pyramid: a name in `PYRAMIDS`, or "none" for the ViT's own maps at its stride.
        layers: blocks after which a map is taken, from 0; the blocks after the last are not built.
        channels: of every map.
        final_norm: whether the last map goes through the ViT's final norm.
        patch_bias: whether the convolution that reads the image has a bias.
    """

    pyramid: str
    layers: tuple[int, ...]
    channels: int
    final_norm: bool = False
    patch_bias: bool = True


def plain_options(
    name: str, plain: PlainViT | None, options: Mapping[str, Any], style: str = "timm"
) -> PlainOptions:
    """The options of an encoder, checked, with the defaults of those that are not given.

    Args:
        name: the encoder's, for messages.
        plain: what it is, None for an encoder that is no plain ViT: it has none of them.
        options: `pyramid`: "simple" (default), "multilevel" or "none"; `layers`: four, one for each
            level, or one for all; by default the last for "simple", four spread evenly else;
            `channels`: of every level, by default 256 for "simple", the ViT's for "multilevel";
            in the style "mmseg" also `final_norm` and `patch_bias`.
        style: one of `variant.STYLES`.

    Raises:
        SpecError: an unknown option, or a value that it cannot have; says what it can.

    Example:
        >>> plain_options("vit", PlainViT(16, 12, 192), {"pyramid": "multilevel"})
        PlainOptions(pyramid='multilevel', layers=(2, 5, 8, 11), channels=192, final_norm=False,
            patch_bias=True)
    """
    if plain is None:
        for option in options:
            if option not in (*OPTIONS, *MMSEG_OPTIONS):
                what = f"option of encoder {name!r}"
                raise SpecError(unknown_name(what, option, ("arguments", "style")))
        raise SpecError(
            f"{some(sorted(options))}: of plain ViTs alone, which encoder {name!r} is not; leave "
            "it out. Every encoder has the option 'arguments'; Swin and HRNet also have 'style'."
        )
    for option in options:
        known = (*OPTIONS, *(MMSEG_OPTIONS if style == "mmseg" else ()))
        if option not in known:
            known = (*known, "arguments", "style")
            raise SpecError(unknown_name(f"option of encoder {name!r}", option, known))
    pyramid = options.get("pyramid", DEFAULT_PYRAMID)
    if pyramid not in (*PYRAMIDS, "none"):
        raise SpecError(unknown_name("pyramid", str(pyramid), (*PYRAMIDS, "none")))
    layers = _layers(name, plain, pyramid, options.get("layers"))
    details = _details(plain, layers, options)
    if pyramid == "none":
        if "channels" in options:
            raise SpecError(
                f"pyramid 'none' gives the maps of {name!r} as they are, {plain.width} channels; "
                "leave channels out."
            )
        return PlainOptions(pyramid, layers, plain.width, **details)
    channels = options.get("channels", PYRAMIDS[pyramid].default_channels(plain.width))
    if not is_whole(channels):
        raise SpecError(f"channels of a pyramid must be a whole number from 1, got {channels!r}.")
    return PlainOptions(pyramid, layers, channels, **details)


def _details(
    plain: PlainViT, layers: tuple[int, ...], options: Mapping[str, Any]
) -> dict[str, bool]:
    details = {option: options.get(option, usual) for option, usual in MMSEG_OPTIONS.items()}
    for option, value in details.items():
        if not isinstance(value, bool):
            raise SpecError(f"{option} must be true or false, got {value!r}.")
    if details["final_norm"] and layers[-1] != plain.depth - 1:
        raise SpecError(
            f"the final norm follows the last block, {plain.depth - 1}, but the layers end at "
            f"{layers[-1]}; leave final_norm out, or take the last block."
        )
    return details


def _layers(
    name: str, plain: PlainViT, pyramid: str, asked: Sequence[int] | None
) -> tuple[int, ...]:
    if asked is None:
        one = pyramid in PYRAMIDS and PYRAMIDS[pyramid].default_maps == 1
        return (plain.depth - 1,) if one or plain.depth < 4 else _evenly(plain.depth)
    wanted = "one or four" if pyramid in PYRAMIDS else "some"
    whole = isinstance(asked, (list, tuple)) and all(type(layer) is int for layer in asked)
    layers = tuple(asked) if whole else ()
    rising = list(layers) == sorted(set(layers)) and set(layers) <= set(range(plain.depth))
    if not layers or not rising or (pyramid in PYRAMIDS and len(layers) not in (1, 4)):
        raise SpecError(
            f"layers of {name!r} must be {wanted} of its blocks 0 to {plain.depth - 1}, rising, "
            f"such as {list(_evenly(plain.depth))}; got {asked!r}."
        )
    return layers


def _evenly(depth: int) -> tuple[int, ...]:
    """The last block of each quarter: 2, 5, 8, 11 of 12."""
    return tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
