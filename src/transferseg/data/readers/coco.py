"""Boxes in COCO's form: one JSON file of images, annotations and categories."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, TypeAlias, get_args

from transferseg.data.boxes import Box, BoxShape, Outside, Overlap, masks_from_boxes
from transferseg.data.hostile import HostileRows, Invalid
from transferseg.data.images import image_size
from transferseg.data.painted import BoxedImage, BoxPainter, PaintedBoxes
from transferseg.data.samples import Sample
from transferseg.data.tables import read_groups
from transferseg.errors import DataError, some, unknown_name
from transferseg.types import TargetMode

#: COCO's ids are whole numbers; some exporters write texts.
_Id: TypeAlias = int | str

#: What a crowd (a box around many things) is: invalid, left out, or ignored pixels.
Crowds: TypeAlias = Literal["raise", "skip", "ignore"]


@dataclass
class _Image:
    """One listed image and what has been found of it so far."""

    name: str
    group: str
    path: Path
    size: tuple[int, int]
    boxes: list[Box] = field(default_factory=list)
    crowds: list[Box] = field(default_factory=list)


class COCOBoxes(PaintedBoxes):
    """Reader of a data set with bounding boxes in COCO's form; masks are painted from the boxes.

    Layout: `annotations.json` with the lists `images` (id, file_name, width, height),
    `annotations` (id, image_id, category_id, bbox as [x, y, width, height] in pixels) and
    `categories` (id, name); image files below `images/`, where file_name may name a folder.
    `segmentation` is not read. Everything that JSON and image headers tell is checked at
    construction. `boxes(index)` gives the boxes of an image.

    Args:
        root: the folder that the other paths are relative to.
        annotations: the JSON file.
        images: the folder of images.
        groups: from a file name to its group (patient, video); or a CSV file that tells it. A name
            is looked for as it is, then without its suffix (images are often encoded anew). None
            makes each image its own group: right only when no patient has two images.
        name_column: the CSV file's column with file names.
        group_column: the CSV file's column with groups.
        mode: "multilabel" has a plane for each category, "multiclass" the class "background" and
            the categories, "binary" the one category that there is.
        shape, overlap: see `masks_from_boxes`; `overlap` matters for "multiclass" only.
        outside: whether a box that sticks out of its image by more than half a pixel is invalid
            ("raise") or cut at the edge ("clip"). One that lies wholly outside is always invalid.
        without_boxes: whether images without a box are read too, as background.
        crowds: what an annotation with iscrowd is, whose box is around many things: invalid
            ("raise"), passed over, so that its things are background ("skip"), or 255 in its box
            but where other boxes paint ("ignore").
        invalid: an image or annotation that breaks the rules is an error ("raise") or left out
            ("skip"): an image without file, header of another size or group; a second id or file
            name (the first stays); an unknown image_id or category_id; a box that is no box, has
            no area, covers no pixel or lies outside; a crowd. An annotation leaves out its whole
            image, in whose mask the thing would be background; but one that is listed twice, all
            the same, is left out alone.

    Attributes:
        classes: category names in the order of their ids, after "background" for multiclass.
        mode, crowds: as given.
        ids: file names, sorted.
        groups: one an image.
        presence: (N, K) bool, which image has a box of which class; for stratified splits.
        skipped: what was wrong with each image and annotation that was left out.
        left_out: names of the images that an annotation took along, sorted.
        crowd_annotations: how many crowds were passed over or ignored, in images read or not.

    Samples: image as stored; mask uint8, see `masks_from_boxes`.

    Raises:
        DataError: as above; the message names the file and the id. Categories without name or of
            one name, and a file in another form, always raise.

    Source: "COCO data format", cocodataset.org, object detection.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "images").mkdir()
        >>> Image.new("L", (40, 32)).save(root / "images" / "p1.png")
        >>> content = {
        ...     "images": [{"id": 5, "file_name": "p1.png", "width": 40, "height": 32}],
        ...     "annotations": [{"id": 1, "image_id": 5, "category_id": 2, "bbox": [3, 4, 10, 20]}],
        ...     "categories": [{"id": 2, "name": "Left Lung"}],
        ... }
        >>> (root / "annotations.json").write_text(json.dumps(content)) > 0
        True
        >>> reader = COCOBoxes(root)
        >>> reader.classes, reader[0].mask.shape, int(reader[0].mask.sum())
        (('Left Lung',), (32, 40, 1), 200)
    """

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: str | Path = "annotations.json",
        images: str | Path = "images",
        groups: Mapping[str, str] | str | Path | None = None,
        name_column: str = "file_name",
        group_column: str = "group",
        mode: TargetMode = "multilabel",
        shape: BoxShape = "rectangle",
        overlap: Overlap = "last",
        outside: Outside = "raise",
        without_boxes: bool = True,
        crowds: Crowds = "raise",
        invalid: Invalid = "raise",
    ) -> None:
        if crowds not in get_args(Crowds):
            raise DataError(unknown_name("crowds", crowds, get_args(Crowds)))
        self.root = Path(root)
        self.crowds: Crowds = crowds
        path = self.root / annotations
        content = _read_json(path)
        categories = _categories(content, path)
        names = tuple(categories.values())
        painter = BoxPainter(names, mode, shape=shape, overlap=overlap, outside=outside)
        rows = HostileRows(invalid)
        if isinstance(groups, (str, Path)):
            groups = read_groups(self.root / groups, name_column, group_column)
        stems = None if groups is None else _with_stems(groups)
        listed = _images(rows, content, path, self.root / images, stems)
        found = _Found(listed, categories, painter, crowds)
        for place, entry in _entries(content, "annotation", path):
            with rows.row(place):
                found.add(entry)
        self.crowd_annotations = found.crowd_annotations
        self.left_out = tuple(sorted(listed[key].name for key in found.spoilt))
        kept = [
            image
            for key, image in listed.items()
            if key not in found.spoilt and (without_boxes or image.boxes)
        ]
        self._crowds = {image.name: tuple(image.crowds) for image in kept if image.crowds}
        boxed = (BoxedImage(each.name, each.group, each.path, tuple(each.boxes)) for each in kept)
        super().__init__(painter, boxed, place=path, skipped=rows.messages)

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        crowds, mask = self._crowds.get(sample.id, ()), sample.mask
        if crowds and mask is not None:
            size = mask.shape[0], mask.shape[1]
            around = masks_from_boxes(crowds, size, classes=self.classes, mode=self.mode)
            mask[(around != 0) & (mask == 0)] = 255
        return sample


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file does not exist.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file in UTF-8 ({error}).") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise DataError(
                f"{path}: {key!r} is no list of objects; expected COCO's form, with images, "
                "annotations and categories."
            )
    return dict(content)


def _entries(content: dict[str, Any], kind: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The images or annotations of the file, each with its place for messages."""
    for number, entry in enumerate(content[f"{kind}s"]):
        known = f"id {entry['id']!r}" if "id" in entry else f"number {number} (without id)"
        yield f"{path}, {kind} {known}", entry


