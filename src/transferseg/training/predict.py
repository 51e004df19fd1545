"""One raw image in, one mask of its own height and width out."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from transferseg.errors import DataError
from transferseg.spec import ModelSpec
from transferseg.training.evaluate import device_of
from transferseg.training.modes import evaluation_mode
from transferseg.training.targets import spec_of
from transferseg.types import Array

#: An image as it comes: a file, an array (H, W) or (H, W, C), or a PIL image.
ImageLike: TypeAlias = str | PathLike[str] | Array | Image.Image


def predict(
    model: nn.Module,
    image: ImageLike,
    *,
    size: int | tuple[int, int] | None = None,
    device: torch.device | str | None = None,
) -> NDArray[np.unsignedinteger[Any]]:
    """The mask of a raw image, in the image's own height and width.

    The image is normalised as the model's spec says, the whole of it goes through the model, and
    the decision is made on logits of the image's own size. Every submodule gets its own training
    mode back.

    Args:
        model: a segmentation model with its `.spec`.
        image: a path, an array (H, W) or (H, W, C) of uint8, uint16 or float in 0..1, or a PIL
            image; grey or colour, it is brought to the model's channels.
        size: height and width (one number: both) at which the model sees the image, resized as
            training images are; its own size when not given. The logits are resized back,
            bilinearly.
        device: the model is moved there first; it stays where it is when not given.

    Returns:
        binary: (H, W) uint8, 1 where the probability is above `spec.threshold`;
        multiclass: (H, W) index of the likeliest class, in the smallest unsigned dtype;
        multilabel: (H, W, K) uint8, each class as in binary.

    Raises:
        DataError: an image that cannot be read or is none of these; a size below 1.
        TrainingError: a model without a spec.

    Example:
        >>> from transferseg.spec import InputSpec
        >>> model = nn.Conv2d(1, 1, 1)
        >>> model.spec = ModelSpec("unet", "none", ["lesion"], "binary", input=InputSpec(1))
        >>> _ = nn.init.constant_(model.weight, 10.0), nn.init.constant_(model.bias, -5.0)
        >>> predict(model, np.array([[0, 255, 0], [255, 255, 0]], dtype=np.uint8))
        array([[0, 1, 0],
               [1, 1, 0]], dtype=uint8)
    """
    spec = spec_of(model)
    logits = _logits(model, image, size, device)
    if spec.mode == "multiclass":
        smallest = np.min_scalar_type(len(spec.classes) - 1)
        return cast(
            "NDArray[np.unsignedinteger[Any]]", logits.argmax(dim=0).cpu().numpy().astype(smallest)
        )
    above = (logits.sigmoid() > spec.threshold).to(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(above[0] if spec.mode == "binary" else above.transpose(1, 2, 0))


def predict_probabilities(
    model: nn.Module,
    image: ImageLike,
    *,
    size: int | tuple[int, int] | None = None,
    device: torch.device | str | None = None,
) -> NDArray[np.float32]:
    """What `predict` decides on: probabilities in the image's own height and width.

    Args:
        model: see `predict`.
        image: see `predict`.
        size: see `predict`.
        device: see `predict`.

    Returns:
        float32 in 0..1; binary: (H, W); multiclass: (H, W, K), adding up to 1; multilabel:
        (H, W, K), each class by itself.

    Raises:
        DataError: see `predict`.
        TrainingError: see `predict`.

    Example:
        >>> from transferseg.spec import InputSpec
        >>> model = nn.Conv2d(1, 2, 1)
        >>> model.spec = ModelSpec("unet", "none", ["no", "yes"], input=InputSpec(1))
        >>> predict_probabilities(model, np.zeros((2, 3), dtype=np.uint8)).shape
        (2, 3, 2)
    """
    spec = spec_of(model)
    logits = _logits(model, image, size, device)
    chances = logits.softmax(dim=0) if spec.mode == "multiclass" else logits.sigmoid()
    array = chances.cpu().numpy()
    return np.ascontiguousarray(array[0] if spec.mode == "binary" else array.transpose(1, 2, 0))


def _logits(
    model: nn.Module,
    image: ImageLike,
    size: int | tuple[int, int] | None,
    device: torch.device | str | None,
) -> Tensor:
    """(K, H, W) float32, in the image's own height and width."""
    from transferseg.data.images import normalise, resize_image, to_model_channels

    spec: ModelSpec = spec_of(model)
    if device is not None:
        model.to(device)
    raw = _array(image)
    own = (raw.shape[0], raw.shape[1])
    seen = own if size is None else (size, size) if isinstance(size, int) else size
    if not (
        isinstance(seen, tuple | list)
        and len(seen) == 2
        and all(isinstance(side, int) and side > 0 for side in seen)
    ):
        raise DataError(f"size must be a whole number from 1 or (height, width), got {size}.")
    # Channels first, then size, then normalisation: the order in which training data are prepared.
    raw = to_model_channels(raw, spec.input)
    if seen != own:
        raw = resize_image(raw, seen)
    pixels = torch.from_numpy(normalise(raw, spec.input))[None].to(device_of(model))
    with evaluation_mode(model), torch.inference_mode():
        logits: Tensor = model(pixels).float()
        if logits.shape[-2:] != own:
            logits = F.interpolate(logits, own, mode="bilinear", align_corners=False)
    return logits[0]


def _array(image: ImageLike) -> Array:
    from transferseg.data.images import read_image

    if isinstance(image, str | PathLike):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"expected a path, an array or a PIL image, got {type(image).__name__}; a batch of "
            "tensors goes through the model itself."
        )
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise DataError(f"an image must be (H, W) or (H, W, C), got shape {image.shape}.")
    return image


def _from_pil(image: Image.Image) -> Array:
    """The pixels of a PIL image: grey or RGB, an alpha channel dropped, a palette resolved."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("L", "RGB", "I", "F"):
        return np.asarray(image)
    return np.asarray(image.convert("L" if image.mode in ("1", "LA") else "RGB"))
