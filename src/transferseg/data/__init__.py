"""Data: readers of published data sets, splits, augmentation, and the set that training loads."""

from __future__ import annotations

from transferseg.data.images import (
    denormalise,
    image_size,
    normalise,
    read_image,
    resize_image,
    to_channels,
)
from transferseg.data.masks import read_mask, resize_mask
from transferseg.data.readers.ccxs import CCXS, CCXS_CLASSES
from transferseg.data.readers.folders import ImageFolder, ImageMaskFolder
from transferseg.data.readers.nih import NIH_FINDINGS, NIHChestXray14
from transferseg.data.samples import PreparedDataset, Reader, Sample
from transferseg.data.splits import (
    check_no_leak,
    class_presence,
    content_hash,
    content_hashes,
    few,
    split_by_group,
)
from transferseg.data.synthetic import SYNTHETIC_CLASSES, SYNTHETIC_FINDINGS, SyntheticRadiographs
from transferseg.data.transforms import (
    Augment,
    Augmentation,
    flips_augmentation,
    merand2021_augmentation,
)
from transferseg.data.validate import ValidationReport, check_batch, validate

__all__ = [
    "CCXS",
    "CCXS_CLASSES",
    "NIH_FINDINGS",
    "SYNTHETIC_CLASSES",
    "SYNTHETIC_FINDINGS",
    "Augment",
    "Augmentation",
    "ImageFolder",
    "ImageMaskFolder",
    "NIHChestXray14",
    "PreparedDataset",
    "Reader",
    "Sample",
    "SyntheticRadiographs",
    "ValidationReport",
    "check_batch",
    "check_no_leak",
    "class_presence",
    "content_hash",
    "content_hashes",
    "denormalise",
    "few",
    "flips_augmentation",
    "image_size",
    "merand2021_augmentation",
    "normalise",
    "read_image",
    "read_mask",
    "resize_image",
    "resize_mask",
    "split_by_group",
    "to_channels",
    "validate",
]
