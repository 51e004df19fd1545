"""What the readers of boxes share: how masks are painted, and the reader that paints them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transferseg.data.boxes import (
    BACKGROUND,
    Box,
    BoxShape,
    Outside,
    Overlap,
    check_box,
    masks_from_boxes,
)
from transferseg.data.images import read_image
from transferseg.data.samples import Sample, check_index
from transferseg.errors import DataError, some
from transferseg.types import Array, TargetMode


class BoxPainter:
    """How a reader makes masks of its boxes: its options, checked before any image is opened.

    Args:
        names: the classes that boxes have.
        mode, shape, overlap: as in `masks_from_boxes`; for "multiclass" the class `BACKGROUND` is
            put before `names`.
        outside: whether a box that sticks out of its image is invalid ("raise") or cut ("clip").

    Attributes:
        classes: the masks' classes.
        mode: as given.

    Raises:
        DataError: options that do not fit each other.

    Example:
        >>> painter = BoxPainter(("Mass", "Nodule"), "multiclass")
        >>> painter.classes
        ('background', 'Mass', 'Nodule')
        >>> painter.mask([Box(1, 0, 2, 1, "Nodule")], (1, 4)).tolist()
        [[0, 2, 2, 0]]
    """

    def __init__(
        self,
        names: Sequence[str],
        mode: TargetMode,
        *,
        shape: BoxShape = "rectangle",
        overlap: Overlap = "last",
        outside: Outside = "raise",
    ) -> None:
        self.classes = (BACKGROUND, *names) if mode == "multiclass" else tuple(names)
        self.mode: TargetMode = mode
        self.shape: BoxShape = shape
        self.overlap: Overlap = overlap
        self.outside: Outside = outside
        masks_from_boxes(  # checks the options
            (), (1, 1), classes=self.classes, mode=mode, shape=shape, overlap=overlap,
            outside=outside,
        )  # fmt: skip

    def check(self, box: Box, size: tuple[int, int]) -> None:
        """Raise a DataError unless a box covers something of its image: see `check_box`."""
        check_box(box, size, shape=self.shape, outside=self.outside)

    def mask(self, boxes: Sequence[Box], size: tuple[int, ...]) -> Array:
        """The mask of one image's boxes; `size` begins with height and width."""
        return masks_from_boxes(
            boxes, (size[0], size[1]), classes=self.classes, mode=self.mode, shape=self.shape,
            overlap=self.overlap,
        )  # fmt: skip

    def presence(self, boxes: Sequence[Sequence[Box]]) -> Array:
        """Which image has a box of which class: (N, K) bool, background true in every image.

        Where classes are exclusive (multiclass), one box may hide all of another: the mask can then
        lack a class that is present here, or the background.
        """
        found = np.zeros((len(boxes), len(self.classes)), dtype=bool)
        for row, of_image in zip(found, boxes, strict=True):
            present = {box.name for box in of_image}
            row[:] = [name in present for name in self.classes]
        if self.mode == "multiclass":
            found[:, 0] = True
        return found


@dataclass(frozen=True)
class BoxedImage:
    """What a reader of boxes knows of an image before it is read."""

    name: str
    group: str
    path: Path
    boxes: tuple[Box, ...]


class PaintedBoxes:
    """What readers of boxes share: names and groups of their images, boxes, and painted masks.

    A reader derives from it, gives what it found at construction, and may read images of its own
    kinds by overriding `_read`.

    Args:
        painter: makes the masks.
        images: those that are read, in any order.
        place: the file or folder that they come from, for messages.
        skipped: what was wrong with what was left out.

    Attributes:
        classes, mode, shape, overlap, outside: of the painter.
        ids: names of the images, sorted.
        groups: one an image.
        skipped: as given.

    Raises:
        DataError: no image.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.new("L", (6, 4)).save(path)
        >>> image = BoxedImage("a.png", "patient 1", path, (Box(0, 0, 3, 2, "nodule"),))
        >>> reader = PaintedBoxes(BoxPainter(("nodule",), "binary"), [image], place=path.parent)
        >>> int(reader[0].mask.sum()), reader.presence.tolist()
        (6, [[True]])
    """

    def __init__(
        self,
        painter: BoxPainter,
        images: Iterable[BoxedImage],
        *,
        place: Path,
        skipped: Iterable[str] = (),
    ) -> None:
        kept = sorted(images, key=lambda image: image.name)
        self.skipped = tuple(skipped)
        if not kept:
            left_out = some(self.skipped) or "none"
            raise DataError(f"{place}: no image to read; left out: {left_out}.")
        self._painter = painter
        self.classes, self.mode = painter.classes, painter.mode
        self.shape, self.overlap, self.outside = painter.shape, painter.overlap, painter.outside
        self.ids = tuple(image.name for image in kept)
        self.groups = tuple(image.group for image in kept)
        self._paths = tuple(image.path for image in kept)
        self._boxes = tuple(image.boxes for image in kept)

    @property
    def presence(self) -> Array:
        """(N, K) bool: whether an image has a box of a class, without reading images.

        Of exclusive classes (multiclass) one box may hide all of another: see `overlap`.
        """
        return self._painter.presence(self._boxes)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        image = self._read(self._paths[check_index(index, len(self))])
        mask = self._painter.mask(self._boxes[index], image.shape)
        return Sample(image, mask, None, self.ids[index], self.groups[index])

    def boxes(self, index: int) -> tuple[Box, ...]:
        """The boxes of one image, in pixels of the stored image, without reading it."""
        return self._boxes[check_index(index, len(self))]

    def _read(self, path: Path) -> Array:
        return read_image(path)
