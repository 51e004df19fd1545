"""Folders of images, with or without a folder of masks of the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from transferseg.data.images import (
    IMAGE_SUFFIXES,
    image_size,
    read_image,
)
from transferseg.data.masks import read_mask
from transferseg.data.samples import Sample, check_index
from transferseg.errors import DataError, some
from transferseg.spec import default_mode
from transferseg.types import Array, TargetMode

#: From an image's id to its group (patient, case, video).
GroupOf = Callable[[str], str]


def files_by_id(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Files by id: the path below the folder without its suffix, sorted.

    Raises:
        DataError: two files of one id; it names both.

    Example:
        >>> list(files_by_id(Path("a"), [Path("a/c/2.png"), Path("a/1.jpg")]))
        ['1', 'c/2']
    """
    found: dict[str, Path] = {}
    for path in sorted(files):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(
                f"{path} and {found[name]} share the name {name!r}; expected one image a name."
            )
        found[name] = path
    return found


def list_images(folder: Path, pattern: str, *, recursive: bool) -> dict[str, Path]:
    """Image files of a folder by id; files that are no images are passed over.

    Raises:
        DataError: no such folder, no image in it, two images of one id.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: the folder does not exist.")
    matching = folder.rglob(pattern) if recursive else folder.glob(pattern)
    images = (path for path in matching if path.suffix.lower() in IMAGE_SUFFIXES)
    found = files_by_id(folder, (path for path in images if path.is_file()))
    if not found:
        raise DataError(
            f"{folder}: no image matches {pattern!r}; expected files ending in "
            f"{', '.join(IMAGE_SUFFIXES)}."
        )
    return found


def _groups(ids: Sequence[str], group: GroupOf | None) -> tuple[str, ...]:
    if group is None:
        return tuple(ids)
    groups = []
    for name in ids:
        try:
            found = group(name)
        except Exception as error:
            raise DataError(f"group() failed on {name!r}: {error!r}.") from error
        if not isinstance(found, str) or not found:
            raise DataError(f"group() gave {found!r} for {name!r}; expected a text.")
        groups.append(found)
    return tuple(groups)


class ImageFolder:
    """Images of one folder, without masks or labels: for autoencoders and for prediction.

    Args:
        root: the folder.
        pattern: a glob pattern for file names; files that are no images are passed over.
        recursive: whether folders below are read too.
        group: from the id to the group, called at construction only. None makes each image its
            own group.

    Attributes:
        classes: (), there are none.
        mode: "multilabel" (of no classes).
        ids: paths below the folder without suffix, sorted.
        groups: one an image.

    Raises:
        DataError: no such folder, no image, two images of one name, a failing `group`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.new("L", (40, 32)).save(root / "p1_a.png")
        >>> reader = ImageFolder(root, group=lambda name: name.split("_")[0])
        >>> reader.ids, reader.groups, reader[0].image.shape
        (('p1_a',), ('p1',), (32, 40))
    """

    mode: TargetMode = "multilabel"
    classes: tuple[str, ...] = ()

    def __init__(
        self,
        root: str | Path,
        *,
        pattern: str = "*",
        recursive: bool = False,
        group: GroupOf | None = None,
    ) -> None:
        self.root = Path(root)
        files = list_images(self.root, pattern, recursive=recursive)
        self.ids = tuple(files)
        self.groups = _groups(self.ids, group)
        self._paths = tuple(files.values())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        path = self._paths[check_index(index, len(self))]
        return Sample(read_image(path), None, None, self.ids[index], self.groups[index])


class ImageMaskFolder:
    """Images and masks of the same names (their suffixes may differ) in two folders.

    What a mask's pixel values mean is said, not guessed: by default they are class numbers, 0 and
    1 for one class, with 255 for ignored pixels. A mask of 0 and 255 wants `threshold=127` or
    `values={0: 0, 255: 1}`.

    Args:
        root: a folder with `images/` and `masks/`; or give both folders by name.
        images: the folder of images, instead of `root`.
        masks: the folder of masks, instead of `root`.
        classes: class names: one for binary, two or more (with the background) for multiclass.
        mode: "binary" or "multiclass"; None follows the number of classes.
        threshold: for binary masks, JPEG above all: values above it are foreground (127).
        values: pixel value -> class number (255: ignored), for masks numbered in another way.
        group: from the id to the group (patient, video); None makes each image its own group.

    Attributes:
        classes, mode: as given.
        ids: names without suffix, sorted.
        groups: one an image.

    Samples: image as stored; mask uint8 (H, W), class numbers, 255 ignored.

    Raises:
        DataError: options that do not fit, an image without mask or a mask without image, a mask
            of another size than its image (checked from the headers); when reading, a damaged
            file, or a pixel value that means nothing. The message names the files.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for folder, grey in (("images", 90), ("masks", 255)):
        ...     (root / folder).mkdir()
        ...     Image.new("L", (40, 32), grey).save(root / folder / "p1.png")
        >>> reader = ImageMaskFolder(root, classes=("polyp",), threshold=127)
        >>> reader.ids, reader[0].mask.shape, int(reader[0].mask.max())
        (('p1',), (32, 40), 1)
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        images: str | Path | None = None,
        masks: str | Path | None = None,
        classes: Sequence[str],
        mode: TargetMode | None = None,
        threshold: int | None = None,
        values: Mapping[int, int] | None = None,
        group: GroupOf | None = None,
    ) -> None:
        folders = _two_folders(root, images, masks)
        self.classes = tuple([classes] if isinstance(classes, str) else classes)
        self.mode: TargetMode = mode or default_mode(self.classes)
        self.threshold = threshold
        self.values = None if values is None else dict(values)
        _check_meaning(self.classes, self.mode, threshold, self.values)
        found = [list_images(folder, "*", recursive=False) for folder in folders]
        self._pairs = _paired(*found)
        self.ids = tuple(found[0])
        self.groups = _groups(self.ids, group)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        image_path, mask_path = self._pairs[check_index(index, len(self))]
        mask = self._numbers(read_mask(mask_path), mask_path)
        return Sample(read_image(image_path), mask, None, self.ids[index], self.groups[index])

    def _numbers(self, mask: Array, path: Path) -> Array:
        """Class numbers from pixel values."""
        if self.threshold is not None:
            return np.greater(mask, self.threshold).astype(np.uint8)
        count = max(len(self.classes), 2)
        meaning = self.values or {**{value: value for value in range(count)}, 255: 255}
        present = np.unique(mask)
        unknown = [int(value) for value in present if int(value) not in meaning]
        if unknown:
            advice = "; a binary mask of grey values wants threshold=127"
            raise DataError(
                f"{path}: pixel value(s) {some(map(str, unknown))} mean no class; expected "
                f"{some(map(str, meaning))}{advice if self.mode == 'binary' else ''}."
            )
        if self.mode == "binary" and self.values is None and 255 in present and 1 not in present:
            raise DataError(
                f"{path}: holds 255 (ignored pixels) but no 1. If it is a mask of 0 and 255, give "
                "threshold=127; if 255 is to be ignored, give values={0: 0, 1: 1, 255: 255}."
            )
        table = np.zeros(int(present[-1]) + 1, dtype=np.uint8)
        for value in present:
            table[value] = meaning[int(value)]
        numbers: Array = table[mask]
        return numbers


