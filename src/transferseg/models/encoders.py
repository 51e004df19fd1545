"""Any timm model, or a plain one, as a feature pyramid: timm's own module and names inside."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import filter as matching
from functools import cache
from math import ceil, log2, prod
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import is_model, model_entrypoint
from torch import Tensor, nn

from transferseg.errors import SpecError, unknown_name
from transferseg.models.dilation import built_by_timm, mend
from transferseg.models.plain import PLAIN, STRIDES, PlainEncoder, plain_channels, plain_input
from transferseg.spec import InputSpec

OUTPUT_STRIDES = (8, 16, 32)
DILATIONS = ("timm",)


@dataclass(frozen=True)
class EncoderCapabilities:
    """What an encoder gives, found by building and running it once with small random weights.

    Attributes:
        name: timm's name, or one of the plain encoders'.
        channels: of each feature map, from shallow to deep.
        strides: of each feature map, undilated.
        output_strides: those that it can be built with, its own last; below it only where its
            features, subsampled, equal the undilated ones.
        refusals: output stride -> why it is refused.
        multiple: images are padded (right and bottom) to a multiple of this, 1 for none.
        pruned: keys of the timm model that the encoder does without.
    """

    name: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    output_strides: tuple[int, ...]
    refusals: tuple[tuple[int, str], ...] = ()
    multiple: int = 1
    pruned: tuple[str, ...] = ()


class Encoder(nn.Module):
    """A timm model without its head; its feature maps from shallow to deep.

    The timm model is held as `model`, so its parameters keep timm's names behind `model.`.

    Args:
        name: a timm model name, such as "resnet50", or "plain": see `PlainEncoder`.
        in_channels: channels of the image.
        output_stride: 32, or 16 or 8 by dilation; None for its own.
        dilation: whose way of dilating; "timm" is torchvision's.
        pretrained: False, True for timm's default weights, or a tag of timm's; downloads them.

    Attributes:
        channels: of each feature map.
        strides: of each feature map; dilated ones repeat.

    Raises:
        SpecError: an unknown name, or something that the encoder cannot do; says what it can.

    Example:
        >>> encoder = Encoder("resnet10t", in_channels=1).eval()
        >>> [tuple(f.shape[1:]) for f in encoder(torch.rand(1, 1, 64, 96))][-1], encoder.strides
        ((512, 2, 3), (2, 4, 8, 16, 32))
    """

    model: Any  # a timm model; timm has no common class with forward_intermediates

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        output_stride: int | None = None,
        dilation: str = "timm",
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        if dilation not in DILATIONS:
            raise SpecError(unknown_name("dilation style", dilation, DILATIONS))
        capabilities = encoder_capabilities(name)
        if output_stride is None:
            output_stride = capabilities.output_strides[-1]
        if output_stride not in capabilities.output_strides:
            why = dict(capabilities.refusals).get(output_stride, "not a stride of encoders")
            raise SpecError(
                f"encoder {name!r} cannot be built with output stride {output_stride} ({why}); "
                f"it can with {list(capabilities.output_strides)}."
            )
        self.model = _build(name, in_channels, output_stride, pretrained)
        self.channels = capabilities.channels
        self.strides = tuple(min(stride, output_stride) for stride in capabilities.strides)
        self.multiple = capabilities.multiple
        self.pruned = capabilities.pruned

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> feature maps (B, channels[i], ~H/strides[i], ~W/strides[i])."""
        height, width = image.shape[-2:]
        if self.multiple > 1:
            image = F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple))
        features: list[Tensor] = self.model.forward_intermediates(image, intermediates_only=True)
        if self.multiple > 1:
            features = [
                feature[..., : ceil(height / stride), : ceil(width / stride)]
                for feature, stride in zip(features, self.strides, strict=True)
            ]
        return features

    def stem_keys(self) -> tuple[str, ...]:
        """Keys of the convolutions that read the image."""
        first = self.model.pretrained_cfg.get("first_conv") or ()
        names = (first,) if isinstance(first, str) else tuple(first)
        return tuple(f"model.{name}.weight" for name in names)


def list_encoders(pattern: str = "") -> list[str]:
    """Names of timm's models and of the plain encoders, which `encoder_capabilities` describes.

    Args:
        pattern: shell-style, such as "resnet*"; empty for all.

    Example:
        >>> list_encoders("vgg1?")
        ['vgg11', 'vgg13', 'vgg16', 'vgg19']
    """
    names: list[str] = timm.list_models(pattern)
    return [*names, *matching(PLAIN, pattern or "*")]


