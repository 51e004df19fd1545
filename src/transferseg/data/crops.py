"""Random scaling and cropping of an image and its mask together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transferseg.data.images import resize_image
from transferseg.data.masks import resize_mask
from transferseg.errors import DataError
from transferseg.types import Array

#: What masks say of pixels that count nowhere.
IGNORED = 255
#: How often a crop that holds too much of one class is drawn again, as in MMSegmentation.
_TRIES = 10


@dataclass(frozen=True)
class RandomScaleCrop:
    """Resize by a random factor, then cut out a piece of one size at a random place.

    Where the resized image is smaller than the piece, the piece is filled up at the bottom and at
    the right: black in the image, 255 (ignored) in the mask.

    Attributes:
        size: height and width of the piece in pixels, 1 or more; an int for a square.
        scale: smallest and largest factor, drawn uniformly; (1, 1) does not resize.
        largest_share: draw the place anew, up to ten times, while one class (the background is one)
            takes up at least this share of the pixels of the mask that are not ignored, or the
            piece has one class alone; 1 takes the first place.

    Raises:
        DataError: a size, a factor or a share outside its range.

    Source: MMSegmentation's `RandomResize` (`ratio_range`), `RandomCrop` (`cat_max_ratio`), `Pad`,
        which fills up after normalisation and so with the mean colour instead of black.

    Example:
        >>> crop = RandomScaleCrop(2)
        >>> image, mask = crop(np.eye(3, dtype=np.uint8), np.eye(3, dtype=np.uint8), seed=0)
        >>> image.shape, bool((image == mask).all())
        ((2, 2), True)
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    largest_share: float = 1.0

    def __post_init__(self) -> None:
        height, width = self.shape
        if height < 1 or width < 1:
            raise DataError(f"size must be 1 or more in height and width, got {self.size}.")
        low, high = self.scale
        if not 0 < low <= high:
            raise DataError(f"scale must be two factors above 0, going up, got {self.scale}.")
        if not 0 < self.largest_share <= 1:
            raise DataError(
                f"largest_share must lie above 0 and be at most 1, got {self.largest_share}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the piece."""
        height, width = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        return height, width

    def __call__(self, image: Array, mask: Array | None, seed: int) -> tuple[Array, Array | None]:
        """Augment one sample; see `Augment`. Image and mask come back at `size`."""
        rng = np.random.default_rng(seed)
        factor = rng.uniform(*self.scale)
        if factor != 1.0:
            size = (max(1, int(image.shape[0] * factor)), max(1, int(image.shape[1] * factor)))
            image = resize_image(image, size)
            mask = None if mask is None else resize_mask(mask, size)
        place = self._place(image, rng)
        if mask is not None and self.largest_share < 1:
            for _ in range(_TRIES):
                if _mixed(mask[place], self.largest_share):
                    break
                place = self._place(image, rng)
        piece = _filled(image[place], self.shape, 0)
        return piece, None if mask is None else _filled(mask[place], self.shape, IGNORED)

    def _place(self, image: Array, rng: np.random.Generator) -> tuple[slice, slice]:
        starts = [
            int(rng.integers(0, max(0, whole - part) + 1))
            for whole, part in zip(image.shape, self.shape, strict=False)
        ]
        top, left = starts
        return slice(top, top + self.shape[0]), slice(left, left + self.shape[1])


def _mixed(mask: Array, largest_share: float) -> bool:
    """Whether a piece has two classes or more, and each less than the share."""
    if mask.ndim == 2:
        counts = np.bincount(mask[mask != IGNORED].ravel().astype(np.int64))
        pixels = counts.sum()
    else:  # overlapping classes: each, and what is in none of them
        known = mask[(mask != IGNORED).all(axis=-1)]
        counts = np.append((known == 1).sum(axis=0), (known == 0).all(axis=-1).sum())
        pixels = len(known)
    present = counts[counts > 0]
    return len(present) > 1 and float(present.max()) / float(pixels) < largest_share


def _filled(piece: Array, shape: tuple[int, int], value: int) -> Array:
    """The piece at its full size, contiguous."""
    if piece.shape[:2] == shape:
        return np.ascontiguousarray(piece)
    whole = np.full((*shape, *piece.shape[2:]), value, dtype=piece.dtype)
    whole[: piece.shape[0], : piece.shape[1]] = piece
    return whole
