"""Boxes, and the masks that they stand for in place of drawn ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from transferseg.data.samples import Reader
from transferseg.errors import DataError, some, unknown_name
from transferseg.types import Array, TargetMode

#: What is painted: all of the box, or the ellipse that touches its four sides.
BoxShape: TypeAlias = Literal["rectangle", "ellipse"]

#: Who owns a pixel of several boxes in a multiclass mask: the last box, the first, or the box whose
#: class stands last in `classes`.
Overlap: TypeAlias = Literal["last", "first", "classes"]

#: What happens to a box that sticks out of its image: cut at the edge, or an error.
Outside: TypeAlias = Literal["clip", "raise"]

#: Name of class 0 in the multiclass masks of the box readers.
BACKGROUND = "background"

_Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """A box around something, in pixels from the top left corner of the top left pixel.

    Attributes:
        left: x of the left side.
        top: y of the upper side.
        width: 0 or more.
        height: 0 or more.
        name: the class.

    Raises:
        DataError: a number that is none or not finite, a negative width or height.

    Example:
        >>> Box(10, 20, 4, 3, "nodule").bottom
        23
    """

    left: float
    top: float
    width: float
    height: float
    name: str

    def __post_init__(self) -> None:
        numbers = self.left, self.top, self.width, self.height
        if not all(map(_is_finite, numbers)) or not _is_finite(self.right + self.bottom):
            raise DataError(
                f"a box of left, top, width, height {numbers} is no box; expected finite numbers."
            )
        if self.width < 0 or self.height < 0:
            raise DataError(
                f"a box of width {self.width:g} and height {self.height:g}; expected 0 or more. "
                "Are they the right and lower sides?"
            )

    @property
    def right(self) -> float:
        """`left + width`."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """`top + height`."""
        return self.top + self.height

    def scaled(self, x: float, y: float) -> Box:
        """The box in an image that was resized by `x` across and `y` down."""
        return Box(self.left * x, self.top * y, self.width * x, self.height * y, self.name)


def _is_finite(value: object) -> bool:
    try:
        return type(value) is not bool and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


@runtime_checkable
class BoxReader(Reader, Protocol):
    """A reader whose masks are `masks_from_boxes` of its boxes."""

    def boxes(self, index: int, /) -> tuple[Box, ...]:
        """The boxes of one image, in its pixels, without reading it."""


def masks_from_boxes(
    boxes: Sequence[Box],
    size: tuple[int, int],
    *,
    classes: Sequence[str],
    mode: TargetMode = "multilabel",
    shape: BoxShape = "rectangle",
    overlap: Overlap = "last",
    outside: Outside = "clip",
) -> Array:
    """Paint boxes as if they were drawn masks.

    A pixel belongs to a rectangle when its centre lies in it, the left and upper side included,
    the right and lower side not: boxes that touch share no pixel, and a box on whole numbers has
    `width * height` pixels. A box that is too thin to hold a centre paints nothing. An ellipse has
    the pixels whose centre lies within the ellipse inscribed in the box.

    Args:
        boxes: in any number; none gives a mask of background.
        size: height and width of the image in pixels.
        classes: names. For "binary" one; for "multiclass" two or more, the first the background,
            whose boxes paint nothing (such as the box of 1x1 pixels that stands for "negative" in
            SIIM-FISABIO-RSNA); for "multilabel" one or more.
        mode: how the classes relate.
        shape: "rectangle" or "ellipse".
        overlap: who owns a pixel of several boxes in "multiclass": the "last" box, the "first", or
            the box whose class stands last in `classes` ("classes"). Other modes take the union.
        outside: a box that sticks out by more than half a pixel is cut at the edge ("clip"; one
            that lies wholly outside paints nothing) or an error ("raise").

    Returns:
        uint8: (H, W) 0/1 for binary, (H, W) class numbers for multiclass, (H, W, K) 0/1 for
        multilabel.

    Raises:
        DataError: options or a size that do not fit, a box of an unknown class.

    Source: Merand & Klein 2021, 3.1: "All pixels inside each box is labeled as if it was a
    semantic segmentation mask".

    Example:
        >>> boxes = [Box(0, 0, 2, 2, "nodule"), Box(1, 0, 2, 1, "effusion")]
        >>> classes = ("background", "nodule", "effusion")
        >>> masks_from_boxes(boxes, (2, 4), classes=classes, mode="multiclass").tolist()
        [[1, 2, 2, 0], [1, 1, 0, 0]]
    """
    classes = tuple([classes] if isinstance(classes, str) else classes)
    _check_options(size, classes, mode, (shape, overlap, outside))
    numbers = {name: number for number, name in enumerate(classes)}
    for box in boxes:
        if box.name not in numbers:
            raise DataError(f"{box}: {unknown_name('class', box.name, classes)}")
        if outside == "raise":
            _check_inside(box, size)
    if mode == "multiclass":
        mask = np.zeros(size, dtype=np.uint8)
        for box in _bottom_to_top(boxes, overlap, numbers):
            if numbers[box.name]:
                _paint(mask, box, numbers[box.name], shape)
        return mask
    planes = np.zeros((len(classes), *size), dtype=np.uint8)
    for box in boxes:
        _paint(planes[numbers[box.name]], box, 1, shape)
    return planes[0] if mode == "binary" else planes.transpose(1, 2, 0)


def _check_options(
    size: tuple[int, int], classes: tuple[str, ...], mode: TargetMode, options: tuple[str, str, str]
) -> None:
    kinds = {"mode": TargetMode, "shape": BoxShape, "overlap": Overlap, "outside": Outside}
    for (kind, known), given in zip(kinds.items(), (mode, *options), strict=True):
        if given not in get_args(known):
            raise DataError(unknown_name(kind, given, get_args(known)))
    if len(size) != 2 or not all(isinstance(side, int) and side >= 1 for side in size):
        raise DataError(f"size must be height and width in whole pixels from 1, got {size!r}.")
    # 255 marks ignored pixels, so that multiclass numbers end at 254
    least, most = {"binary": (1, 1), "multiclass": (2, 255)}.get(mode, (1, len(classes)))
    if len(set(classes)) != len(classes) or not least <= len(classes) <= most:
        raise DataError(
            f"{len(classes)} class(es) {some(map(repr, classes))} do not fit mode {mode!r}: "
            "expected distinct names, one for binary, 2 to 255 (background first) for multiclass, "
            "one or more for multilabel."
        )


def _bottom_to_top(
    boxes: Sequence[Box], overlap: Overlap, numbers: dict[str, int]
) -> Sequence[Box]:
    if overlap == "classes":
        return sorted(boxes, key=lambda box: numbers[box.name])
    return boxes if overlap == "last" else boxes[::-1]


def _paint(plane: Array, box: Box, value: int, shape: BoxShape) -> None:
    """Set the pixels of a box in place, touching no others."""
    rows, columns = _centres_in(box, plane.shape)
    region = plane[rows, columns]
    if shape == "rectangle" or not region.size:
        region[...] = value
        return
    y, x = _distances(box, rows, columns)
    region[y[:, None] + x < 1] = value


def _covers_a_pixel(box: Box, size: tuple[int, int], shape: BoxShape) -> bool:
    """Whether `_paint` sets anything in an image of `size`."""
    rows, columns = _centres_in(box, size)
    if rows.start == rows.stop or columns.start == columns.stop:
        return False
    if shape == "rectangle":
        return True
    y, x = _distances(box, rows, columns)
    return bool(y.min() + x.min() < 1)


def _distances(box: Box, rows: slice, columns: slice) -> tuple[_Floats, _Floats]:
    """Squared distances of pixel centres from the centre of the box, 1 at its sides."""
    y = (2 * np.arange(rows.start, rows.stop) + 1 - (box.top + box.bottom)) / box.height
    x = (2 * np.arange(columns.start, columns.stop) + 1 - (box.left + box.right)) / box.width
    return np.square(y), np.square(x)


def _centres_in(box: Box, size: Sequence[int]) -> tuple[slice, slice]:
    """The rows and columns whose centres lie between the sides of a box."""
    return _centres(box.top, box.bottom, size[0]), _centres(box.left, box.right, size[1])


def _centres(start: float, stop: float, length: int) -> slice:
    """The pixels of 0..length-1 whose centre, at a half, lies in start <= centre < stop."""
    first, end = max(0, math.ceil(start - 0.5)), min(length, math.ceil(stop - 0.5))
    return slice(first, max(first, end))


def _check_inside(box: Box, size: tuple[int, int]) -> None:
    height, width = size
    out = max(-box.left, -box.top, box.right - width, box.bottom - height)
    if out > 0.5:
        raise DataError(
            f"{box} sticks out of its image of {width}x{height} pixels by {out:g}. Was the image "
            "resized, or are left and top not meant? outside='clip' cuts boxes at the edge."
        )


def check_box(box: Box, size: tuple[int, int], *, shape: BoxShape, outside: Outside) -> None:
    """Check that a box covers something of its image of `size` (height, width).

    Raises:
        DataError: a box without area, one that lies outside, with "raise" one that sticks out, one
            that is too thin to cover the centre of a pixel.

    Example:
        >>> check_box(Box(3.6, 0, 0.8, 5, "nodule"), (8, 8), shape="rectangle", outside="clip")
        Traceback (most recent call last):
        ...
        transferseg.errors.DataError: Box(left=3.6, top=0, width=0.8, height=5, name='nodule')
        covers no pixel: it is too thin, or became so when the image was resized.
    """
    height, width = size
    if not box.width or not box.height:
        raise DataError(f"{box} has no area.")
    if box.right <= 0 or box.bottom <= 0 or box.left >= width or box.top >= height:
        raise DataError(f"{box} lies outside its image of {width}x{height} pixels.")
    if outside == "raise":
        _check_inside(box, size)
    if not _covers_a_pixel(box, size, shape):
        raise DataError(
            f"{box} covers no pixel: it is too thin, or became so when the image was resized."
        )
