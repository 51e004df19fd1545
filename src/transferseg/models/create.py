"""`create_model`, `create_classifier`, `create_autoencoder`, and what there is to create."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from torch import Tensor

from transferseg.errors import SpecError, TransferError
from transferseg.models.autoencoder import Autoencoder
from transferseg.models.base import SpecModel
from transferseg.models.capabilities import capabilities_with
from transferseg.models.classifier import Classifier
from transferseg.models.decoders import DECODERS, check_options
from transferseg.models.encoders import encoder_input
from transferseg.models.segmenter import Segmenter
from transferseg.models.values import is_whole
from transferseg.spec import InputSpec, ModelSpec, class_names, default_mode
from transferseg.transfer import read_source, transfer_weights
from transferseg.transfer.adapters import InputChannels
from transferseg.transfer.sources import BESIDE, ENCODER_PREFIX, detect
from transferseg.types import TargetMode

#: Of the encoder: None (random), "default" or a tag of timm's (downloaded), or a checkpoint's path.
Weights: TypeAlias = "str | os.PathLike[str] | None"
M = TypeVar("M", bound=SpecModel)


def list_architectures() -> list[str]:
    """Names of the segmentation architectures.

    Example:
        >>> [name for name in list_architectures() if name.startswith("deeplab")]
        ['deeplabv3', 'deeplabv3plus']
    """
    return sorted(DECODERS)


def create_model(
    architecture: str,
    encoder: str,
    *,
    classes: int | Sequence[str],
    mode: TargetMode | None = None,
    threshold: float = 0.5,
    in_channels: int = 3,
    input_spec: InputSpec | None = None,
    weights: Weights = None,
    output_stride: int | None = None,
    dilation: str = "timm",
    encoder_options: Mapping[str, Any] | None = None,
    auxiliary: bool | Mapping[str, Any] = False,
    **decoder: Any,  # noqa: ANN401 - the decoder's own options, checked by name
) -> Segmenter:
    """A segmentation model: image (B, C, H, W) -> logits (B, classes, H, W).

    Args:
        architecture: a name of `list_architectures()`.
        encoder: a name of `list_encoders()`.
        classes: their number, or their names in the order of the output channels.
        mode: "binary" for one class, "multiclass" or "multilabel" for more; by default binary for
            one class and multiclass for more.
        threshold: probability above which a binary or multilabel pixel is foreground.
        in_channels: channels of the image.
        input_spec: what the weights expect of an image; by default the statistics of timm's
            weights of this encoder.
        weights: of the encoder: None for random ones, "default" or a timm tag (downloaded), or the
            path of a checkpoint, from which all of the encoder must come.
        output_stride: of the encoder's deepest map; by default what the architecture prefers of
            what the encoder can (U-Net and UPerNet 32; FCN, PSP and DeepLabV3 8;
            DeepLabV3+ 16; the plain encoders have 16 alone).
        dilation: whose way of dilating below 32: "timm", which is torchvision's, or, for ResNets,
            "smp" (it dilates the first block of a stage too) or "mmseg" (of a basic block it
            dilates the first convolution alone). Weights want the one they were trained with.
        encoder_options: the encoder's own options, see `Encoder`: such as
            {"arguments": {"drop_path_rate": 0.1}} or, of a plain ViT,
            {"pyramid": "multilevel", "layers": [2, 5, 8, 11]}.
        auxiliary: whether the feature map before the deepest gets a head of its own, which `fit`
            trains beside the main one; or that head's options, such as {"channels": 256}: see
            `AuxiliaryHead`.
        **decoder: the decoder's own options.

    Raises:
        SpecError: an unknown name or option, or a combination that cannot work; says what can.
        TransferError: weights that do not cover the encoder.

    Example:
        >>> model = create_model("unet", "resnet10t", classes=["lung", "heart"], mode="multilabel",
        ...                      in_channels=1)
        >>> import torch
        >>> tuple(model(torch.rand(2, 1, 33, 47)).shape)
        (2, 2, 33, 47)
    """
    check_options(architecture, decoder)
    names = class_names(classes)
    spec = ModelSpec(
        architecture=architecture,
        encoder=encoder,
        classes=names,
        mode=mode or default_mode(names),
        threshold=threshold,
        output_stride=_output_stride(architecture, encoder, output_stride, encoder_options),
        dilation=dilation,
        decoder=decoder,
        auxiliary=auxiliary,
        input=_input(encoder, in_channels, input_spec, weights),
        encoder_options=encoder_options or {},
    )
    return _with_weights(Segmenter, spec, weights)


def create_classifier(
    encoder: str,
    *,
    classes: int | Sequence[str],
    mode: TargetMode | None = None,
    in_channels: int = 3,
    input_spec: InputSpec | None = None,
    weights: Weights = None,
    dropout: float = 0.0,
    encoder_options: Mapping[str, Any] | None = None,
) -> Classifier:
    """An image classifier: image (B, C, H, W) -> logits (B, classes).

    Args:
        encoder: a name of `list_encoders()`.
        classes: their number or their names.
        mode: as in `create_model`; "multilabel" for findings that can occur together.
        in_channels: channels of the image.
        input_spec: what the weights expect of an image; by default timm's statistics.
        weights: of the encoder, as in `create_model`.
        dropout: before the linear layer, 0 to below 1.
        encoder_options: the encoder's own options; by default a ViT's own maps are pooled.

    Raises:
        SpecError: an unknown name, or an option out of range.

    Example:
        >>> create_classifier("resnet10t", classes=14, mode="multilabel", in_channels=1).spec.mode
        'multilabel'
    """
    names = class_names(classes)
    spec = ModelSpec(
        architecture="classifier",
        encoder=encoder,
        classes=names,
        mode=mode or default_mode(names),
        output_stride=capabilities_with(encoder, encoder_options or {}).output_strides[-1],
        decoder={"dropout": dropout},
        input=_input(encoder, in_channels, input_spec, weights),
        encoder_options=encoder_options or {},
    )
    return _with_weights(Classifier, spec, weights)


def create_autoencoder(
    encoder: str,
    *,
    in_channels: int = 3,
    input_spec: InputSpec | None = None,
    weights: Weights = None,
    encoder_options: Mapping[str, Any] | None = None,
    **decoder: Any,  # noqa: ANN401 - the U-Net decoder's own options, checked by name
) -> Autoencoder:
    """An autoencoder: image (B, C, H, W) -> its reconstruction in the same normalised units.

    Args:
        encoder: a name of `list_encoders()`.
        in_channels: channels of the image.
        input_spec: what the weights expect of an image; by default timm's statistics.
        weights: of the encoder, as in `create_model`.
        encoder_options: the encoder's own options, as in `create_model`.
        **decoder: options of the U-Net decoder; give the U-Net that follows the same.

    Raises:
        SpecError: an unknown name or option, or a combination that cannot work.

    Example:
        >>> autoencoder = create_autoencoder("resnet10t", in_channels=1)
        >>> model = create_model("unet", "resnet10t", classes=["lung"], in_channels=1)
        >>> report = transfer_weights(autoencoder, model, parts=("encoder", "decoder"))
        >>> report.coverage["encoder"].fraction, round(report.coverage["decoder"].fraction, 2)
        (1.0, 0.75)
    """
    check_options("unet", decoder)
    if "skips" in decoder:
        raise SpecError("an autoencoder never has skips; leave skips= out.")
    if "stride" in decoder:
        raise SpecError("an autoencoder reads the deepest map; leave stride= out.")
    if decoder.get("attention") is not None:
        raise SpecError(
            "a U-Net's attention weighs the skips too, which an autoencoder has not, so that it "
            "would hand on nothing that fits; leave attention= out."
        )
    given = _input(encoder, in_channels, input_spec, weights)
    names = {1: ("L",), 3: ("R", "G", "B")}.get(in_channels)
    spec = ModelSpec(
        architecture="autoencoder",
        encoder=encoder,
        classes=names or tuple(f"channel_{index}" for index in range(in_channels)),
        mode="multilabel",
        output_stride=_output_stride("unet", encoder, None, encoder_options),
        decoder=decoder,
        input=given,
        encoder_options=encoder_options or {},
    )
    return _with_weights(Autoencoder, spec, weights)


def is_path(weights: Weights) -> bool:
    """Whether weights are a file or folder, not "default" or a tag of timm's."""
    if weights is None or weights == "default":
        return False
    return not isinstance(weights, str) or os.sep in weights or Path(weights).exists()


