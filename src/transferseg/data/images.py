"""Image files to arrays and back: reading, channels, scaling and resizing, all without guessing.

Values keep the dtype of their file until `normalise`, so that 16-bit radiographs lose nothing and
"full range" stays defined: 0..255 for uint8, 0..65535 for uint16, 0..1 for floats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from transferseg.errors import DataError, unknown_name
from transferseg.spec import InputSpec
from transferseg.types import Array

#: File endings that the folder readers take for images.
IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

#: Luminance of red, green and blue: ITU-R BT.601, as in Pillow's and OpenCV's RGB to grey.
LUMINANCE: Final = (0.299, 0.587, 0.114)

_CHANNELS_OF_ORDER: Final = {"L": 1, "RGB": 3, "BGR": 3, "any": None}
_READABLE = "1, L, LA, P, RGB, RGBA, I;16, I, F"


def _open(path: str | Path) -> Image.Image:
    """Open a file and check, from its header alone, that it holds one image of a readable kind."""
    try:
        image = Image.open(path)
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file does not exist.") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: {error} If you trust the file, set PIL.Image.MAX_IMAGE_PIXELS = None first."
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path}: not an image that can be read ({error}); expected PNG, JPEG, TIFF or BMP."
        ) from error
    if frames != 1:
        image.close()
        raise DataError(
            f"{path}: holds {frames} images; expected one. Save each frame as its own file."
        )
    # Pillow has no 16-bit colour mode: it would silently drop the lower 8 bits of every channel.
    raw = [tile[3] if isinstance(tile[3], str) else (tile[3] or ("",))[0] for tile in image.tile]
    deep = any(str(mode).endswith(("16B", "16L", "16N")) for mode in raw)
    if image.mode in ("RGB", "RGBA") and deep:
        image.close()
        raise DataError(
            f"{path}: 16-bit colour cannot be read without losing its lower 8 bits; save it as "
            "16-bit greyscale or 8-bit colour."
        )
    return image


def decode(path: str | Path, convert: dict[str, str]) -> tuple[Array, str]:
    """Pixels and mode of a file; `convert` says which mode is turned into which other first."""
    with _open(path) as image:
        mode = image.mode
        try:
            pixels = np.asarray(image.convert(convert[mode]) if mode in convert else image)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"{path}: the file is truncated or damaged ({error}); fetch it again."
            ) from error
    return pixels, mode


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file, from its header.

    Raises:
        DataError: the file is missing, or not an image.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "grey.png"
        >>> Image.new("L", (6, 4)).save(path)
        >>> image_size(path)
        (4, 6)
    """
    with _open(path) as image:
        return image.height, image.width


def read_image(path: str | Path) -> Array:
    """Read one image at its own dtype.

    Args:
        path: a file of Pillow mode 1, L, LA, P, RGB, RGBA, I;16, I or F. An alpha channel is
            dropped, not blended; a palette is turned into RGB; a rotation tag (EXIF) is not
            applied, so that the pixels line up with a mask drawn on them.

    Returns:
        (H, W) for greyscale, (H, W, 3) for colour. uint8 (mode 1 as 0 and 255), uint16 for 16-bit
        greyscale (mode I too, when its values fit), float32 for mode F, at the file's own values.

    Raises:
        DataError: a file that is missing, truncated, not an image, of another mode, 16-bit colour,
            several images in one file, or mode I outside 0..65535; the message names the file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "grey.png"
        >>> Image.fromarray(np.full((4, 6), 900, np.uint16)).save(path)
        >>> read_image(path).dtype, read_image(path).shape
        (dtype('uint16'), (4, 6))
    """
    pixels, mode = decode(path, {"1": "L", "LA": "L", "P": "RGB", "RGBA": "RGB"})
    if mode.startswith("I"):
        return as_uint16(pixels, path)
    if mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "F"):
        raise DataError(f"{path}: image mode {mode!r} is not read; expected one of {_READABLE}.")
    return pixels


