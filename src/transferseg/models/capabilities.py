"""What timm's models give as encoders, found by building and running them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import log2, prod
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import is_model
from timm.models.densenet import DenseNet
from timm.models.hrnet import HighResolutionNet
from torch import Tensor, nn

from transferseg.errors import SpecError, unknown_name
from transferseg.models.build import (
    FOLLOWING,
    build,
    intermediates,
    plain_width,
    pruned_keys,
    whole,
)
from transferseg.models.openmmlab import check_style
from transferseg.models.plain import PLAIN, plain_channels
from transferseg.models.plain import STRIDES as PLAIN_STRIDES
from transferseg.models.plain_vit import PlainViT, plain_options
from transferseg.models.pyramid import STRIDES
from transferseg.models.variant import Variant

OUTPUT_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class EncoderCapabilities:
    """What an encoder gives, found by building and running it once.

    Attributes:
        name: timm's name, or one of the plain encoders'.
        channels: of each feature map, from shallow to deep.
        strides: of each feature map, undilated.
        output_strides: those that it can be built with, its own last; below it only where its
            features, subsampled, equal the undilated ones.
        refusals: output stride -> why it is refused.
        multiple: images are padded (right and bottom) to a multiple of this, 1 for none.
        pruned: keys of the timm model that the encoder does without.
        plain: what a plain ViT is before its pyramid, whose maps the channels and strides describe;
            None for other encoders.
        parallel: whether the maps are branches that end side by side (HRNet), so that whoever reads
            one map should read them all.
    """

    name: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    output_strides: tuple[int, ...]
    refusals: tuple[tuple[int, str], ...] = ()
    multiple: int = 1
    pruned: tuple[str, ...] = ()
    plain: PlainViT | None = None
    parallel: bool = False


def encoder_capabilities(
    name: str, arguments: Mapping[str, Any] | None = None, *, style: str = "timm"
) -> EncoderCapabilities:
    """What an encoder can do; built and run once a process, with small random weights on the CPU.

    Plain ViTs and Swin, which cannot be dilated, are run without weights, for their shapes alone.

    Args:
        name: a name of `list_encoders()`.
        arguments: of timm's builder, as the encoder option "arguments" gives them.
        style: one of `STYLES`, as the encoder option "style" gives it.

    Raises:
        SpecError: timm has no such model or argument, or it gives no pyramid of feature maps for
            images of any size.

    Example:
        >>> encoder_capabilities("vgg11").output_strides
        (8, 16, 32)
        >>> encoder_capabilities("resnet18", {"channels": [8, 16, 32, 64]}).channels
        (64, 8, 16, 32, 64)
    """
    return _describe(Variant.of(name, arguments, style))


def capabilities_with(name: str, options: Mapping[str, Any]) -> EncoderCapabilities:
    """What an encoder can do with its options, as `Encoder` takes them.

    Raises:
        SpecError: options that are no dict, and whatever `encoder_capabilities` refuses.

    Example:
        >>> capabilities_with("plain", {"arguments": {"width": 4}}).channels
        (4, 8, 16, 32, 64)
    """
    if not isinstance(options, Mapping):
        raise SpecError(f"encoder options must be a dict of values by name, got {options!r}.")
    style = options.get("style", "timm")
    return encoder_capabilities(name, options.get("arguments"), style=style)


@cache
def _describe(variant: Variant) -> EncoderCapabilities:
    name = variant.name
    if name in PLAIN:
        check_style(variant.style, name, None)
        return _describe_plain(variant)
    if not is_model(name):
        raise SpecError(unknown_name("encoder", name, (*timm.list_models(), *PLAIN)))
    if "." in name:
        base, _, tag = name.partition(".")
        raise SpecError(f"{name!r} names weights too: give encoder={base!r}, weights={tag!r}.")
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        try:
            if variant.style == "smp":
                return _explore_tapped(variant)
            explore = _explore_shapes if issubclass(whole(variant)[0], FOLLOWING) else _explore
            return explore(variant)
        except SpecError:
            raise
        except Exception as error:  # timm's models fail each in its own way
            if variant.arguments:
                raise variant.refused(error, ()) from error
            raise SpecError(
                f"encoder {name!r} gives no feature maps in this timm: its model fails with "
                f"{type(error).__name__}: {str(error).strip()}"
            ) from error


def _describe_plain(variant: Variant) -> EncoderCapabilities:
    own = PLAIN_STRIDES[-1]
    refusals = ((8, "plain encoders are not dilated"), (32, f"its deepest map has stride {own}"))
    channels = plain_channels(plain_width(variant))
    return EncoderCapabilities(variant.name, channels, PLAIN_STRIDES, (own,), refusals)


def _explore(variant: Variant) -> EncoderCapabilities:
    name = variant.name
    plain = _probe(variant, 32)
    image = torch.linspace(-2.0, 2.0, 3 * 160 * 192).sin().reshape(1, 3, 160, 192)
    features = _features(plain, image, name)
    refusals = {}
    for output_stride in (8, 16):
        if problem := _dilation_problem(variant, output_stride, plain, features, image):
            refusals[output_stride] = problem
    return EncoderCapabilities(
        name,
        tuple(feature.shape[1] for feature in features),
        _strides(name, features, 192),
        tuple(stride for stride in OUTPUT_STRIDES if stride not in refusals),
        tuple(refusals.items()),
        _multiple(plain),
        pruned_keys(variant, plain),
        parallel=isinstance(plain, HighResolutionNet),
    )


def _explore_shapes(variant: Variant) -> EncoderCapabilities:
    """Without values: these models can be large, and none of them can be dilated."""
    name = variant.name
    with torch.device("meta"):
        model = _built(variant, 32)
        if not isinstance(model.patch_embed, PatchEmbed):
            why = "it begins with convolutions, whose grid timm miscounts."
            raise SpecError(_one_size(name, why))
        multiple = _multiple(model)
        height, width = -(-160 // multiple) * multiple, -(-192 // multiple) * multiple
        features = _features(model, torch.zeros(1, 3, height, width), name)
    refusals = dict.fromkeys((8, 16), "timm does not build it dilated")
    channels = tuple(feature.shape[1] for feature in features)
    plain = None
    if len({feature.shape for feature in features}) == 1:
        plain = PlainViT(width // features[0].shape[-1], len(features), channels[0])
        chosen = plain_options(name, plain, {})
        channels = (chosen.channels,) * len(STRIDES)
    strides = STRIDES if plain else _strides(name, features, width)
    return EncoderCapabilities(
        name,
        channels,
        strides,
        (32,),
        tuple(refusals.items()),
        multiple,
        pruned_keys(variant, model),
        plain,
    )


def _explore_tapped(variant: Variant) -> EncoderCapabilities:
    """Without values: smp dilates as it does, whether or not its features stay the same."""
    with torch.device("meta"):
        model = _built(variant, 32)
        features = _features(model, torch.zeros(1, 3, 160, 192), variant.name)
    refused = (8, 16) if isinstance(model, DenseNet) else ()
    return EncoderCapabilities(
        variant.name,
        tuple(feature.shape[1] for feature in features),
        _strides(variant.name, features, 192),
        tuple(stride for stride in OUTPUT_STRIDES if stride not in refused),
        tuple(dict.fromkeys(refused, "smp does not build it dilated").items()),
        pruned=pruned_keys(variant, model),
    )


def _strides(name: str, features: Sequence[Tensor], width: int) -> tuple[int, ...]:
    strides = tuple(2 ** round(log2(width / feature.shape[-1])) for feature in features)
    if len(set(strides)) != len(strides) or strides[-1] != 32:
        raise SpecError(
            f"encoder {name!r} gives feature maps at strides {list(strides)}, not a pyramid that "
            "ends at stride 32; choose a hierarchical encoder, or a plain ViT of timm's classes "
            f"{', '.join(c.__name__ for c in FOLLOWING[:2])}."
        )
    return strides


def _multiple(model: Any) -> int:  # noqa: ANN401 - a timm model
    """The least multiple of which an image's sides must be: 1, its patch or stem, else 32."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    sides = {1, *(patch if isinstance(patch, tuple) else ())}
    for side in sorted(sides):
        # An odd number of times the side, so that no larger multiple passes by chance.
        height, width = side * (147 // side | 1), side * (181 // side | 1)
        try:
            with torch.no_grad():
                intermediates(model, torch.zeros(1, 3, height, width))
        except (RuntimeError, AssertionError, ValueError):
            continue
        return int(side)
    return 32


def _built(variant: Variant, output_stride: int) -> Any:  # noqa: ANN401 - a timm model
    try:
        return build(variant, 3, output_stride)
    except (TypeError, AssertionError, NotImplementedError) as error:
        raise SpecError(
            f"timm cannot build {variant.name!r} at stride {output_stride}: {error}"
        ) from error


def _probe(variant: Variant, output_stride: int) -> Any:  # noqa: ANN401 - a timm model
    """The encoder with random weights in which no branch is silent (timm zeroes residual norms)."""
    model = _built(variant, output_stride).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if not value.is_floating_point():
                value.zero_()
            elif value.ndim > 1:
                value.normal_(std=(2 / prod(value.shape[1:])) ** 0.5, generator=generator)
            elif key.endswith("running_mean"):
                value.normal_(std=0.1, generator=generator)
            else:
                value.uniform_(0.5, 1.0, generator=generator)
    return model


def _features(model: Any, image: Tensor, name: str) -> list[Tensor]:  # noqa: ANN401
    try:
        with torch.no_grad():
            return intermediates(model, image)
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise SpecError(_one_size(name, str(error).strip() or type(error).__name__)) from error


def _one_size(name: str, why: str) -> str:
    return (
        f"encoder {name!r} does not take images of any size: {why} Transformers that do: vit_*, "
        "deit* and eva* that begin with patches, swin_* and swinv2_* (no relpos, hybrid or cr)."
    )


def _dilation_problem(
    variant: Variant, output_stride: int, plain: nn.Module, wanted: list[Tensor], image: Tensor
) -> str | None:
    """Why an encoder cannot be dilated, or None: its features, subsampled, must not change."""
    try:
        dilated = _probe(variant, output_stride)
    except SpecError:
        return "timm does not build it dilated"
    weights = plain.state_dict()
    if _shapes(dilated.state_dict()) != _shapes(weights):
        return "timm builds it dilated with other parameters"  # a shortcut that it does without
    dilated.load_state_dict(weights)
    for before, after in zip(wanted, _features(dilated, image, variant.name), strict=True):
        step = after.shape[-1] // before.shape[-1]
        change = (after[..., ::step, ::step] - before).abs().max() / before.abs().max()
        if not float(change) < 1e-4:
            return "its dilated features would differ from the undilated ones"
    return None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}