def _input(
    encoder: str, in_channels: int, input_spec: InputSpec | None, weights: Weights
) -> InputSpec:
    """What was asked for, else what the weights expect, else what timm's weights would."""
    if input_spec is not None:
        if not isinstance(input_spec, InputSpec):
            raise SpecError(f"input_spec must be an InputSpec, got {input_spec!r}.")
        if input_spec.channels != in_channels:
            raise SpecError(
                f"input_spec has {input_spec.channels} channels, but in_channels is {in_channels}."
            )
        return input_spec
    if weights is None or weights == "default":
        return encoder_input(encoder, in_channels)
    if not is_path(weights):
        return encoder_input(f"{encoder}.{weights}", in_channels)
    known = read_source(weights).spec
    if known is None:
        return encoder_input(encoder, in_channels)
    if known.input.channels == in_channels:
        return known.input
    adapted = InputSpec.from_statistics(known.input.mean, known.input.std, channels=in_channels)
    return replace(adapted, value_range=known.input.value_range)


def _output_stride(
    architecture: str, encoder: str, asked: int | None, options: Mapping[str, Any] | None
) -> int:
    able = capabilities_with(encoder, options or {}).output_strides
    preferred = DECODERS[architecture].output_strides
    common = [stride for stride in preferred if stride in able]
    if asked is None and common:
        return common[0]
    if asked is None:
        raise SpecError(
            f"{architecture!r} works on output strides {list(preferred)}, but encoder {encoder!r} "
            f"gives {list(able)}; choose another encoder."
        )
    if asked not in preferred or not is_whole(asked):
        raise SpecError(
            f"{architecture!r} works on output strides {list(preferred)}, got {asked!r}."
        )
    return asked


