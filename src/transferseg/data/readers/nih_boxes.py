"""The boxes of NIH ChestX-ray14: 984 findings that a radiologist marked in 880 radiographs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Final

from transferseg.data.boxes import Box, BoxPainter, BoxShape, Outside, Overlap
from transferseg.data.hostile import HostileRows, Invalid
from transferseg.data.images import image_size
from transferseg.data.readers.nih import NIH_FINDINGS, NIHChestXray14
from transferseg.data.samples import Sample, check_index
from transferseg.data.tables import Row, plain_name, read_rows
from transferseg.errors import DataError, some, unknown_name
from transferseg.types import Array, TargetMode

#: The findings that have boxes: the eight of ChestX-ray8, the first of `NIH_FINDINGS`.
NIH_BOX_FINDINGS: Final = NIH_FINDINGS[:8]

_SIDES: Final = ("Bbox [x", "y", "w", "h]")  # what a CSV reader makes of "Bbox [x,y,w,h]"
_OTHER_NAMES: Final = {"Infiltrate": "Infiltration"}  # the list's own spelling


class NIHChestXray14Boxes:
    r"""Reader of the boxes of NIH ChestX-ray14; masks are painted from them.

    Layout: as `NIHChestXray14`, and `BBox_List_2017.csv` with the header
    `Image Index,Finding Label,Bbox [x,y,w,h]` (as published with empty columns behind it).

    A box says where one finding is. An image may have findings of its label that nobody boxed:
    they count as background in its mask.

    Args:
        root: the folder with `Data_Entry_2017.csv` and `BBox_List_2017.csv`.
        boxes_for: side in pixels of the (square) images that the list refers to, 1024 in the
            published one; boxes are scaled from it to the size of each stored image. None takes
            them as pixels of the stored images.
        mode: "multilabel", or "multiclass" with "background" before the findings.
        shape, overlap: see `masks_from_boxes`.
        outside: whether a box that sticks out of its image by more than half a pixel is invalid
            ("raise") or cut at the edge ("clip"). One that lies wholly outside is always invalid.
        without_boxes: whether images labelled "No Finding" are read too, as background. Images with
            a finding and no box are never read: where it is is not known.
        invalid: a line of the box list that breaks the rules is an error ("raise") or left out
            ("skip"): an unknown finding, an image that is not there or has no line in
            `Data_Entry_2017.csv`, a box that is no box, has no area or lies outside.

    Attributes:
        classes: `NIH_BOX_FINDINGS`, 8 names, after "background" for multiclass.
        mode: as given.
        ids: file names of the images, sorted.
        groups: patients.
        presence: (N, K) bool, which image has a box of which class; for stratified splits.
        skipped: what was wrong with each line of the box list that was left out.

    Samples: image as `NIHChestXray14`; mask uint8, see `masks_from_boxes`.

    Raises:
        DataError: as above and, whatever `invalid` says, what is wrong with
            `Data_Entry_2017.csv`; the message names file and line.

    Source: Wang et al., "ChestX-ray8", CVPR 2017, 2.3.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "images").mkdir()
        >>> Image.new("L", (64, 64)).save(root / "images" / "00000001_000.png")
        >>> columns = "Image Index,Finding Labels,Patient ID"
        >>> row = "00000001_000.png,Mass,1"
        >>> (root / "Data_Entry_2017.csv").write_text(f"{columns}\n{row}\n") > 0
        True
        >>> columns = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
        >>> row = "00000001_000.png,Mass,256.0,128.0,512.0,160.0,,,"
        >>> (root / "BBox_List_2017.csv").write_text(f"{columns}\n{row}\n") > 0
        True
        >>> reader = NIHChestXray14Boxes(root, boxes_for=1024)
        >>> reader.boxes(0)
        (Box(left=16.0, top=8.0, width=32.0, height=10.0, name='Mass'),)
        >>> int(reader[0].mask[..., reader.classes.index("Mass")].sum())
        320
    """

    def __init__(
        self,
        root: str | Path,
        *,
        boxes_for: int | None = None,
        mode: TargetMode = "multilabel",
        shape: BoxShape = "rectangle",
        overlap: Overlap = "last",
        outside: Outside = "raise",
        without_boxes: bool = False,
        invalid: Invalid = "raise",
    ) -> None:
        if boxes_for is not None and boxes_for < 1:
            raise DataError(f"boxes_for must be a side in pixels from 1, got {boxes_for}.")
        self.root = Path(root)
        self._painter = BoxPainter(
            NIH_BOX_FINDINGS, mode, shape=shape, overlap=overlap, outside=outside
        )
        self.classes, self.mode = self._painter.classes, self._painter.mode
        self._images = NIHChestXray14(root, partial=True)
        found = self._read_boxes(HostileRows(invalid), boxes_for)
        unlabelled = self._images.labels.sum(axis=1) == 0
        kept = [
            (index, name)
            for index, name in enumerate(self._images.ids)
            if name in found or (without_boxes and unlabelled[index])
        ]
        if not kept:
            raise DataError(f"{self.root}: no image to read; left out: {some(self.skipped)}.")
        self._indices = tuple(index for index, _ in kept)
        self.ids = tuple(name for _, name in kept)
        self.groups = tuple(self._images.groups[index] for index in self._indices)
        self._boxes = tuple(tuple(found.get(name, ())) for name in self.ids)

    def _read_boxes(self, rows: HostileRows, boxes_for: int | None) -> dict[str, list[Box]]:
        paths = self._images.paths
        sizes: dict[str, tuple[int, int]] = {}
        found: dict[str, list[Box]] = defaultdict(list)
        table = self.root / "BBox_List_2017.csv"
        for row in read_rows(table, ("Image Index", "Finding Label", *_SIDES)):
            with rows.row(row.place):
                name, box = plain_name(row, "Image Index"), _box(row)
                if name not in paths:
                    raise DataError(
                        f"image {name!r} is not in {self.root / 'images'}, or has no line in "
                        "Data_Entry_2017.csv."
                    )
                if name not in sizes:
                    sizes[name] = image_size(paths[name])
                if boxes_for is not None:
                    box = box.scaled(sizes[name][1] / boxes_for, sizes[name][0] / boxes_for)
                self._painter.check(box, sizes[name])
                found[name].append(box)
        self.skipped = tuple(rows.messages)
        return found

    @property
    def presence(self) -> Array:
        """(N, K) bool: whether an image has a box of a class, from the list alone."""
        return self._painter.presence(self._boxes)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        image = self._images[self._indices[check_index(index, len(self))]].image
        mask = self._painter.mask(self._boxes[index], image.shape)
        return Sample(image, mask, None, self.ids[index], self.groups[index])

    def boxes(self, index: int) -> tuple[Box, ...]:
        """The boxes of one image, in pixels of the stored image, in the order of the list."""
        return self._boxes[check_index(index, len(self))]


def _box(row: Row) -> Box:
    name = _OTHER_NAMES.get(row["Finding Label"], row["Finding Label"])
    if name not in NIH_BOX_FINDINGS:
        raise DataError(unknown_name("finding", name, (*NIH_BOX_FINDINGS, *_OTHER_NAMES)))
    try:
        left, top, width, height = (float(row[side]) for side in _SIDES)
    except ValueError as error:
        raise DataError(f"x, y, w, h are {some(row[side] for side in _SIDES)!r}.") from error
    return Box(left, top, width, height, name)
