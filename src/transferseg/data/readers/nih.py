"""NIH ChestX-ray14: radiographs with 14 findings mined from reports."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from transferseg.data.hostile import HostileRows, Invalid
from transferseg.data.images import IMAGE_SUFFIXES, read_image
from transferseg.data.samples import Sample, check_index
from transferseg.data.tables import Row, iter_rows, plain_name
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
_TABLES: Final = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")  # the first is newer


class NIHChestXray14:
    r"""Reader of NIH ChestX-ray14: one label vector of 14 findings an image, no masks.

    Layout: `images/` (or `images_001/images/` to `images_012/images/`, as the archives unpack
    side by side) and `Data_Entry_2017_v2020.csv` (in older copies `Data_Entry_2017.csv`) with the
    columns Image Index, Finding Labels (names joined by "|", or "No Finding") and Patient ID.

    Args:
        root: the folder with the table.
        partial: whether lines without an image file are left out and counted (some of the twelve
            archives were not fetched); otherwise they are an error.
        table: the table's name; None looks for the two of above, of which one must be there.
        invalid: a line that breaks the rules is an error ("raise") or left out ("skip"): an unknown
            finding, "No Finding" beside a finding, no patient, an image without file or one that
            was listed before (the first stays), a line that is cut short.

    Attributes:
        classes: `NIH_FINDINGS`, 14 names.
        mode: "multilabel".
        ids: file names of the images, sorted.
        groups: patients.
        labels: (N, 14) float32 0/1, without reading an image; for stratified splits and weights.
        table: the file of the table.
        lines_without_image: how many lines were left out by `partial`.
        names_without_image: the images that these lines name.
        skipped: what was wrong with each line left out by `invalid="skip"`.
        paths: the file of each image, by id.

    Samples: image uint8, (H, W) mostly ((H, W, 3) for the few that are stored in colour); label
    (14,) float32 0/1.

    Raises:
        DataError: a missing file or column, a line as above; the message names file and line. Two
            image files of one name always raise.

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
    #: its patients are those of the box reader: leaks are looked for between the two
    collection = "NIH ChestX-ray14"
    classes: tuple[str, ...] = NIH_FINDINGS

    def __init__(
        self,
        root: str | Path,
        *,
        partial: bool = False,
        table: str | None = None,
        invalid: Invalid = "raise",
    ) -> None:
        self.root = Path(root)
        self.table = _table(self.root, table)
        rows = HostileRows(invalid)
        found = _read(self.table, rows)
        files = _image_files(self.root)
        absent = [name for name in found if name not in files]
        if not partial:
            for name in absent:
                with rows.row(found[name].place):
                    raise DataError(
                        f"image {name!r} is not in {self.root / 'images'}; {len(absent)} line(s) "
                        "have no image. Fetch them, or give partial=True."
                    )
        self.ids = tuple(sorted(found.keys() - absent))
        self.skipped = tuple(rows.messages)
        if not self.ids:
            raise DataError(
                f"{self.table}: no image to read; {len(absent)} line(s) have no image in "
                f"{self.root / 'images'}, {len(self.skipped)} were left out: "
                f"{some(self.skipped, limit=2) or 'none'}."
            )
        self.groups = tuple(found[name].patient for name in self.ids)
        self.labels: Array = np.stack([found[name].label for name in self.ids])
        self.names_without_image = frozenset(absent if partial else ())
        self.lines_without_image = len(self.names_without_image)
        self.paths = {name: files[name] for name in self.ids}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        check_index(index, len(self))
        image = read_image(self.paths[self.ids[index]])
        return Sample(image, None, self.labels[index].copy(), self.ids[index], self.groups[index])


class _Line(NamedTuple):
    """What a line of the table says of its image."""

    place: str
    patient: str
    label: Array


def _table(root: Path, name: str | None) -> Path:
    there = [each for each in _TABLES if (root / each).is_file()]
    if name is None and len(there) != 1:
        raise DataError(
            f"{root}: has {' and '.join(there) or 'neither ' + ' nor '.join(_TABLES)}; "
            "expected the data set as it is published, with one of them, or its name as table=."
        )
    return root / (there[0] if name is None else name)


def _read(table: Path, rows: HostileRows) -> dict[str, _Line]:
    """The lines of the table, by image."""
    found: dict[str, _Line] = {}
    for row in iter_rows(table, ("Image Index", "Finding Labels", "Patient ID"), cut=True):
        with rows.row(row.place):
            name = plain_name(row, "Image Index")
            line = _Line(row.place, row["Patient ID"], _label(row))
            if name in found:
                raise DataError(f"image {name!r} is listed a second time.")
            if not line.patient:
                raise DataError(f"image {name!r} has no Patient ID.")
            found[name] = line
    return found


def _image_files(root: Path) -> dict[str, Path]:
    """Paths by name from a listing of the folders: one look-up for 112,120 lines, not one each."""
    found: dict[str, Path] = {}
    for folder in [root / "images", *sorted(root.glob("images_0*/images"))]:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if found.setdefault(path.name, path) != path:
                raise DataError(f"{found[path.name]} and {path} share a name; expected one image.")
    return found


def _label(row: Row) -> Array:
    label = np.zeros(len(NIH_FINDINGS), dtype=np.float32)
    names = row["Finding Labels"].split("|")
    if names == [_NOTHING]:
        return label
    for name in names:
        if name == _NOTHING:
            raise DataError(f"'No Finding' stands beside a finding in {'|'.join(names)!r}.")
        if name not in NIH_FINDINGS:
            raise DataError(unknown_name("finding", name, (*NIH_FINDINGS, _NOTHING)))
        label[NIH_FINDINGS.index(name)] = 1.0
    return label