def _with_weights(model_class: type[M], spec: ModelSpec, weights: Weights) -> M:
    if weights is None:
        return model_class(spec)
    if not is_path(weights):
        return model_class(spec, pretrained=True if weights == "default" else str(weights))
    model = model_class(spec)
    parts, channels = _parts(weights, model), _channels(weights, model)
    try:
        report = transfer_weights(weights, model, parts=parts, input_channels=channels)
    except TransferError as error:
        raise TransferError(f"{error}\n{_instead(spec, parts)}") from error
    report.raise_if_below(**dict.fromkeys(parts, 1.0))
    return model


def _instead(spec: ModelSpec, parts: tuple[str, ...]) -> str:
    """What to do about weights that are refused, which `weights=` has no words for."""
    bias = "Without patch_bias=False there is a place for the bias of the patches. "
    return (
        f"{bias if spec.encoder_options.get('patch_bias') is False else ''}weights= takes all of "
        "the encoder as it is; to declare something, build the model without weights= and call "
        f"transfer_weights(path, model, parts={list(parts)}, ...)."
    )


def _parts(weights: str | os.PathLike[str], model: SpecModel) -> tuple[str, ...]:
    """The timm model, and what is beside it where the file has it too (timm's files never do).

    Of ours, which were built alike, it must fit; of another library's it is taken where it does.
    """
    tensors, own = read_source(weights).tensors, model.state_dict()
    naming = detect(tensors, own)
    named = {naming.target_key(key) if naming else key: value for key, value in tensors.items()}
    both = []
    for part in (pattern.removesuffix("*") for pattern in BESIDE):
        wanted = _under(part, own)
        if wanted and (_under(part, tensors) or _under(part, named) == wanted):
            both.append(part.removesuffix("."))
    return (ENCODER_PREFIX.removesuffix("."), *both)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(v.shape) for key, v in tensors.items() if key.startswith(prefix)}


def _channels(weights: str | os.PathLike[str], model: SpecModel) -> InputChannels | None:
    """How the file's first convolution becomes the model's: as timm does it, or not at all."""
    tensors = read_source(weights).tensors
    naming = detect(tensors, model.state_dict())
    for key, tensor in tensors.items():
        stem = naming.target_key(key) if naming else key
        if stem in model.transfer_stem():
            wanted = model.get_parameter(stem).shape[1]
            if tensor.shape[1] != wanted:
                return "sum" if wanted == 1 else "repeat"
    return None
