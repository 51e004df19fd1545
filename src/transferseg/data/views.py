"""Readers over readers: the same data resized once and kept in memory, or with chosen classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from transferseg.data.images import resize_image
from transferseg.data.masks import resize_mask
from transferseg.data.samples import Reader, Sample, check_index, target_size
from transferseg.data.splits import content_hash
from transferseg.errors import DataError, unknown_name
from transferseg.types import Array, TargetMode


def original(reader: Reader) -> Reader:
    """The reader beneath views.

    Example:
        >>> from transferseg.data.synthetic import SyntheticRadiographs
        >>> reader = SyntheticRadiographs(2, size=64)
        >>> original(InMemory(SelectedClasses(reader, ["Heart"]), size=32)) is reader
        True
    """
    while isinstance(reader, InMemory | SelectedClasses):
        reader = reader.source
    return reader


class InMemory:
    """A reader's samples, decoded and resized once, then held in memory.

    For data that many trainings share: a study of fifty stages reads large radiographs fifty times
    otherwise. It takes h * w * (channels + mask channels) bytes an image, and travels to other
    processes whole. Images keep their own channels, so that models of any number can use it.

    Args:
        reader: the data.
        size: output height and width in pixels (an int for a square; the aspect ratio is not kept);
            None keeps each image's own.
        indices: positions to keep, renumbered from 0; None for all.

    Attributes:
        classes: the reader's.
        mode: the reader's.
        ids: those kept.
        groups: those kept.
        source: the reader.
        pictures: content hashes of the images before they were resized, so that a picture is known
            again at another size.

    Raises:
        DataError: what the reader raises, or a size below 32.

    Example:
        >>> from transferseg.data.synthetic import SyntheticRadiographs
        >>> small = InMemory(SyntheticRadiographs(4, size=64), size=32)
        >>> len(small), small[0].image.shape, small[0].mask.shape
        (4, (32, 32), (32, 32, 5))
    """

    def __init__(
        self,
        reader: Reader,
        *,
        size: int | tuple[int, int] | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        wanted = target_size(size)
        kept = range(len(reader)) if indices is None else indices
        ids, groups = reader.ids, reader.groups
        self.source = reader
        self.classes = tuple(reader.classes)
        self.mode: TargetMode = reader.mode
        self.ids = tuple(ids[index] for index in kept)
        self.groups = tuple(groups[index] for index in kept)
        samples, pictures = [], []
        for index in kept:
            sample = reader[index]
            pictures.append(content_hash(sample.image))
            samples.append(_resized(sample, wanted))
        self._samples = tuple(samples)
        self.pictures = tuple(pictures)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[check_index(index, len(self))]


def _resized(sample: Sample, size: tuple[int, int] | None) -> Sample:
    if size is None:
        return sample
    mask = None if sample.mask is None else resize_mask(sample.mask, size)
    image = resize_image(np.ascontiguousarray(sample.image), size)
    return replace(sample, image=image, mask=mask)


class SelectedClasses:
    """A reader with some of its classes, in another order if wanted.

    Multilabel masks and label vectors keep the chosen channels. In multiclass data, pixels (and
    images) of classes that were not chosen become the first chosen class, which must be the
    reader's first: the background.

    Args:
        reader: the data.
        classes: names among the reader's; at least one, two for multiclass.

    Raises:
        DataError: an unknown name or one twice, a binary reader, a multiclass choice without the
            background first.

    Example:
        >>> from transferseg.data.synthetic import SyntheticRadiographs
        >>> reader = SyntheticRadiographs(2, size=64)
        >>> chosen = SelectedClasses(reader, [reader.classes[1], reader.classes[0]])
        >>> bool((chosen[0].mask == reader[0].mask[..., [1, 0]]).all())
        True
    """

    def __init__(self, reader: Reader, classes: Sequence[str]) -> None:
        chosen = tuple(classes)
        for name in chosen:
            if name not in reader.classes:
                raise DataError(unknown_name("class", name, reader.classes))
        if not chosen or len(set(chosen)) != len(chosen):
            raise DataError(f"classes must be one or more distinct names, got {chosen}.")
        self.mode: TargetMode = reader.mode
        if self.mode == "binary":
            raise DataError(f"a binary reader has one class, {reader.classes}; nothing to choose.")
        if self.mode == "multiclass" and (chosen[0] != reader.classes[0] or len(chosen) < 2):
            raise DataError(
                f"a multiclass choice begins with the background {reader.classes[0]!r}, which "
                f"takes the pixels of all other classes, and names one more; got {chosen}."
            )
        self.source = reader
        self.classes = chosen
        self.ids = tuple(reader.ids)
        self.groups = tuple(reader.groups)
        self.pictures: tuple[str, ...] | None = getattr(reader, "pictures", None)
        self._positions = [reader.classes.index(name) for name in chosen]
        table = np.arange(256, dtype=np.int64)  # 255, ignored pixels, stay as they are
        table[: len(reader.classes)] = 0
        table[self._positions] = np.arange(len(chosen))
        self._table = table

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        return replace(sample, mask=self._mask(sample.mask), label=self._label(sample.label))

    def _label(self, label: Array | None) -> Array | None:
        if label is None:
            return None
        chosen = np.array(label[self._positions])
        if self.mode == "multiclass":  # what was not chosen is background, as in the masks
            chosen[0] += np.delete(label, self._positions).sum()
        return chosen

    def _mask(self, mask: Array | None) -> Array | None:
        if mask is None:
            return None
        if self.mode == "multilabel":
            return np.ascontiguousarray(mask[..., self._positions])
        return np.asarray(self._table[mask])
