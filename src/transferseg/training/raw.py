"""Images as users have them: files, arrays, PIL images."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from transferseg.errors import DataError
from transferseg.types import Array

#: An image as it comes: a file, an array (H, W) or (H, W, C), or a PIL image.
ImageLike: TypeAlias = str | PathLike[str] | Array | Image.Image


def raw_image(image: ImageLike) -> Array:
    """The pixels of an image at its own dtype: (H, W) or (H, W, C).

    Raises:
        DataError: a file that cannot be read (it is named), or what is no image at all.

    Example:
        >>> raw_image(Image.new("RGBA", (6, 4))).shape
        (4, 6, 3)
    """
    from transferseg.data.images import read_image

    if isinstance(image, str | PathLike):
        if Path(image).is_dir():
            raise DataError(f"{image} is a folder; predict_folder writes the masks of its images.")
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        try:
            return _from_pil(image)
        except (OSError, SyntaxError, ValueError) as error:  # read from its file only now
            raise DataError(f"a PIL image that cannot be read: {error}.") from error
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"expected a path, an array or a PIL image, or a list or an iterator of these, got "
            f"{type(image).__name__}; a batch of tensors goes through the model itself."
        )
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise DataError(f"an image must be (H, W) or (H, W, C), got shape {image.shape}.")
    return image


def _from_pil(image: Image.Image) -> Array:
    """The pixels of a PIL image: grey or RGB, an alpha channel dropped, a palette resolved."""
    from transferseg.data.images import as_uint16

    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I":
        return as_uint16(np.asarray(image), "a PIL image")
    if image.mode in ("L", "RGB", "F"):
        return np.asarray(image)
    return np.asarray(image.convert("L" if image.mode in ("1", "LA") else "RGB"))
