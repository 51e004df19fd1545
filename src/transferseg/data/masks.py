"""Label images: files to class numbers, and resizing that invents no value."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from transferseg.data.images import as_uint16, decode, read_image
from transferseg.errors import DataError
from transferseg.types import Array


def read_mask(path: str | Path) -> Array:
    """Read one label image: the stored numbers, never colours.

    Args:
        path: a greyscale, 1-bit or palette file, or a colour file whose three channels are equal
            (JPEG masks often are); an alpha channel is dropped.

    Returns:
        (H, W): uint8, or uint16 for 16-bit files. Mode 1 gives 0 and 1, a palette its indices.

    Raises:
        DataError: as `read_image`; colours, which need a mapping of their own; fractions.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> path = Path(tempfile.mkdtemp()) / "mask.png"
        >>> Image.fromarray(np.array([[0, 2], [255, 1]], np.uint8)).save(path)
        >>> read_mask(path).tolist()
        [[0, 2], [255, 1]]
    """
    pixels, mode = decode(path, {"LA": "L", "RGBA": "RGB"})
    if mode.startswith("I"):
        return as_uint16(pixels, path)
    if mode in ("RGB", "RGBA"):
        if (pixels != pixels[..., :1]).any():
            raise DataError(
                f"{path}: a colour mask; expected one number a pixel (greyscale or palette). "
                "Map its colours to class numbers first."
            )
        pixels = pixels[..., 0]
    elif mode not in ("1", "L", "LA", "P"):
        raise DataError(f"{path}: mask mode {mode!r} is not read; expected whole numbers a pixel.")
    return pixels.astype(np.uint8, copy=False)


def read_mask_colours(path: str | Path) -> Array:
    """Read a mask whose foreground is drawn in any colour on black; alpha says nothing.

    Args:
        path: a file that `read_image` reads.

    Returns:
        (H, W) uint8: 1 where any colour channel is above 0.

    Raises:
        DataError: as `read_image`.
    """
    pixels = read_image(path)
    if pixels.ndim == 3:  # one after the other: a reduction over three channels is far slower
        pixels = np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    return np.asarray(pixels != 0, dtype=np.uint8)


def resize_mask(mask: Array, size: tuple[int, int]) -> Array:
    """Resize a label image by the nearest pixel centre: no value appears that was not there.

    Structures thinner than the step between kept pixels break up or vanish (a catheter of 5 px in
    a 4,000 px radiograph at 256 px): score at full size, or train larger.

    Args:
        mask: (H, W) or (H, W, K), any dtype.
        size: height and width in pixels.

    Returns:
        (h, w) or (h, w, K), the dtype of `mask`.

    Example:
        >>> resize_mask(np.array([[0, 255], [3, 4]], np.uint8), (2, 4)).tolist()
        [[0, 0, 255, 255], [3, 3, 4, 4]]
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(size, mask.shape[:2], strict=True)
    )
    return np.ascontiguousarray(mask[rows[:, None], columns])
