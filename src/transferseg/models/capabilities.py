"""What timm's models give as encoders, and building them as such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import log2, prod
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import is_model, model_entrypoint
from timm.models.eva import Eva
from timm.models.hrnet import HighResolutionNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from transferseg.errors import SpecError, unknown_name
from transferseg.models.dilation import built_by_timm, mend
from transferseg.models.plain import PLAIN, PlainEncoder, plain_channels
from transferseg.models.plain import STRIDES as PLAIN_STRIDES
from transferseg.models.plain_vit import PlainViT, plain_options
from transferseg.models.pyramid import STRIDES
from transferseg.models.windows import let_windows_follow

OUTPUT_STRIDES = (8, 16, 32)
#: timm's models for one image size, unless they are asked to follow the image's
FOLLOWING = (VisionTransformer, Eva, SwinTransformer, SwinTransformerV2)


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


@cache
def encoder_capabilities(name: str) -> EncoderCapabilities:
    """What an encoder can do; built and run once a process, with small random weights on the CPU.

    Plain ViTs and Swin, which cannot be dilated, are run without weights, for their shapes alone.

    Raises:
        SpecError: timm has no such model, or it gives no pyramid of feature maps for images of
            any size.

    Example:
        >>> encoder_capabilities("vgg11").output_strides
        (8, 16, 32)
    """
    if name in PLAIN:
        return _describe_plain(name)
    if not is_model(name):
        raise SpecError(unknown_name("encoder", name, (*timm.list_models(), *PLAIN)))
    if "." in name:
        base, _, tag = name.partition(".")
        raise SpecError(f"{name!r} names weights too: give encoder={base!r}, weights={tag!r}.")
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        if issubclass(_whole(name)[0], FOLLOWING):
            return _explore_shapes(name)
        return _explore(name)


def _describe_plain(name: str) -> EncoderCapabilities:
    own = PLAIN_STRIDES[-1]
    refusals = ((8, "plain encoders are not dilated"), (32, f"its deepest map has stride {own}"))
    return EncoderCapabilities(name, plain_channels(PLAIN[name]), PLAIN_STRIDES, (own,), refusals)


def _explore(name: str) -> EncoderCapabilities:
    plain = _probe(name, 32)
    image = torch.linspace(-2.0, 2.0, 3 * 160 * 192).sin().reshape(1, 3, 160, 192)
    features = _features(plain, image, name)
    refusals = {}
    for output_stride in (8, 16):
        if problem := _dilation_problem(name, output_stride, plain, features, image):
            refusals[output_stride] = problem
    return EncoderCapabilities(
        name,
        tuple(feature.shape[1] for feature in features),
        _strides(name, features, 192),
        tuple(stride for stride in OUTPUT_STRIDES if stride not in refusals),
        tuple(refusals.items()),
        _multiple(plain),
        pruned_keys(name, plain),
        parallel=isinstance(plain, HighResolutionNet),
    )


def _explore_shapes(name: str) -> EncoderCapabilities:
    """Without values: these models can be large, and none of them can be dilated."""
    with torch.device("meta"):
        model = _built(name, 32)
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
        pruned_keys(name, model),
        plain,
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
                _intermediates(model, torch.zeros(1, 3, height, width))
        except (RuntimeError, AssertionError, ValueError):
            continue
        return int(side)
    return 32


def pruned_keys(name: str, model: nn.Module) -> tuple[str, ...]:
    """Keys of the whole timm model that the encoder has not."""
    if name in PLAIN:
        return ()
    kept = model.state_dict()
    _, keys = _whole(name)
    return tuple(key for key in keys if key not in kept)


def _build(
    name: str,
    in_channels: int,
    output_stride: int,
    pretrained: bool | str = False,
    layers: Sequence[int] | None = None,
) -> Any:  # noqa: ANN401 - a timm model
    if name in PLAIN:
        if pretrained:
            raise SpecError(f"there are no weights of encoder {name!r} to download; give a path.")
        return PlainEncoder(PLAIN[name], in_channels=in_channels)
    model_class, _ = _whole(name)
    options: dict[str, float] = {}
    if output_stride != 32 and built_by_timm(model_class):
        options["output_stride"] = output_stride
    if issubclass(model_class, FOLLOWING):
        options["dynamic_img_size"] = True
    if not built_by_timm(model_class) and not pretrained:
        # VGG's fully connected layers (100 million values) are built and pruned: keep them thin.
        options["mlp_ratio"] = 1 / 4096
    tagged = f"{name}.{pretrained}" if isinstance(pretrained, str) else name
    try:
        model = timm.create_model(
            tagged, pretrained=bool(pretrained), in_chans=in_channels, num_classes=0, **options
        )
    except (RuntimeError, OSError) as error:
        raise SpecError(
            f"timm cannot build encoder {tagged!r}{' with its weights' if pretrained else ''}: "
            f"{error}"
        ) from error
    if not hasattr(model, "forward_intermediates"):
        raise SpecError(f"encoder {name!r} has no forward_intermediates in this timm.")
    _prune(model, layers)
    if output_stride != 32:
        mend(model, output_stride)
    let_windows_follow(model)
    return model


def _prune(model: Any, layers: Sequence[int] | None) -> None:  # noqa: ANN401 - a timm model
    """Drop what no feature map needs: heads, and blocks after the last layer."""
    wanted = None if layers is None else list(layers)
    model.prune_intermediate_layers(wanted, prune_norm=True, prune_head=True)
    leftovers = ["pre_logits", "head", "conv_head"]
    if hasattr(model, "conv_head"):  # whose norm it is; elsewhere "bn2" is the stem's
        leftovers.append("bn2")
    for leftover in leftovers:
        if isinstance(getattr(model, leftover, None), nn.Module):
            setattr(model, leftover, nn.Identity())
    if isinstance(model, HighResolutionNet):
        model.incre_modules = None  # part of the classifier: the maps are the branches themselves


def _intermediates(
    model: Any,  # noqa: ANN401 - a timm model
    image: Tensor,
    layers: Sequence[int] | None = None,
) -> list[Tensor]:
    """The feature maps; of HRNet its branches, without the stem's."""
    if isinstance(model, HighResolutionNet):
        layers = range(1, model.num_branches + 1)
    chosen = {} if layers is None else {"indices": list(layers)}
    features: list[Tensor] = model.forward_intermediates(image, intermediates_only=True, **chosen)
    return features


