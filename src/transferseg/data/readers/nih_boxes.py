"""The boxes of NIH ChestX-ray14: 984 findings that a radiologist marked in 880 radiographs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from transferseg.data.boxes import Box, BoxShape, Outside, Overlap
from transferseg.data.hostile import HostileRows, Invalid
from transferseg.data.images import image_size
from transferseg.data.painted import BoxedImage, BoxPainter, PaintedBoxes
from transferseg.data.readers.nih import NIH_FINDINGS, NIHChestXray14
from transferseg.data.tables import Row, plain_name, read_rows
from transferseg.errors import DataError, some, unknown_name
from transferseg.types import TargetMode

#: The findings that have boxes: the eight of ChestX-ray8, the first of `NIH_FINDINGS`.
NIH_BOX_FINDINGS: Final = NIH_FINDINGS[:8]

_LIST: Final = "BBox_List_2017.csv"
_SIDES: Final = ("Bbox [x", "y", "w", "h]")  # what a CSV reader makes of "Bbox [x,y,w,h]"
_OTHER_NAMES: Final = {"Infiltrate": "Infiltration"}  # the list's own spelling


class NIHChestXray14Boxes(PaintedBoxes):
    r"""Reader of the boxes of NIH ChestX-ray14; masks are painted from them.

    Layout: as `NIHChestXray14`, and `BBox_List_2017.csv` with the header
    `Image Index,Finding Label,Bbox [x,y,w,h]` (as published with empty columns behind it).

    A box says where one finding is. An image may have findings of its label that nobody boxed:
    they count as background in its mask. `boxes(index)` gives the boxes of an image.

    Args:
        root: the folder with the table of labels and `BBox_List_2017.csv`.
        boxes_for: side in pixels of the (square) images that the list refers to, 1024 in the
            published one; boxes are scaled from it to the size of each stored image. None takes
            them as pixels of the stored images.
        mode: "multilabel", or "multiclass" with "background" before the findings.
        shape, overlap: see `masks_from_boxes`; `overlap` matters for "multiclass" only.
        outside: whether a box that sticks out of its image by more than half a pixel is invalid
            ("raise") or cut at the edge ("clip"). One that lies wholly outside is always invalid.
        without_boxes: whether images labelled "No Finding" are read too, as background. Images with
            a finding and no box are never read: where it is is not known.
        partial: whether lines of the box list without an image file are left out and counted (some
            of the archives were not fetched); otherwise they are invalid. Lines of the labels
            without an image file are always passed over.
        table: the name of the table of labels: see `NIHChestXray14`.
        invalid: a line that breaks the rules is an error ("raise") or left out ("skip"). In the
            table of labels: see `NIHChestXray14`. In the box list: an unknown finding, an image
            that is not there or has no line in the table, a box that is no box, has no area,
            covers no pixel or lies outside, a line that is cut short. Such a line leaves out its
            whole image, in whose mask the finding would be background.

    Attributes:
        classes: `NIH_BOX_FINDINGS`, 8 names, after "background" for multiclass.
        mode: as given.
        ids: file names of the images, sorted.
        groups: patients.
        presence: (N, K) bool, which image has a box of which class; for stratified splits.
        lines_without_image: how many lines of the box list were left out by `partial`.
        skipped: what was wrong with each line that was left out by `invalid="skip"`, those of the
            table of labels first.
        left_out: names of the images that a line of the box list took along, sorted.

    Samples: image as `NIHChestXray14`; mask uint8, see `masks_from_boxes`.

    Raises:
        DataError: as above; the message names file and line.

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

    collection = NIHChestXray14.collection

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
        partial: bool = False,
        table: str | None = None,
        invalid: Invalid = "raise",
    ) -> None:
        if boxes_for is not None and boxes_for < 1:
            raise DataError(f"boxes_for must be a side in pixels from 1, got {boxes_for}.")
        self.root = Path(root)
        painter = BoxPainter(NIH_BOX_FINDINGS, mode, shape=shape, overlap=overlap, outside=outside)
        rows = HostileRows(invalid)
        entries = NIHChestXray14(root, partial=True, table=table, invalid=invalid)
        found = _Found(entries, painter, boxes_for, partial)
        columns = ("Image Index", "Finding Label", *_SIDES)
        for row in read_rows(self.root / _LIST, columns, cut=True):
            with rows.row(row.place):
                found.add(row)
        self.lines_without_image = found.lines_without_image
        self.left_out = tuple(sorted(found.spoilt & entries.paths.keys()))
        nothing = entries.labels.sum(axis=1) == 0
        images = [
            BoxedImage(name, group, entries.paths[name], tuple(found.boxes.get(name, ())))
            for index, (name, group) in enumerate(zip(entries.ids, entries.groups, strict=True))
            if name not in found.spoilt
            and (name in found.boxes or (without_boxes and nothing[index]))
        ]
        skipped = (*entries.skipped, *rows.messages)
        super().__init__(painter, images, place=self.root, skipped=skipped)


@dataclass
class _Found:
    """The boxes of each image, as the lines of the list are added."""

    entries: NIHChestXray14
    painter: BoxPainter
    boxes_for: int | None
    partial: bool
    lines_without_image: int = 0
    boxes: dict[str, list[Box]] = field(default_factory=dict)
    spoilt: set[str] = field(default_factory=set)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Add one line; one that breaks the rules spoils its image."""
        name = plain_name(row, "Image Index")
        if self.partial and name in self.entries.names_without_image:
            self.lines_without_image += 1
            return
        try:
            box = self._box(row, name)
        except DataError:
            self.spoilt.add(name)
            raise
        self.boxes.setdefault(name, []).append(box)

    def _box(self, row: Row, name: str) -> Box:
        box, entries = _box(row), self.entries
        if name in entries.names_without_image:
            raise DataError(
                f"image {name!r} is not in {entries.root / 'images'}. Fetch it, or give "
                "partial=True."
            )
        if name not in entries.paths:
            raise DataError(f"image {name!r} has no line in {entries.table.name} to go by.")
        if name not in self.sizes:
            self.sizes[name] = image_size(entries.paths[name])
        height, width = self.sizes[name]
        if self.boxes_for is not None:
            box = box.scaled(width / self.boxes_for, height / self.boxes_for)
        self.painter.check(box, (height, width))
        return box


def _box(row: Row) -> Box:
    name = _OTHER_NAMES.get(row["Finding Label"], row["Finding Label"])
    if name not in NIH_BOX_FINDINGS:
        raise DataError(unknown_name("finding", name, (*NIH_BOX_FINDINGS, *_OTHER_NAMES)))
    sides = [row[side] for side in _SIDES]
    try:
        left, top, width, height = map(float, sides)
    except ValueError as error:
        raise DataError(f"x, y, w, h are {some(sides)!r}.") from error
    return Box(left, top, width, height, name)