def encoder_input(name: str, channels: int) -> InputSpec:
    """The input that timm's weights of this encoder expect, for any number of channels."""
    if name in PLAIN:
        return plain_input(channels)
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise SpecError(f"timm knows no statistics of {name!r}; give input_spec=.")
    return InputSpec.from_statistics(config.mean, config.std, channels=channels)


@cache
def encoder_capabilities(name: str) -> EncoderCapabilities:
    """What an encoder can do; built and run once a process, with small random weights on the CPU.

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
        raise SpecError(unknown_name("encoder", name, list_encoders()))
    if "." in name:
        base, _, tag = name.partition(".")
        raise SpecError(f"{name!r} names weights too: give encoder={base!r}, weights={tag!r}.")
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        return _explore(name)


def _describe_plain(name: str) -> EncoderCapabilities:
    own = STRIDES[-1]
    refusals = ((8, "plain encoders are not dilated"), (32, f"its deepest map has stride {own}"))
    return EncoderCapabilities(name, plain_channels(PLAIN[name]), STRIDES, (own,), refusals)


def _explore(name: str) -> EncoderCapabilities:
    plain = _probe(name, 32)
    image = torch.linspace(-2.0, 2.0, 3 * 160 * 192).sin().reshape(1, 3, 160, 192)
    features = _features(plain, image, name)
    strides = tuple(2 ** round(log2(192 / f.shape[-1])) for f in features)
    channels = tuple(f.shape[1] for f in features)
    if len(set(strides)) != len(strides) or strides[-1] != 32:
        raise SpecError(
            f"encoder {name!r} gives feature maps at strides {list(strides)}, not a pyramid that "
            "ends at stride 32 (as plain ViTs do); choose a hierarchical encoder."
        )
    refusals = {}
    for output_stride in (8, 16):
        if problem := _dilation_problem(name, output_stride, plain, features, image):
            refusals[output_stride] = problem
    able = tuple(stride for stride in OUTPUT_STRIDES if stride not in refusals)
    return EncoderCapabilities(
        name,
        channels,
        strides,
        able,
        tuple(refusals.items()),
        _multiple(plain),
        _pruned(name, plain),
    )


def _multiple(model: Any) -> int:  # noqa: ANN401 - a timm model
    """1 when images of odd sizes pass, else the 32 to which they must be padded."""
    try:
        with torch.no_grad():
            model.forward_intermediates(torch.zeros(1, 3, 147, 181), intermediates_only=True)
    except (RuntimeError, AssertionError, ValueError):
        return 32
    return 1


def _pruned(name: str, model: nn.Module) -> tuple[str, ...]:
    """Keys of the whole timm model that the encoder has not."""
    kept = model.state_dict()
    return tuple(key for key in _whole(name).state_dict() if key not in kept)


def _build(name: str, in_channels: int, output_stride: int, pretrained: bool | str = False) -> Any:  # noqa: ANN401 - a timm model
    if name in PLAIN:
        if pretrained:
            raise SpecError(f"there are no weights of encoder {name!r} to download; give a path.")
        return PlainEncoder(PLAIN[name], in_channels=in_channels)
    model_class = _model_class(name)
    options: dict[str, float] = {}
    if output_stride != 32 and built_by_timm(model_class):
        options["output_stride"] = output_stride
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
    model.prune_intermediate_layers(None, prune_norm=True, prune_head=True)
    for leftover in ("pre_logits", "head", "conv_head", "bn2"):
        if isinstance(getattr(model, leftover, None), nn.Module):
            setattr(model, leftover, nn.Identity())
    if output_stride != 32:
        mend(model, output_stride)
    return model


@cache
def _model_class(name: str) -> type[nn.Module]:
    return type(_whole(name))


def _whole(name: str) -> nn.Module:
    """The whole timm model, without memory for its weights where its constructor allows it."""
    try:
        with torch.device("meta"):
            model: nn.Module = model_entrypoint(name)(pretrained=False)
    except NotImplementedError:  # RegNet's constructor calls operators that older torch has not
        model = model_entrypoint(name)(pretrained=False)
    return model


def _probe(name: str, output_stride: int) -> Any:  # noqa: ANN401 - a timm model
    """The encoder with random weights in which no branch is silent (timm zeroes residual norms)."""
    try:
        model = _build(name, 3, output_stride)
    except (TypeError, AssertionError, NotImplementedError) as error:
        raise SpecError(f"timm cannot build {name!r} at stride {output_stride}: {error}") from error
    model.eval()
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
            features: list[Tensor] = model.forward_intermediates(image, intermediates_only=True)
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise SpecError(
            f"encoder {name!r} does not take images of any size: {str(error).strip()}"
        ) from error
    return features


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