@cache
def _whole(name: str) -> tuple[type[nn.Module], tuple[str, ...]]:
    """Class and keys of the whole timm model, built without memory for weights where that works."""
    try:
        with torch.device("meta"):
            model: nn.Module = model_entrypoint(name)(pretrained=False)
    except NotImplementedError:  # RegNet's constructor calls operators that older torch has not
        model = model_entrypoint(name)(pretrained=False)
    return type(model), tuple(model.state_dict())


def _built(name: str, output_stride: int) -> Any:  # noqa: ANN401 - a timm model
    try:
        return _build(name, 3, output_stride)
    except (TypeError, AssertionError, NotImplementedError) as error:
        raise SpecError(f"timm cannot build {name!r} at stride {output_stride}: {error}") from error


def _probe(name: str, output_stride: int) -> Any:  # noqa: ANN401 - a timm model
    """The encoder with random weights in which no branch is silent (timm zeroes residual norms)."""
    model = _built(name, output_stride).eval()
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
            return _intermediates(model, image)
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise SpecError(_one_size(name, str(error).strip())) from error


def _one_size(name: str, why: str) -> str:
    return (
        f"encoder {name!r} does not take images of any size: {why} Transformers that do: vit_*, "
        "deit* and eva* that begin with patches, swin_* and swinv2_* (no relpos, hybrid or cr)."
    )


def _dilation_problem(
    name: str, output_stride: int, plain: nn.Module, wanted: list[Tensor], image: Tensor
) -> str | None:
    """Why an encoder cannot be dilated, or None: its features, subsampled, must not change."""
    try:
        dilated = _probe(name, output_stride)
    except SpecError:
        return "timm does not build it dilated"
    dilated.load_state_dict(plain.state_dict())
    for before, after in zip(wanted, _features(dilated, image, name), strict=True):
        step = after.shape[-1] // before.shape[-1]
        change = (after[..., ::step, ::step] - before).abs().max() / before.abs().max()
        if not float(change) < 1e-4:
            return "its dilated features would differ from the undilated ones"
    return None
