"""Samples, readers, and the torch data set that prepares them for a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import Dataset

from transferseg.data.images import normalise, resize_image, to_model_channels
from transferseg.data.masks import resize_mask
from transferseg.data.transforms import Augment, SidedAugment
from transferseg.errors import DataError, some
from transferseg.spec import InputSpec
from transferseg.types import Array, TargetMode

#: The smallest image side that the encoders (strides up to 32) take.
SMALLEST_SIDE: Final = 32


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with what is known about it.

    Attributes:
        image: (H, W) or (H, W, C), uint8, uint16 or float32 within 0..1; colour is RGB.
        mask: binary (H, W) uint8 0/1; multiclass (H, W) whole numbers; multilabel (H, W, K) uint8
            0/1; 255 marks ignored pixels. None when there is none.
        label: (K,) float32 0/1, NaN where missing; None when there is none.
        id: the image's name, unique in its reader.
        group: what must stay in one part of a split, mostly the patient.

    Raises:
        DataError: shapes that do not fit each other, naming the sample.
    """

    image: Array
    mask: Array | None = None
    label: Array | None = None
    id: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        if self.image.ndim not in (2, 3):
            raise DataError(
                f"{self.id}: an image must be (H, W) or (H, W, C), got {self.image.shape}."
            )
        if self.mask is not None and self.mask.shape[:2] != self.image.shape[:2]:
            raise DataError(
                f"{self.id}: a mask of {self.mask.shape[:2]} does not fit an image of "
                f"{self.image.shape[:2]} (height, width)."
            )
        if self.label is not None and self.label.ndim != 1:
            raise DataError(f"{self.id}: a label must be (K,), got shape {self.label.shape}.")


@runtime_checkable
class Reader(Protocol):
    """What reads a data set: a sequence of samples whose names are known without opening images.

    `classes` are the mask's (or the label vector's) in order, () when there are only images;
    `mode` says how they relate; `ids` are unique; `groups` has one entry an image.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of mask values, mask channels or label entries."""

    @property
    def mode(self) -> TargetMode:
        """How the classes relate."""

    @property
    def ids(self) -> tuple[str, ...]:
        """One unique name an image."""

    @property
    def groups(self) -> tuple[str, ...]:
        """One group an image."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> Sample:
        """Read one sample."""


def check_index(index: int, length: int) -> int:
    """The index itself, once it is known to lie in 0..length-1; raises IndexError otherwise.

    IndexError (and no negative indices) is what ends a `for` loop over a reader.

    Example:
        >>> check_index(2, 3)
        2
    """
    if not 0 <= index < length:
        raise IndexError(f"index {index} is outside 0..{length - 1}.")
    return index


def target_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width of a size given as one or two numbers; a side below 32 is a DataError."""
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= SMALLEST_SIDE for side in pair):
        raise DataError(
            f"size must be one or two whole numbers (height, width) from {SMALLEST_SIDE}, "
            f"got {size!r}."
        )
    return pair[0], pair[1]


def _check_reader(reader: Reader, indices: Sequence[int]) -> None:
    classes, mode = reader.classes, reader.mode
    if len(set(classes)) != len(classes):
        raise DataError(f"class names must be distinct, got {classes}.")
    if classes and mode != "multilabel" and (mode == "binary") != (len(classes) == 1):
        raise DataError(
            f"mode {mode!r} does not fit {len(classes)} class(es) {some(classes)}: binary has one, "
            "multiclass two or more (background included)."
        )
    if not indices:
        raise DataError("a data set needs one image or more; indices is empty.")
    outside = [index for index in indices if not 0 <= index < len(reader)]
    if outside:
        raise DataError(
            f"indices {some(map(str, outside))} lie outside the reader's 0..{len(reader) - 1}."
        )


