"""NIH ChestX-ray14: radiographs with 14 findings mined from reports."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from transferseg.data.images import read_image
from transferseg.data.samples import Sample, check_index
from transferseg.data.tables import Row, plain_name, read_rows
from transferseg.errors import DataError, some, unknown_name
from transferseg.types import Array, TargetMode

#: The findings in the order of Wang 2017 and of the later papers on the 14.
NIH_FINDINGS: Final = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)

_NOTHING: Final = "No Finding"


class NIHChestXray14:
    r"""Reader of NIH ChestX-ray14: one label vector of 14 findings an image, no masks.

    Layout: `images/` (or `images_001/images/` to `images_012/images/`, as the archives unpack
    side by side) and `Data_Entry_2017.csv` with the columns Image Index, Finding Labels (names
    joined by "|", or "No Finding") and Patient ID.

    Args:
        root: the folder with `Data_Entry_2017.csv`.
        partial: whether lines without an image file are left out and counted (some of the twelve
            archives were not fetched); otherwise they are an error.

    Attributes:
        classes: `NIH_FINDINGS`, 14 names.
        mode: "multilabel".
        ids: file names of the images, sorted.
        groups: patients.
        labels: (N, 14) float32 0/1, without reading an image; for stratified splits and weights.
        lines_without_image: how many lines were left out.
        paths: the file of each image, by id.

    Samples: image uint8, (H, W) mostly ((H, W, 3) for the few that are stored in colour); label
    (14,) float32 0/1.

    Raises:
        DataError: a missing file or column, an unknown finding, "No Finding" beside a finding, an
            image listed twice; the message names file and line.

    Source: Wang et al., "ChestX-ray8", CVPR 2017. The labels are text-mined (over 90% accurate by
    the authors' estimate).

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "images").mkdir()
        >>> Image.new("L", (32, 32)).save(root / "images" / "00000001_000.png")
        >>> columns = "Image Index,Finding Labels,Patient ID"
        >>> row = "00000001_000.png,Mass|Hernia,1"
        >>> (root / "Data_Entry_2017.csv").write_text(f"{columns}\n{row}\n") > 0
        True
        >>> [name for name, value in zip(NIH_FINDINGS, NIHChestXray14(root)[0].label) if value]
        ['Mass', 'Hernia']
    """

    mode: TargetMode = "multilabel"
    classes: tuple[str, ...] = NIH_FINDINGS

    def __init__(self, root: str | Path, *, partial: bool = False) -> None:
        self.root = Path(root)
        table = self.root / "Data_Entry_2017.csv"
        rows = read_rows(table, ("Image Index", "Finding Labels", "Patient ID"))
        files = _image_files(self.root)
        found: dict[str, tuple[Row, Array]] = {}
        absent = []
        for row in rows:
            name = plain_name(row, "Image Index")
            label = _label(row)
            if name in found:
                raise DataError(f"{row.place}: image {name!r} is listed a second time.")
            if not row["Patient ID"]:
                raise DataError(f"{row.place}: image {name!r} has no Patient ID.")
            if name in files:
                found[name] = (row, label)
            else:
                absent.append(row)
        if absent and (not partial or not found):
            raise DataError(
                f"{absent[0].place}: image {absent[0]['Image Index']!r} is not in "
                f"{self.root / 'images'}; {len(absent)} line(s) have no image: "
                f"{some(row['Image Index'] for row in absent)}. Fetch them, or give partial=True."
            )
        self.ids = tuple(sorted(found))
        self.groups = tuple(found[name][0]["Patient ID"] for name in self.ids)
        self.labels: Array = np.stack([found[name][1] for name in self.ids])
        self.lines_without_image = len(absent)
        self.paths = {name: files[name] for name in self.ids}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        check_index(index, len(self))
        image = read_image(self.paths[self.ids[index]])
        return Sample(image, None, self.labels[index].copy(), self.ids[index], self.groups[index])


def _image_files(root: Path) -> dict[str, Path]:
    """Paths by name from a listing of the folders: one look-up for 112,120 lines, not one each."""
    folders = [root / "images", *sorted(root.glob("images_0*/images"))]
    return {path.name: path for folder in folders if folder.is_dir() for path in folder.iterdir()}


def _label(row: Row) -> Array:
    label = np.zeros(len(NIH_FINDINGS), dtype=np.float32)
    names = row["Finding Labels"].split("|")
    if names == [_NOTHING]:
        return label
    for name in names:
        if name == _NOTHING:
            raise DataError(
                f"{row.place}: 'No Finding' stands beside a finding in {'|'.join(names)!r}."
            )
        if name not in NIH_FINDINGS:
            raise DataError(
                f"{row.place}: {unknown_name('finding', name, (*NIH_FINDINGS, _NOTHING))}"
            )
        label[NIH_FINDINGS.index(name)] = 1.0
    return label