def _two_folders(
    root: str | Path | None, images: str | Path | None, masks: str | Path | None
) -> tuple[Path, Path]:
    if root is not None and images is None and masks is None:
        return Path(root) / "images", Path(root) / "masks"
    if root is None and images is not None and masks is not None:
        return Path(images), Path(masks)
    raise DataError(
        "give either the root of images/ and masks/, or both images= and masks=; got "
        f"root={root!r}, images={images!r}, masks={masks!r}."
    )


def _check_meaning(
    classes: tuple[str, ...],
    mode: TargetMode,
    threshold: int | None,
    values: Mapping[int, int] | None,
) -> None:
    if mode not in ("binary", "multiclass"):
        raise DataError(
            f"one mask file an image holds exclusive classes: mode 'binary' or 'multiclass', got "
            f"{mode!r}."
        )
    if (mode == "binary") != (len(classes) == 1) or not classes:
        raise DataError(
            f"mode {mode!r} does not fit {len(classes)} class(es): binary has one, multiclass two "
            "or more (background included)."
        )
    if threshold is not None and (mode != "binary" or values is not None):
        raise DataError("threshold is for binary masks, and not beside values.")
    allowed = {*range(max(len(classes), 2)), 255}
    wrong = [f"{value}: {number}" for value, number in (values or {}).items()
             if number not in allowed or value < 0]  # fmt: skip
    if wrong or values == {}:
        raise DataError(
            f"values maps pixel values to class numbers 0..{max(len(classes), 2) - 1} or 255 "
            f"(ignored), got {{{some(wrong)}}}."
        )


def _paired(images: dict[str, Path], masks: dict[str, Path]) -> tuple[tuple[Path, Path], ...]:
    alone = [str(images[name]) for name in images if name not in masks]
    if alone:
        raise DataError(f"{some(alone)}: no mask of the same name.")
    alone = [str(masks[name]) for name in masks if name not in images]
    if alone:
        raise DataError(f"{some(alone)}: no image of the same name.")
    for name, path in images.items():
        sizes = image_size(path), image_size(masks[name])
        if sizes[0] != sizes[1]:
            raise DataError(
                f"{masks[name]} is {sizes[1][1]}x{sizes[1][0]}, but its image {path} is "
                f"{sizes[0][1]}x{sizes[0][0]}."
            )
    return tuple((path, masks[name]) for name, path in images.items())
