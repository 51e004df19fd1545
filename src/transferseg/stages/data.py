"""What a stage trains on, and what is known of it: whose images, how they are divided."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from transferseg.data import (
    Augment,
    BoxReader,
    PreparedDataset,
    Reader,
    RotatingKFold,
    check_no_leak,
    content_hash,
    original,
)
from transferseg.data.samples import target_size
from transferseg.errors import DataError, unknown_name
from transferseg.spec import InputSpec
from transferseg.stages.describe import describe_value, key_of

#: The parts that a stage knows: what it learns from, what chooses the best epoch, what is held out.
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Facts:
    """What is known of a stage's images, in the reader's order.

    Attributes:
        groups: the group of every image.
        contents: the content hash of every image in a part; "" for others, () when not read.
        digest: SHA-256 over ids, groups, classes, images and targets.
    """

    groups: tuple[str, ...]
    contents: tuple[str, ...]
    digest: str


@dataclass(frozen=True, eq=False)
class StageData:
    """The images of a stage, their parts, and how they are prepared.

    Attributes:
        reader: the data.
        parts: positions in the reader by part: "train" always, "validation" to choose the best
            epoch, "test" to be scored once, at the end.
        size: height and width in pixels at which the stage works.
        augment: of the training images.
        folds: validate by rotation within "train" instead of on a part of its own; the best epoch
            is then chosen on images that train in the other runs.
        name: of the data set; the reader's class by default.
        patients: data sets with the same name here share their patients' names: groups are compared
            across the stages of a chain where it is the same, pictures always. By default the
            reader's `collection`, if it has one, else `name`.
        read_contents: read every image once to find the same picture under two names, in this stage
            and along its chain, and to make the data part of the stage's key. Without it the name
            of the data set, ids, groups, classes, labels and boxes tell one from another.
        cache: decode and resize every image once, and keep it in memory; without it, images are
            read in every epoch (give `TrainingRecipe(workers=...)` then).

    Raises:
        DataError: an unknown or missing part, positions that are none (a mask of truth values) or
            stand twice, a group or picture in two parts, fewer groups than folds.

    Example:
        >>> from transferseg.data import SyntheticRadiographs, split_by_group
        >>> reader = SyntheticRadiographs(8, size=64)
        >>> parts = split_by_group(reader.groups, {"train": 0.5, "test": 0.5}, seed=0)
        >>> data = StageData(reader, parts, size=32)
        >>> data.name, len(data.facts.contents)
        ('SyntheticRadiographs', 8)
    """

    reader: Reader
    parts: Mapping[str, Sequence[int]]
    size: int | tuple[int, int]
    augment: Augment | None = None
    folds: RotatingKFold | None = None
    name: str = ""
    patients: str = ""
    read_contents: bool = True
    cache: bool = True

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise DataError(unknown_name("part", part, PARTS))
        if not len(self.parts.get("train", ())):
            raise DataError(f"a stage needs images to train on; parts has {sorted(self.parts)}.")
        if self.folds is not None and "validation" in self.parts:
            raise DataError(
                "folds validate by rotation within 'train'; give either folds or a part "
                "'validation', not both."
            )
        parts = {name: _positions(name, indices) for name, indices in self.parts.items()}
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "size", target_size(self.size))
        source = original(self.reader)
        object.__setattr__(self, "name", self.name or type(source).__name__)
        patients = self.patients or getattr(source, "collection", self.name)
        object.__setattr__(self, "patients", patients)
        groups = self.reader.groups
        check_no_leak(self.parts, groups)
        if self.folds is not None:
            self.folds.partitions([groups[index] for index in parts["train"]], 0)

    @cached_property
    def facts(self) -> Facts:
        """Groups, content hashes and digest; read once, and carried along to other processes.

        Raises:
            DataError: one picture in two parts.
        """
        reader = self.reader
        groups, ids = tuple(reader.groups), reader.ids
        used = sorted({index for indices in self.parts.values() for index in indices})
        digest = hashlib.sha256(repr((tuple(reader.classes), reader.mode)).encode())
        contents = [""] * len(groups) if self.read_contents else []
        for index in used:
            digest.update(repr((index, ids[index], groups[index])).encode())
            if self.read_contents:
                contents[index] = _add(digest, reader, index)
            else:
                digest.update(repr(_known(reader, index)).encode())
        if self.read_contents:
            check_no_leak(self.parts, groups, hashes=contents)
        return Facts(groups, tuple(contents), digest.hexdigest())

    @property
    def seen(self) -> tuple[int, ...]:
        """Positions that training or the choice of the best epoch looks at."""
        return tuple(sorted({*self.parts["train"], *self.parts.get("validation", ())}))

    @property
    def held_out(self) -> tuple[int, ...]:
        """Positions whose scores no training of the chain may have seen: validation and test."""
        parts = (self.parts.get(name, ()) for name in ("validation", "test"))
        return tuple(sorted({index for part in parts for index in part}))

    def describe(self) -> dict[str, Any]:
        """What makes one stage's data another's, as JSON values."""
        return {
            "images": self.facts.digest if self.read_contents else [self.name, self.facts.digest],
            "parts": {name: key_of(list(indices)) for name, indices in sorted(self.parts.items())},
            "size": describe_value(self.size),
            "augment": describe_value(self.augment, what="augment"),
            "folds": describe_value(self.folds, what="folds"),
        }

    def summary(self) -> dict[str, Any]:
        """The data set in a few JSON values, for lineage."""
        return {
            "name": self.name,
            "digest": self.facts.digest,
            "images": {name: len(indices) for name, indices in self.parts.items()},
            "groups": {
                name: len({self.facts.groups[i] for i in part}) for name, part in self.parts.items()
            },
            "size": describe_value(self.size),
        }

    def prepared(
        self, reader: Reader, part: str, input: InputSpec, *, train: bool, seed: int
    ) -> PreparedDataset:
        """A part as tensors for a model, decoded once and kept; augmented for training.

        Args:
            reader: `self.reader`, or a view of it with other classes.
            part: a name among `parts`.
            input: what the model expects.
            train: whether to augment.
            seed: of the augmentation.
        """
        return PreparedDataset(
            reader,
            self.parts[part],
            input=input,
            size=self.size,
            augment=self.augment if train else None,
            seed=seed,
            cache=self.cache,
        )


def _positions(part: str, indices: Sequence[int]) -> tuple[int, ...]:
    array = np.asarray(indices)
    if array.dtype == bool or array.ndim != 1 or len(np.unique(array)) != len(array):
        raise DataError(
            f"part {part!r} must be positions in the reader, each once; got {array.dtype} of shape "
            f"{array.shape}. Of a mask of truth values take np.flatnonzero(mask)."
        )
    return tuple(map(int, indices))


def _known(reader: Reader, index: int) -> tuple[object, ...]:
    """What is known of an image's targets without reading it."""
    labels = getattr(reader, "labels", None)
    label = None if labels is None else np.asarray(labels[index]).tolist()
    boxes = reader.boxes(index) if isinstance(reader, BoxReader) else None
    names = ("mode", "shape", "overlap", "outside", "crowds", "values")
    return (label, boxes, *(getattr(reader, name, None) for name in names))


def _add(digest: Any, reader: Reader, index: int) -> str:  # noqa: ANN401 - a hash
    """Read one sample, add it to the digest, and give its picture's hash."""
    sample = reader[index]
    picture = content_hash(sample.image)
    digest.update(picture.encode())
    pictures: Sequence[str] | None = getattr(reader, "pictures", None)
    if pictures is not None:  # before a view resized them
        picture = pictures[index]
    for target in (sample.mask, sample.label):
        if target is not None:
            array = np.ascontiguousarray(target)
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array.tobytes())
    return picture
