"""COVID-19 Chest X-ray Segmentations: 100 radiographs, 13 overlapping categories."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np

from transferseg.data.images import image_size, read_image
from transferseg.data.masks import read_mask_colours
from transferseg.data.samples import Sample, check_index
from transferseg.data.tables import Row, plain_name, read_groups, read_rows
from transferseg.errors import DataError, unknown_name
from transferseg.types import Array, TargetMode

#: The categories in the order of Merand 2021, Table 1, spelt as in the data ("Nosogastric").
CCXS_CLASSES: Final = (
    "Right Lung",
    "Left Lung",
    "Cardiomediastinum",
    "Airways",
    "Ground Glass Opacities",
    "Consolidation",
    "Pleural Effusion",
    "Pneumothorax",
    "Endotracheal Tube",
    "Central Venous Line",
    "Monitoring Probes",
    "Nosogastric Tube",
    "Tubings",
)

_PREFIX: Final = "COVID-19 "
_COLUMNS: Final = ("Class", "Filename", "Mask", "Top", "Left", "Width", "Height")

#: What an annotation without a mask means for its class in its image: background, or not known.
WithoutMask = Literal["skip", "ignore"]


@dataclass(frozen=True)
class _Crop:
    """One mask crop: its class, its file, and where it lies in the image."""

    place: str
    channel: int
    path: Path
    top: int
    left: int
    height: int
    width: int


class CCXS:
    r"""Reader of the COVID-19 Chest X-ray Segmentations data set, as it is published.

    Layout: `images/` (named by the column Filename; the column Image names files that were never
    published), `masks/` (one crop an annotation: RGBA, coloured on black, alpha 255 everywhere,
    placed at Left, Top), `structure.csv` (one line an annotation), `metadata.csv` (patients).
    Several crops of one class in one image are united. Everything that headers and tables tell is
    checked at construction: no pixels are read.

    Args:
        root: the folder with `structure.csv`.
        without_mask: some annotations tag a whole image and have no mask (11 of 490 in the part
            with 82 images, all Monitoring Probes). "skip" leaves the class as it is without them,
            mostly background; "ignore" marks the class as 255 in all of that image, because it is
            there and nobody knows where.

    Attributes:
        classes: `CCXS_CLASSES`, 13 names.
        mode: "multilabel".
        ids: file names of the images, sorted.
        groups: patients.
        presence: (N, 13) bool, which image has a mask of which class; for stratified splits.
        annotations: number of lines in structure.csv.
        annotations_without_mask: how many of them have no mask.

    Samples: image uint8 (H, W) or (H, W, 3), 237 px to 4,095 px a side; mask uint8
    (H, W, 13) 0/1, with "ignore" also 255.

    Raises:
        DataError: a missing file or column, an unknown class, a crop outside its image or of
            another size than its line says, an image without patient; when reading, a damaged
            file. The message names file and line.

    Source: "COVID-19 Chest X-ray Segmentations Dataset", General Blockchain, 2020 (CC BY 4.0).

    Example:
        A tree of one image and one mask, as it is published:

        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "images").mkdir(), (root / "masks").mkdir()
        (None, None)
        >>> Image.new("L", (40, 32)).save(root / "images" / "x.jpg")
        >>> Image.new("RGBA", (5, 4), (255, 0, 0, 255)).save(root / "masks" / "m.png")
        >>> columns = "Class,Filename,Mask,Top,Left,Width,Height"
        >>> row = "COVID-19 Airways,x.jpg,masks/m.png,1,2,5,4"
        >>> (root / "structure.csv").write_text(f"{columns}\n{row}\n") > 0
        True
        >>> (root / "metadata.csv").write_text("patientid,filename\n7,x.jpg\n") > 0
        True
        >>> sample = CCXS(root)[0]
        >>> sample.group, sample.mask.shape, int(sample.mask.sum())
        ('7', (32, 40, 13), 20)
    """

    mode: TargetMode = "multilabel"
    classes: tuple[str, ...] = CCXS_CLASSES

    def __init__(self, root: str | Path, *, without_mask: WithoutMask = "skip") -> None:
        if without_mask not in get_args(WithoutMask):
            raise DataError(unknown_name("without_mask", without_mask, get_args(WithoutMask)))
        self.root = Path(root)
        self.without_mask: WithoutMask = without_mask
        rows = read_rows(self.root / "structure.csv", _COLUMNS)
        names = sorted({plain_name(row, "Filename") for row in rows})
        patients = read_groups(self.root / "metadata.csv", "filename", "patientid")
        sizes: dict[str, tuple[int, int]] = {}
        self._crops: dict[str, list[_Crop]] = defaultdict(list)
        self._tags: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            name = row["Filename"]
            if name not in sizes:
                sizes[name] = _image_of(row, self.root, patients)
            channel = _channel(row)
            if row["Mask"]:
                self._crops[name].append(_crop(row, self.root, channel, sizes[name]))
            else:
                self._tags[name].append(channel)
        self.ids = tuple(names)
        self.groups = tuple(patients[name] for name in names)
        self.annotations = len(rows)
        self.annotations_without_mask = sum(map(len, self._tags.values()))

    @property
    def presence(self) -> Array:
        """(N, 13) bool: whether an image has a mask of a class, from the table alone."""
        found = np.zeros((len(self), len(self.classes)), dtype=bool)
        for index, name in enumerate(self.ids):
            found[index, [crop.channel for crop in self._crops.get(name, ())]] = True
        return found

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        name = self.ids[check_index(index, len(self))]
        image = read_image(self.root / "images" / name)
        # Class by class in memory (three times as fast to fill), seen as (H, W, 13).
        planes = np.zeros((len(self.classes), *image.shape[:2]), dtype=np.uint8)
        for crop in self._crops.get(name, ()):
            drawn = read_mask_colours(crop.path)
            if drawn.shape != (crop.height, crop.width):
                raise DataError(f"{crop.path}: the mask changed since {crop.place} was checked.")
            rows = slice(crop.top, crop.top + crop.height)
            columns = slice(crop.left, crop.left + crop.width)
            planes[crop.channel, rows, columns] |= drawn
        if self.without_mask == "ignore":
            planes[self._tags.get(name, [])] = 255
        return Sample(image, planes.transpose(1, 2, 0), None, name, self.groups[index])


def _image_of(row: Row, root: Path, patients: dict[str, str]) -> tuple[int, int]:
    name = row["Filename"]
    if not patients.get(name):
        raise DataError(
            f"{row.place}: image {name!r} has no line with a patient in {root / 'metadata.csv'}, "
            "and no split could keep patients apart."
        )
    try:
        return image_size(root / "images" / name)
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from error


def _channel(row: Row) -> int:
    name = row["Class"].removeprefix(_PREFIX)
    if name not in CCXS_CLASSES:
        raise DataError(f"{row.place}: {unknown_name('class', name, CCXS_CLASSES)}")
    return CCXS_CLASSES.index(name)


def _crop(row: Row, root: Path, channel: int, size: tuple[int, int]) -> _Crop:
    parts = Path(row["Mask"]).parts
    if len(parts) != 2 or parts[0] != "masks":
        raise DataError(f"{row.place}: Mask is {row['Mask']!r}; expected 'masks/<name>.png'.")
    path = root / "masks" / parts[1]
    top, left = row.whole("Top"), row.whole("Left")
    height, width = row.whole("Height", least=1), row.whole("Width", least=1)
    try:
        found = image_size(path)
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from error
    if found != (height, width):
        raise DataError(
            f"{row.place}: Width x Height is {width}x{height}, but {path} is {found[1]}x{found[0]}."
        )
    if top + height > size[0] or left + width > size[1]:
        raise DataError(
            f"{row.place}: {path} at Left {left}, Top {top}, {width}x{height}, lies outside image "
            f"{row['Filename']!r} of {size[1]}x{size[0]}."
        )
    return _Crop(row.place, channel, path, top, left, height, width)