def _id(entry: dict[str, Any], key: str) -> _Id:
    value = entry.get(key)
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise DataError(f"{key} is {value!r}; expected a whole number or a text.")
    return value


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{key} is {value!r}; expected a text.")
    return value


def _categories(content: dict[str, Any], path: Path) -> dict[_Id, str]:
    """Names by id, in the order of the ids."""
    try:
        found = [(_id(entry, "id"), _text(entry, "name")) for entry in content["categories"]]
    except DataError as error:
        raise DataError(f"{path}, categories: {error}") from error
    names = dict(sorted(found, key=lambda pair: (isinstance(pair[0], str), pair[0])))
    if not names or len(names) < len(found) or len(set(names.values())) < len(found):
        raise DataError(
            f"{path}, categories: {some(f'{key}: {name}' for key, name in found) or 'none'}; "
            "expected one or more, of distinct ids and names."
        )
    return names


def _images(
    rows: HostileRows,
    content: dict[str, Any],
    path: Path,
    folder: Path,
    groups: Mapping[str, str] | None,
) -> dict[_Id, _Image]:
    found: dict[_Id, _Image] = {}
    names: dict[str, str] = {}
    for place, entry in _entries(content, "image", path):
        with rows.row(place):
            key, name = _id(entry, "id"), _text(entry, "file_name")
            if key in found:
                raise DataError("the id is listed a second time.")
            if name in names:
                raise DataError(f"{name!r} is listed already, by {names[name]}.")
            image = _image(entry, name, folder, groups)
            found[key], names[name] = image, place
    return found


