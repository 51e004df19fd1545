"""CheXpert: radiographs with 14 findings, each positive, negative, uncertain or unsaid."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from transferseg.data.hostile import HostileRows, Invalid
from transferseg.data.images import read_image
from transferseg.data.samples import Sample, check_index
from transferseg.data.tables import Row, iter_rows, read_header
from transferseg.errors import DataError, some, unknown_name
from transferseg.types import Array, TargetMode

#: The findings in the order of the published tables.
CHEXPERT_FINDINGS: Final = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)

#: Which views are read.
Views: TypeAlias = Literal["all", "frontal", "lateral"]
#: What an uncertain label becomes: missing (U-Ignore), negative (U-Zeros), positive (U-Ones).
Uncertain: TypeAlias = Literal["ignore", "zeros", "ones"]
#: What it means that a report does not mention a finding.
Unmentioned: TypeAlias = Literal["negative", "missing"]

_VALUES: Final[Mapping[Uncertain, float]] = MappingProxyType(
    {"ignore": math.nan, "zeros": 0.0, "ones": 1.0}
)
_POSITIVE_IN_MERAND: Final = ("Atelectasis", "Edema", "Pleural Effusion")
# a folder above the part, as CheXpert has it and the test set of CheXlocalize has not
_PATH: Final = re.compile(
    r"(?:[^/\\]+/)?"
    r"((?:train|valid|val|test)/(patient\d+)/study\d+/view\d+_(frontal|lateral)\.(?:jpg|png))"
)


class CheXpert:
    r"""Reader of CheXpert: one label vector of 14 findings an image, no masks.

    Layout: `CheXpert-v1.0-small/` (or `CheXpert-v1.0/`) with `train.csv`, `valid.csv` and the
    images that they name, such as `train/patient00001/study1/view1_frontal.jpg`. A label is 1.0
    (positive), 0.0 (negative), -1.0 (uncertain) or empty (not mentioned in the report). The view is
    taken from the image's name. The 224,316 images of the paper include the test set, which these
    tables do not have: CheXlocalize has it with its labels (`test_labels.csv`, also
    `val_labels.csv`), read with `table=` where table and images lie in the same way. The
    `groundtruth.csv` of the test set has a line a study, not an image, and is not read.

    The full-size images come in folders "CheXpert-v1.0 batch 1 (validate & csv)" (with the tables)
    and "CheXpert-v1.0 batch 2 (train 1)" to "4 (train 3)", which hold patients: move the patients'
    folders to `train/` beside `train.csv`.

    At construction the table is read and the patients' folders are listed: an image that is not in
    its folder is an error when it is read. With `partial=True` or `invalid="skip"` every file is
    looked for at once.

    The paper divides the images 70:15:15 by patient: `split_by_group(reader.groups, seed=0)`.

    Args:
        root: the folder with the table, or the one that holds it.
        table: the table's name: "train.csv", 223,414 lines; "valid.csv", 234 lines with labels by
            radiologists; or one of CheXlocalize.
        views: which images: "all", "frontal" or "lateral".
        uncertain: what an uncertain label becomes. "merand2021": positive for atelectasis, edema
            and pleural effusion, negative for all others. "ignore" (missing, U-Ignore), "zeros"
            (negative, U-Zeros) or "ones" (positive, U-Ones) for all; or a mapping that names one of
            these three for each finding.
        unmentioned: what an empty label becomes: "negative", as CheXpert and the paper take it, or
            "missing".
        partial: whether lines without an image file are left out and counted (a part of the archive
            was unpacked); otherwise each is an error.
        invalid: what happens to a line that breaks the rules: "raise", or "skip" to leave it out
            and note it in `skipped`.

    Attributes:
        classes: `CHEXPERT_FINDINGS`, 14 names.
        mode: "multilabel".
        ids: paths below the folder with the table, sorted.
        groups: patients.
        labels: (N, 14) float32 0/1, NaN where missing; without reading an image.
        lines_without_image: how many lines were left out by `partial`.
        skipped: what was wrong with each line left out by `invalid="skip"`.

    Samples: image uint8 (H, W); label (14,) float32 0/1, NaN where missing.

    Raises:
        DataError: a missing file or column, an unknown option; a line that is cut short, with
            another label or path, without an image, or with an image that was listed before. The
            message names file and line.

    Source: Irvin et al., "CheXpert", AAAI 2019; the policy "merand2021": Merand 2021, section 3.1.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp()) / "CheXpert-v1.0-small"
        >>> study = root / "train" / "patient00001" / "study1"
        >>> study.mkdir(parents=True)
        >>> Image.new("L", (39, 32)).save(study / "view1_frontal.jpg")
        >>> path = "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
        >>> header = ",".join(["Path", *CHEXPERT_FINDINGS])
        >>> labels = ",,,1.0,,-1.0,-1.0,0.0,,,,,,"
        >>> (root / "train.csv").write_text(f"{header}\n{path},{labels}\n") > 0
        True
        >>> sample = CheXpert(root.parent)[0]
        >>> sample.group, [name for name, v in zip(CHEXPERT_FINDINGS, sample.label) if v]
        ('patient00001', ['Lung Opacity', 'Edema'])
    """

    mode: TargetMode = "multilabel"
    classes: tuple[str, ...] = CHEXPERT_FINDINGS

    def __init__(
        self,
        root: str | Path,
        *,
        table: str = "train.csv",
        views: Views = "all",
        uncertain: Literal["merand2021"] | Uncertain | Mapping[str, Uncertain] = "merand2021",
        unmentioned: Unmentioned = "negative",
        partial: bool = False,
        invalid: Invalid = "raise",
    ) -> None:
        for name, value, options in (
            ("views", views, get_args(Views)),
            ("unmentioned", unmentioned, get_args(Unmentioned)),
        ):
            if value not in options:
                raise DataError(unknown_name(name, value, options))
        meanings = _meanings(uncertain, unmentioned)
        rows = HostileRows(invalid)
        self.root = _folder(Path(root), table)
        _check_columns(self.root / table)
        found = _read(self.root / table, views, meanings, rows)
        _check_parts(self.root, table, found)
        found, self.lines_without_image = _with_image(self.root, found, rows, partial)
        if not found:
            raise DataError(
                f"{self.root / table}: no line of views={views!r} is left, "
                f"{self.lines_without_image} without an image and {len(rows.messages)} invalid: "
                f"{some(rows.messages, limit=2) or 'none'}."
            )
        self.ids = tuple(sorted(found))
        self.groups = tuple(found[name].patient for name in self.ids)
        self.labels: Array = np.array([found[name].label for name in self.ids], dtype=np.float32)
        self.skipped = tuple(rows.messages)
        self._places = tuple(found[name].place for name in self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        name = self.ids[check_index(index, len(self))]
        try:
            image = read_image(self.root / name)
        except DataError as error:
            raise DataError(f"{self._places[index]}: {error}") from error
        return Sample(image, None, self.labels[index].copy(), name, self.groups[index])


class _Line(NamedTuple):
    """What a line of the table says of its image."""

    place: str
    patient: str
    label: tuple[float, ...]


def _folder(root: Path, table: str) -> Path:
    """The folder with the table: the root itself, or CheXpert-v1.0-small or CheXpert-v1.0 in it."""
    within = [path.parent for path in sorted(root.glob(f"CheXpert-v1.0*/{table}"))]
    if (root / table).is_file() or not within:
        return root  # where nothing is found, the error names the file in the root
    if len(within) > 1:
        raise DataError(
            f"{root}: {some(map(str, within))} both have {table}; give one as the root."
        )
    return within[0]


def _check_columns(table: Path) -> None:
    """Say what a table by study is, before its columns are said to be missing."""
    columns = read_header(table)
    if "Study" in columns and "Path" not in columns:
        raise DataError(
            f"{table}: has one line a study (column 'Study'), not one an image, and is not read; "
            "give the table by image, as CheXlocalize has it: test_labels.csv."
        )


def _check_parts(root: Path, table: str, names: Iterable[str]) -> None:
    """A folder that is not there at all is one error, not one for each of its images."""
    for part in sorted({name.split("/", 1)[0] for name in names}):
        if (root / part).is_dir():
            continue
        batches = sorted(root.parent.glob("CheXpert-v1.0 batch * (train *)"))
        fix = "unpack the images there, or give the folder that has them as the root"
        if part == "train" and batches:
            fix = f"move the patients' folders out of {some(repr(each.name) for each in batches)}"
        elif part == "valid" and (root / "val").is_dir():
            fix = "rename the folder 'val' there to 'valid'"
        raise DataError(
            f"{root / part}: the folder does not exist, where {table} has its images; {fix}."
        )


def _meanings(
    uncertain: str | Mapping[str, Uncertain], unmentioned: Unmentioned
) -> dict[str, dict[str, float]]:
    """What each text of a cell means, by finding."""
    if isinstance(uncertain, Mapping):
        _check_names(uncertain)
        policies: Mapping[str, str] = uncertain
    elif uncertain == "merand2021":
        policies = {
            name: "ones" if name in _POSITIVE_IN_MERAND else "zeros" for name in CHEXPERT_FINDINGS
        }
    else:
        policies = dict.fromkeys(CHEXPERT_FINDINGS, uncertain)
    for policy in policies.values():
        if policy not in _VALUES:
            options = [*_VALUES] if isinstance(uncertain, Mapping) else [*_VALUES, "merand2021"]
            raise DataError(unknown_name("policy in uncertain", policy, options))
    empty = 0.0 if unmentioned == "negative" else math.nan
    found = {}
    for name in CHEXPERT_FINDINGS:
        value = _VALUES[policies[name]]  # type: ignore[index]
        found[name] = {"1.0": 1.0, "1": 1.0, "0.0": 0.0, "0": 0.0, "": empty,
                       "-1.0": value, "-1": value}  # fmt: skip
    return found


def _check_names(uncertain: Mapping[str, Uncertain]) -> None:
    for name in uncertain:
        if name not in CHEXPERT_FINDINGS:
            raise DataError(unknown_name("finding in uncertain", name, CHEXPERT_FINDINGS))
    missing = [name for name in CHEXPERT_FINDINGS if name not in uncertain]
    if missing:
        raise DataError(
            f"uncertain names no policy for {some(missing)}; expected one for each of the 14: "
            "dict.fromkeys(CHEXPERT_FINDINGS, 'zeros') | {'Edema': 'ones'}."
        )


def _read(
    table: Path, views: Views, meanings: Mapping[str, Mapping[str, float]], rows: HostileRows
) -> dict[str, _Line]:
    """The lines of the wanted views by the path of their image below the table's folder."""
    found: dict[str, _Line] = {}
    for row in iter_rows(table, ("Path", *CHEXPERT_FINDINGS), cut=True):
        with rows.row(row.place):
            path = _PATH.fullmatch(row["Path"])
            if path is None:
                raise DataError(
                    f"{row.place}: Path is {row['Path']!r}; expected one such as "
                    "'CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg'."
                )
            name, patient, view = path.groups()
            if views not in ("all", view):
                continue
            if name in found:
                raise DataError(f"{row.place}: image {name!r} is listed a second time.")
            found[name] = _Line(row.place, patient, _label(row, meanings))
    return found