class PreparedDataset(Dataset[dict[str, Any]]):
    """Samples of a reader as the dicts of tensors that training, prediction and scoring take.

    Each sample is read, given the model's channels, resized (mean over the area or linear for the
    image, nearest for the mask), augmented and normalised, in this order. Torch's default collate
    makes the batch.

    **Randomness.** Augmentations draw from nothing but a seed for the sample. After
    `set_epoch(epoch)` that seed is a hash of (`seed`, epoch, position in the data set): a run
    repeats exactly with any number of workers, persistent or not, in any order of access, and when
    it is resumed in the middle of an epoch. The epoch lives in shared memory, so that running
    workers see it. Without any call of `set_epoch`, every access draws its seed from torch's
    global generator: runs repeat after `torch.manual_seed` with the same number of workers.

    Args:
        reader: the data.
        indices: positions in the reader, as a split gives them; repeats are allowed. None for all.
        input: what the weights expect.
        size: output height and width (an int for a square; the aspect ratio is not kept). None
            keeps each image's own size, which default collation takes for equal sizes only.
        augment: `(image (H, W, C), mask | None, seed) -> (image, mask)`, both at `size`, or both
            at the size of a crop. An `Augmentation` (anything with `for_classes`) is told the
            reader's classes, so that a reflection swaps sides.
        seed: of the augmentations, used with `set_epoch`; None takes torch's initial seed, which
            `torch.manual_seed` sets.
        cache: keep every sample in memory, decoded and resized, before augmentation. All are read
            at construction, once, and shared by forked workers: about
            h * w * (channels + mask channels) bytes an image.

    Yields dicts of:
        image: float32 (C, H, W).
        mask: int64 (H, W) for multiclass, uint8 (K, H, W) for multilabel, uint8 (1, H, W) for
            binary; the key is absent when the sample has no mask.
        label: float32 (K,); absent likewise.
        id, group: str.

    Raises:
        DataError: indices outside the reader or none, a size below 32, classes that do not fit
            the mode; when reading, a mask or label that does not fit the classes.

    Example:
        >>> from transferseg.data.synthetic import SyntheticRadiographs
        >>> reader = SyntheticRadiographs(4, size=64)
        >>> data = PreparedDataset(reader, input=InputSpec(channels=1), size=32)
        >>> tuple(data[0]["image"].shape), tuple(data[0]["mask"].shape)
        ((1, 32, 32), (5, 32, 32))
    """

    def __init__(
        self,
        reader: Reader,
        indices: Sequence[int] | None = None,
        *,
        input: InputSpec,
        size: int | tuple[int, int] | None,
        augment: Augment | None = None,
        seed: int | None = None,
        cache: bool = False,
    ) -> None:
        self.reader = reader
        self.indices = tuple(range(len(reader)) if indices is None else map(int, indices))
        self.input = input
        self.size = target_size(size)
        _check_reader(reader, self.indices)
        if isinstance(augment, SidedAugment):
            augment = augment.for_classes(reader.classes, mode=reader.mode)
        self.augment = augment
        self.seed = torch.initial_seed() if seed is None else seed
        self._epoch = torch.full((1,), -1, dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        self._cache: dict[int, Sample] = {}
        if cache:
            self._cache = {index: self._read(index) for index in sorted(set(self.indices))}

    @property
    def classes(self) -> tuple[str, ...]:
        """The reader's classes."""
        return self.reader.classes

    @property
    def mode(self) -> TargetMode:
        """The reader's mode."""
        return self.reader.mode

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each item, for leak checks, without reading an image."""
        every = self.reader.groups
        return tuple(every[index] for index in self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Fix the augmentations of the epoch that begins; call it before iterating the loader.

        Raises:
            DataError: a negative epoch.
        """
        if epoch < 0:
            raise DataError(f"an epoch counts from 0, got {epoch}.")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = self.indices[check_index(position, len(self))]
        sample = self._cache.get(index) or self._read(index)
        image, mask = sample.image, sample.mask
        if (
            sample.label is not None
            and isinstance(self.augment, SidedAugment)
            and self.augment.swaps
        ):
            raise DataError(
                f"{sample.id}: a reflection would make the label of a sided class wrong; augment "
                "labelled images with reflect=0, or with swap=() if sides do not matter."
            )
        if self.augment is not None:
            image, mask = self.augment(image, mask, self._sample_seed(position))
        item: dict[str, Any] = {"image": self._image_tensor(image, sample.id)}
        if mask is not None:
            item["mask"] = _mask_tensor(mask, self.reader.mode)
        if sample.label is not None:
            item["label"] = torch.from_numpy(sample.label.astype(np.float32))
        return {**item, "id": sample.id, "group": sample.group}

    def _sample_seed(self, position: int) -> int:
        epoch = int(self._epoch)
        if epoch < 0:
            return int(torch.randint(2**62, ()))
        source = np.random.SeedSequence((self.seed % 2**64, epoch, position))
        return int(source.generate_state(1, np.uint64)[0])

    def _image_tensor(self, image: Array, name: str) -> torch.Tensor:
        try:
            return torch.from_numpy(normalise(image, self.input))
        except DataError as error:
            raise DataError(f"{name}: {error}") from error

    def _read(self, index: int) -> Sample:
        """The sample with the model's channels at the wanted size: all that is deterministic."""
        sample = self.reader[index]
        _check_targets(sample, self.reader.classes, self.reader.mode)
        try:
            image = to_model_channels(sample.image, self.input)
        except DataError as error:
            raise DataError(f"{sample.id}: {error}") from error
        mask = sample.mask
        if self.size is not None:
            image = resize_image(np.ascontiguousarray(image), self.size)
            mask = None if mask is None else resize_mask(mask, self.size)
        return Sample(image, mask, sample.label, sample.id, sample.group)


def _check_targets(sample: Sample, classes: tuple[str, ...], mode: TargetMode) -> None:
    mask, label = sample.mask, sample.label
    if mask is not None:
        expected = (*sample.image.shape[:2], *((len(classes),) if mode == "multilabel" else ()))
        if mask.shape != expected or not np.issubdtype(mask.dtype, np.integer):
            raise DataError(
                f"{sample.id}: a {mode} mask of {len(classes)} class(es) must be whole numbers of "
                f"shape {expected}, got {mask.dtype} {mask.shape}."
            )
    if label is not None and label.shape != (len(classes),):
        raise DataError(
            f"{sample.id}: a label must have one entry for each of the {len(classes)} classes, got "
            f"shape {label.shape}."
        )


def _mask_tensor(mask: Array, mode: TargetMode) -> torch.Tensor:
    if mode == "multiclass":
        return torch.from_numpy(mask.astype(np.int64))
    planes = mask[None] if mode == "binary" else mask.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes, dtype=np.uint8, order="C"))