def _image(
    entry: dict[str, Any], name: str, folder: Path, groups: Mapping[str, str] | None
) -> _Image:
    parts = PureWindowsPath(name)  # knows both slashes, and drives
    if parts.anchor or ".." in parts.parts or "\\" in name:
        raise DataError(f"file_name is {name!r}; expected a path below {folder}.")
    group = name if groups is None else groups.get(name, groups.get(_without_suffix(name)))
    if not isinstance(group, str) or not group:
        raise DataError(f"groups has {group!r} for {name!r}; expected a text.")
    size = image_size(folder / name)
    listed = entry.get("height"), entry.get("width")
    if listed != size:
        raise DataError(
            f"width x height is {listed[1]}x{listed[0]}, but {folder / name} is "
            f"{size[1]}x{size[0]}."
        )
    return _Image(name, group, folder / name, size)


@dataclass
class _Found:
    """The boxes of each image, as the annotations are added."""

    images: dict[_Id, _Image]
    categories: dict[_Id, str]
    painter: BoxPainter
    crowds: Crowds
    crowd_annotations: int = 0
    spoilt: set[_Id] = field(default_factory=set)
    seen: dict[_Id, dict[str, Any]] = field(default_factory=dict)

    def add(self, entry: dict[str, Any]) -> None:
        """Add one annotation; one that breaks the rules spoils its image."""
        image = _id(entry, "image_id")
        if image not in self.images:
            raise DataError(f"image_id {image!r} is no image of the file, or it was left out.")
        key = entry.get("id")
        if isinstance(key, (int, str)) and self.seen.get(key) == entry:
            raise DataError("the annotation is listed a second time.")  # nothing is lost with it
        try:
            self._add(entry, self.images[image])
        except DataError:
            self.spoilt.add(image)
            raise

    def _add(self, entry: dict[str, Any], image: _Image) -> None:
        key, category = _id(entry, "id"), _id(entry, "category_id")
        if key in self.seen:
            raise DataError("the id is listed a second time, with another box.")
        if category not in self.categories:
            raise DataError(
                f"category_id {category!r}; expected one of {some(map(repr, self.categories))}."
            )
        crowd = bool(entry.get("iscrowd"))
        if crowd and self.crowds == "raise":
            raise DataError("iscrowd: the box is around many things, not one: see crowds=.")
        if not crowd or self.crowds == "ignore":
            sides = entry.get("bbox")
            if not isinstance(sides, list) or len(sides) != 4:
                raise DataError(f"bbox is {sides!r}; expected [x, y, width, height].")
            left, top, width, height = sides
            box = Box(left, top, width, height, self.categories[category])
            self.painter.check(box, image.size)
            (image.crowds if crowd else image.boxes).append(box)
        self.crowd_annotations += crowd
        self.seen[key] = entry


def _without_suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and "/" not in suffix else name


def _with_stems(groups: Mapping[str, str]) -> dict[str, str]:
    """Groups by name and by name without suffix, the latter where it stands for one group."""
    found: dict[str, str] = {}
    several: set[str] = set()
    for name, group in groups.items():
        stem = _without_suffix(name)
        if found.setdefault(stem, group) != group:
            several.add(stem)
    return {stem: group for stem, group in found.items() if stem not in several} | dict(groups)