def _label(row: Row, meanings: Mapping[str, Mapping[str, float]]) -> tuple[float, ...]:
    try:
        return tuple([values[row.values[name]] for name, values in meanings.items()])
    except KeyError:
        name = next(name for name, values in meanings.items() if row[name] not in values)
        raise DataError(
            f"{row.place}: {name} is {row[name]!r}; expected 1.0, 0.0, -1.0 or nothing."
        ) from None


def _with_image(
    root: Path, lines: dict[str, _Line], rows: HostileRows, partial: bool
) -> tuple[dict[str, _Line], int]:
    """The lines whose image is there, and how many others `partial` leaves out."""
    absent = _absent(root, lines, each=partial or rows.invalid == "skip")
    if not partial:
        for name in absent:
            with rows.row(lines[name].place):
                raise DataError(
                    f"{lines[name].place}: image {name!r} is not in {root}; {len(absent)} line(s) "
                    "have no image. Unpack them, or give partial=True."
                )
    for name in absent:
        del lines[name]
    return lines, len(absent) if partial else 0


def _absent(root: Path, names: Iterable[str], *, each: bool) -> list[str]:
    """Names without a file; without `each` only those whose patient has no folder.

    A study's folder holds one image or two: listing them all takes longer than asking for every
    file, and that takes minutes where a disk is reached over a network.
    """
    patients: dict[str, set[str]] = {}
    found = []
    for name in names:
        part, patient, _ = name.split("/", 2)
        if part not in patients:
            patients[part] = {path.name for path in (root / part).iterdir()}
        # os.path: a Path for each of 223,414 files would take as long as the question itself
        if patient not in patients[part] or (each and not os.path.isfile(f"{root}/{name}")):  # noqa: PTH113
            found.append(name)
    return found