def as_uint16(pixels: Array, path: str | Path) -> Array:
    """The values of a 16- or 32-bit file as uint16; a DataError where they do not fit."""
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise DataError(
            f"{path}: 32-bit values {low}..{high} do not fit 16 bits, so their full range is not "
            "known; expected 0..65535. Rescale the file."
        )
    return pixels.astype(np.uint16, copy=False)


def to_channels(image: Array, channels: int, order: str) -> Array:
    """Give an image the channels that a model takes, at its own dtype.

    Grey to RGB or BGR repeats the channel; colour to grey is the luminance
    `0.299 R + 0.587 G + 0.114 B` (ITU-R BT.601), rounded for whole-number dtypes.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3), colour in RGB order; for `order="any"`
            (H, W, `channels`).
        channels: how many channels are wanted.
        order: "L", "RGB", "BGR" or "any" (nothing is converted, the count must fit).

    Returns:
        (H, W, channels), the dtype of `image`.

    Raises:
        DataError: another shape, an unknown order, channels that cannot be made.

    Example:
        >>> to_channels(np.array([[[255, 0, 0]]], np.uint8), 1, "L").tolist()
        [[[76]]]
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or 0 in image.shape:
        raise DataError(
            f"an image must be (H, W) or (H, W, C) with pixels, got shape {image.shape}."
        )
    if order not in _CHANNELS_OF_ORDER:
        raise DataError(unknown_name("channel order", order, _CHANNELS_OF_ORDER))
    have = image.shape[-1]
    needs = _CHANNELS_OF_ORDER[order]
    if (needs or channels) != channels or have not in ((1, 3) if needs else (channels,)):
        alpha = f" If the last channel is alpha: image[..., :{have - 1}]." if have in (2, 4) else ""
        raise DataError(
            f"an image of {have} channel(s) cannot be given as {channels} channel(s) in order "
            f"{order!r}; grey (1) and RGB (3) are turned into each other, nothing else is.{alpha}"
        )
    if needs == 3 and have == 1:
        return np.repeat(image, 3, axis=-1)
    if needs == 1 and have == 3:
        grey = np.zeros(image.shape[:2], dtype=np.float64)
        for channel, weight in enumerate(LUMINANCE):
            grey += np.multiply(image[..., channel], weight, dtype=np.float64)
        if np.issubdtype(image.dtype, np.integer):
            np.rint(grey, out=grey)
        return np.asarray(grey[..., None], dtype=image.dtype)
    return image[..., ::-1] if order == "BGR" else image


def to_model_channels(image: Array, input: InputSpec) -> Array:
    """Convert to the channels of a model, before resizing, augmenting and normalising.

    Colour stays RGB until `normalise`, which turns it to BGR where the weights want that.
    """
    order = "RGB" if input.channel_order == "BGR" else str(input.channel_order)
    return to_channels(image, input.channels, order)


def unit_scale(image: Array, name: str = "image") -> float:
    """The largest value of the dtype's full range, after checking that the values lie inside it.

    Raises:
        DataError: a dtype other than uint8, uint16 and float; floats outside 0..1 or not finite.

    Example:
        >>> unit_scale(np.zeros((2, 2), np.uint16))
        65535.0
    """
    full_range = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}.get(image.dtype)
    if full_range is not None:
        return full_range
    if not np.issubdtype(image.dtype, np.floating):
        raise DataError(
            f"{name}: dtype {image.dtype} has no known range; expected uint8, uint16 or float 0..1."
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails too
        raise DataError(
            f"{name}: a float image must lie within 0..1, got {low:g}..{high:g}; divide it by the "
            "full range of its source."
        )
    return 1.0


def normalise(image: Array, input: InputSpec) -> Array:
    """Scale an image to what the weights expect: `(x - mean) / std`, channel by channel.

    `x` maps the full range of the raw dtype onto `input.value_range`: `low + raw / full *
    (high - low)`, with full = 255, 65535 or 1. The image's own minimum and maximum play no part.

    Args:
        image: (H, W) or (H, W, C) uint8, uint16, or float within 0..1; colour in RGB order.
        input: channels, order, range, mean and std.

    Returns:
        (C, H, W) float32, contiguous.

    Raises:
        DataError: a shape, dtype, range or channel count that does not fit.

    Example:
        >>> spec = InputSpec(channels=1, mean=(0.5,), std=(0.5,))
        >>> normalise(np.array([[0, 255]], np.uint8), spec).tolist()
        [[[-1.0, 1.0]]]
    """
    full = unit_scale(image)
    planes = to_channels(image, input.channels, str(input.channel_order)).transpose(2, 0, 1)
    low, high = input.value_range
    std = np.array(input.std)
    scale = (high - low) / full / std
    shift = (low - np.array(input.mean)) / std
    # In place and in the order that is wanted: of a huge image there are not several at a time.
    values: Array = np.multiply(planes, scale[:, None, None].astype(np.float32), order="C")
    np.add(values, shift[:, None, None].astype(np.float32), out=values)
    return np.ascontiguousarray(values, dtype=np.float32)


def denormalise(image: Any, input: InputSpec) -> Array:  # noqa: ANN401 - array or tensor
    """Undo `normalise` for plotting.

    Args:
        image: (C, H, W), an array or a tensor on the CPU without gradient.
        input: the spec that it was normalised with.

    Returns:
        (H, W) for one channel, (H, W, 3) in RGB order for three, (H, W, C) else; float32, cut to
        0..1 (a reconstruction may leave the range).

    Raises:
        DataError: a shape that does not fit the spec.

    Example:
        >>> spec = InputSpec(channels=1, mean=(0.5,), std=(0.5,))
        >>> denormalise(np.array([[[-1.0, 1.0]]]), spec).tolist()
        [[0.0, 1.0]]
    """
    planes = np.asarray(image, dtype=np.float64)
    if planes.ndim != 3 or planes.shape[0] != input.channels:
        raise DataError(
            f"expected a normalised image ({input.channels}, H, W), got shape {planes.shape}."
        )
    low, high = input.value_range
    column = (-1, 1, 1)
    raw = planes * np.reshape(input.std, column) + np.reshape(input.mean, column)
    unit = np.clip((raw - low) / (high - low), 0.0, 1.0).astype(np.float32).transpose(1, 2, 0)
    if input.channel_order == "BGR":
        unit = unit[..., ::-1]
    return unit[..., 0] if input.channels == 1 else np.ascontiguousarray(unit)


def resize_image(image: Array, size: tuple[int, int]) -> Array:
    """Resize an image: mean over the covered area where it shrinks, linear where it grows.

    Args:
        image: (H, W) or (H, W, C), uint8, uint16 or float.
        size: height and width in pixels; the aspect ratio is not kept.

    Returns:
        (h, w) or (h, w, C), the dtype of `image`, within its smallest and largest value.

    Example:
        >>> resize_image(np.array([[0, 100], [100, 200]], np.uint8), (1, 1)).tolist()
        [[100]]
    """
    import cv2  # comes with albumentations; imported late, it costs as much as all of NumPy

    height, width = size
    shrunk = min(height, image.shape[0]), min(width, image.shape[1])
    result: Any = image.astype(np.float32) if image.dtype == np.float16 else image
    # One after the other, because OpenCV's area mode is linear as soon as one side grows.
    for (h, w), how in ((shrunk, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)):
        if result.shape[:2] != (h, w):
            result = cv2.resize(result, (w, h), interpolation=how)
    if result is not image and image.dtype.kind == "f":
        # Rounding may leave the range by a bit, and `normalise` refuses what is above 1.
        result = np.clip(result, image.min(), image.max())
    resized: Array = result.reshape(height, width, *image.shape[2:]).astype(image.dtype, copy=False)
    return resized
