"""SIIM-FISABIO-RSNA COVID-19 (Kaggle, 2021): radiographs with boxes around opacities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, get_args

from transferseg.data.boxes import BACKGROUND, Box, BoxShape, Outside, Overlap
from transferseg.data.dicom import DicomValues, dicom_header, read_dicom, require_pydicom
from transferseg.data.hostile import HostileRows, Invalid
from transferseg.data.images import IMAGE_SUFFIXES, image_size, read_image
from transferseg.data.painted import BoxedImage, BoxPainter, PaintedBoxes
from transferseg.data.tables import Row, read_rows
from transferseg.errors import DataError, unknown_name
from transferseg.types import Array, TargetMode

#: Classes of the multiclass masks. The fourth appearance, "negative", has no boxes: it is all
#: background.
SIIM_CLASSES: Final = (BACKGROUND, "typical", "indeterminate", "atypical")

_APPEARANCES: Final = MappingProxyType(
    {
        "Negative for Pneumonia": "negative",
        "Typical Appearance": "typical",
        "Indeterminate Appearance": "indeterminate",
        "Atypical Appearance": "atypical",
    }
)
_NOTHING: Final = ["none", "1", "0", "0", "1", "1"]
_DICOM_SUFFIX: Final = ".dcm"
_Corners: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom

#: What is kept together in a split.
SiimGroup: TypeAlias = Literal["patient", "study"]

#: Which images without boxes are read: those of negative studies, all, or none.
WithoutBoxes: TypeAlias = Literal["negative", "all", "none"]


@dataclass(frozen=True)
class _Image(BoxedImage):
    """One radiograph and what its line says."""

    appearance: str


class SIIMCovid19(PaintedBoxes):
    r"""Reader of the training part of SIIM-FISABIO-RSNA COVID-19; masks are painted from boxes.

    Layout, as Kaggle gives it: `train_image_level.csv` (id `<image>_image`, boxes, label,
    StudyInstanceUID), `train_study_level.csv` (id `<study>_study`, one column an appearance, one
    of them 1), images `train/<study>/<series>/<image>.dcm`, which need the extra `dicom`. Images
    that were converted to PNG or JPEG are found by their name too, in the same tree or in one
    folder. Boxes are read from the column label ("opacity 1 xmin ymin xmax ymax", repeated); their
    class is the appearance of the study. An image without boxes has the label "none 1 0 0 1 1":
    that box of 1x1 pixels stands for nothing and paints nothing. Most such images are of negative
    studies; in one of another study an opacity may be there that was not boxed (studies have
    several images, of which often one was). `boxes(index)` gives the boxes of an image.

    What the tables and headers of images tell is checked at construction. With group="study" the
    headers of images without boxes are not read: that their files can be, shows when they are.

    Args:
        root: the folder that the other paths are relative to.
        images: the folder of images, searched with all folders below.
        original_sizes: a CSV file with the columns image_id, dim0 (height) and dim1 (width) before
            the conversion, as Kaggle's converted sets have it (`meta.csv`): boxes are scaled from
            these to the size of each stored image. None takes them as pixels of the stored images.
        group: "patient" takes the Patient ID of the DICOM files, as the paper splits. "study" takes
            the StudyInstanceUID, which the tables give: for images that were converted, which name
            no patient. A patient may have several studies.
        mode: "multiclass" has `SIIM_CLASSES`; "multilabel" the three without background; "binary"
            the one class "opacity".
        shape, overlap: see `masks_from_boxes`; `overlap` matters for "multiclass" only.
        outside: whether a box that sticks out of its image by more than half a pixel is invalid
            ("raise") or cut at the edge ("clip"). One that lies wholly outside is always invalid.
        without_boxes: which images without boxes are read too, as background: those of "negative"
            studies, "all" (the paper's own reading), or "none".
        values: see `read_dicom`; for DICOM files only.
        invalid: a line that breaks the rules is an error ("raise") or left out ("skip") with its
            image: an id of another form or listed before (the first stays), an image without file,
            study, original size or patient, a label that is none (NaN), a box that is no box, has
            no area, covers no pixel or lies outside, an opacity in a study that is negative, a
            study of no or of several appearances, a line that is cut short.

    Attributes:
        classes, mode: as above.
        ids: names of the images, without suffix, sorted.
        groups: patients or studies.
        appearances: "negative", "typical", "indeterminate" or "atypical" an image: its study's.
        negatives: how many images are of negative studies, read or not.
        unboxed: how many images of other studies have no boxes, read or not.
        presence: (N, K) bool, which image has a box of which class; for stratified splits.
        skipped: what was wrong with each line that was left out.

    Samples: image as `read_dicom` or `read_image` gives it; mask uint8, see `masks_from_boxes`.

    Raises:
        DataError: as above; the message names file and line. Whatever `invalid` says:
            two files of one name, DICOM files without pydicom, and group="patient" or
            values="stored" without any DICOM file.

    Source: Lakhani et al., "The 2021 SIIM-FISABIO-RSNA Machine Learning COVID-19 Challenge", 2021;
    masks as in Merand & Klein 2021, 3.1.

    Example:
        One image that was converted to PNG:

        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "train").mkdir()
        >>> Image.new("L", (40, 32)).save(root / "train" / "a1.png")
        >>> table = "id,boxes,label,StudyInstanceUID\na1_image,,opacity 1 4 6 14 8,s7\n"
        >>> (root / "train_image_level.csv").write_text(table) > 0
        True
        >>> columns = "id,Negative for Pneumonia,Typical Appearance"
        >>> columns += ",Indeterminate Appearance,Atypical Appearance"
        >>> (root / "train_study_level.csv").write_text(f"{columns}\ns7_study,0,0,1,0\n") > 0
        True
        >>> reader = SIIMCovid19(root, group="study")
        >>> reader.classes, reader.boxes(0)[0].name, int((reader[0].mask == 2).sum())
        (('background', 'typical', 'indeterminate', 'atypical'), 'indeterminate', 20)
    """

    def __init__(
        self,
        root: str | Path,
        *,
        images: str | Path = "train",
        original_sizes: str | Path | None = None,
        group: SiimGroup = "patient",
        mode: TargetMode = "multiclass",
        shape: BoxShape = "rectangle",
        overlap: Overlap = "last",
        outside: Outside = "raise",
        without_boxes: WithoutBoxes = "negative",
        values: DicomValues = "window",
        invalid: Invalid = "raise",
    ) -> None:
        for kind, given, known in (
            ("group", group, SiimGroup),
            ("values", values, DicomValues),
            ("without_boxes", without_boxes, WithoutBoxes),
        ):
            if given not in get_args(known):
                raise DataError(unknown_name(kind, str(given), get_args(known)))
        self.root = Path(root)
        self.values: DicomValues = values
        names = ("opacity",) if mode == "binary" else SIIM_CLASSES[1:]
        painter = BoxPainter(names, mode, shape=shape, overlap=overlap, outside=outside)
        files = _image_files(self.root / images)
        _check_kinds(self.root / images, files, group, values)
        rows = HostileRows(invalid)
        sizes = None if original_sizes is None else _sizes(rows, self.root / original_sizes)
        studies = _studies(rows, self.root / "train_study_level.csv")
        lines = _Lines(files, studies, sizes, group == "patient", painter)
        found = _images(rows, self.root / "train_image_level.csv", lines)
        self.negatives = sum(image.appearance == "negative" for image in found)
        self.unboxed = sum(not image.boxes for image in found) - self.negatives
        others = without_boxes == "all"
        negatives = without_boxes != "none"
        kept = [
            image
            for image in found
            if image.boxes or (negatives if image.appearance == "negative" else others)
        ]
        super().__init__(painter, kept, place=self.root, skipped=rows.messages)
        appearances = {image.name: image.appearance for image in kept}
        self.appearances = tuple(appearances[name] for name in self.ids)

    def _read(self, path: Path) -> Array:
        return read_dicom(path, values=self.values) if _is_dicom(path) else read_image(path)


@dataclass(frozen=True)
class _Lines:
    """Turns lines of the image table into images, with what the other tables and files say."""

    files: Mapping[str, Path]
    studies: Mapping[str, str]
    sizes: Mapping[str, tuple[int, int]] | None
    by_patient: bool
    painter: BoxPainter

    def image(self, row: Row) -> _Image:
        name, study = _stem(row, "_image"), row["StudyInstanceUID"]
        if study not in self.studies:
            raise DataError(f"study {study!r} has no line in train_study_level.csv to go by.")
        if name not in self.files:
            raise DataError(f"image {name!r} has no file in the folder of images.")
        if self.sizes is not None and name not in self.sizes:
            raise DataError(f"image {name!r} has no line in the table of original sizes.")
        corners = _corners(row)
        appearance, path = self.studies[study], self.files[name]
        if corners and appearance == "negative":
            raise DataError(f"an opacity in study {study!r}, which is negative for pneumonia.")
        size, patient = (0, 0), ""
        if corners or self.by_patient:  # 6,334 files: none is opened in vain
            size, patient = _header(path)
        if self.by_patient and not patient:
            raise DataError(
                f"{path} names no patient, as converted images do not; give group='study'."
            )
        boxes = tuple(self._box(each, name, appearance, size) for each in corners)
        group = patient if self.by_patient else study
        return _Image(name, group, path, boxes, appearance)

    def _box(self, corners: _Corners, name: str, appearance: str, size: tuple[int, int]) -> Box:
        left, top, right, bottom = corners
        class_name = self.painter.classes[0] if self.painter.mode == "binary" else appearance
        box = Box(left, top, right - left, bottom - top, class_name)
        if self.sizes is not None:
            height, width = self.sizes[name]
            box = box.scaled(size[1] / width, size[0] / height)
        self.painter.check(box, size)
        return box


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """Height and width of an image, and its patient, "" when its file names none."""
    if not _is_dicom(path):
        return image_size(path), ""
    header = dicom_header(path)
    return header.size, header.patient


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() == _DICOM_SUFFIX


def _check_kinds(
    folder: Path, files: Mapping[str, Path], group: SiimGroup, values: DicomValues
) -> None:
    """What DICOM files need must be there, and what only they have must not be asked of others."""
    dicom = next(filter(_is_dicom, files.values()), None)
    if dicom is not None:
        require_pydicom(dicom)
    elif group == "patient":
        raise DataError(
            f"{folder}: has no DICOM file, and converted images name no patient; give "
            "group='study'."
        )
    elif values != "window":
        raise DataError(f"{folder}: has no DICOM file; values={values!r} is for these alone.")


def _images(rows: HostileRows, path: Path, lines: _Lines) -> list[_Image]:
    found: dict[str, _Image] = {}
    for row in read_rows(path, ("id", "label", "StudyInstanceUID"), cut=True):
        with rows.row(row.place):
            image = lines.image(row)
            if image.name in found:
                raise DataError(f"image {image.name!r} is listed a second time.")
            found[image.name] = image
    return list(found.values())


def _image_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: the folder does not exist.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in (_DICOM_SUFFIX, *IMAGE_SUFFIXES):
            continue
        if found.setdefault(path.stem, path) != path:
            raise DataError(f"{path} and {found[path.stem]} share a name; expected one image.")
    return found


def _stem(row: Row, ending: str) -> str:
    name = row["id"].removesuffix(ending)
    if not name or name == row["id"]:
        raise DataError(f"id is {row['id']!r}; expected a name ending in {ending!r}.")
    return name


def _corners(row: Row) -> list[_Corners]:
    """xmin, ymin, xmax, ymax of each opacity; none for an image without."""
    words = row["label"].split()
    if words == _NOTHING:
        return []
    groups = [words[start : start + 6] for start in range(0, len(words), 6)]
    if not groups or any(len(each) != 6 or each[0] != "opacity" for each in groups):
        raise DataError(
            f"label is {row['label'][:80]!r}; expected {' '.join(_NOTHING)!r} or 'opacity 1 xmin "
            "ymin xmax ymax', repeated."
        )
    try:
        numbers = [tuple(map(float, each[2:])) for each in groups]
    except ValueError as error:
        raise DataError(f"label is {row['label'][:80]!r}: {error}.") from error
    return [(left, top, right, bottom) for left, top, right, bottom in numbers]


def _studies(rows: HostileRows, path: Path) -> dict[str, str]:
    """The appearance of each study."""
    found: dict[str, str] = {}
    for row in read_rows(path, ("id", *_APPEARANCES), cut=True):
        with rows.row(row.place):
            study = _stem(row, "_study")
            counts = Counter(row[name] for name in _APPEARANCES)
            if counts != {"0": 3, "1": 1}:
                raise DataError(
                    f"study {study!r} is {[row[name] for name in _APPEARANCES]}; expected one "
                    "appearance of 1 and three of 0."
                )
            if study in found:
                raise DataError(f"study {study!r} is listed a second time.")
            found[study] = next(_APPEARANCES[name] for name in _APPEARANCES if row[name] == "1")
    return found


def _sizes(rows: HostileRows, path: Path) -> dict[str, tuple[int, int]]:
    """Original height and width of each image."""
    found: dict[str, tuple[int, int]] = {}
    for row in read_rows(path, ("image_id", "dim0", "dim1"), cut=True):
        with rows.row(row.place):
            if row["image_id"] in found:
                raise DataError(f"image {row['image_id']!r} is listed a second time.")
            found[row["image_id"]] = row.whole("dim0", least=1), row.whole("dim1", least=1)
    return found
