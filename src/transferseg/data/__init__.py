"""Data: readers of published data sets, splits, augmentation, and the set that training loads."""

from __future__ import annotations

from transferseg.data.augmentations import (
    AugmentationChain,
    khadka2020_augmentation,
    mmseg_augmentation,
)
from transferseg.data.boxes import Box, BoxReader, masks_from_boxes
from transferseg.data.colours import ColourJitter
from transferseg.data.covering import choose_covering
from transferseg.data.crops import RandomScaleCrop
from transferseg.data.dicom import read_dicom
from transferseg.data.folds import Fold, RotatingKFold, k_fold
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
from transferseg.data.readers.chexpert import CHEXPERT_FINDINGS, CheXpert
from transferseg.data.readers.coco import COCOBoxes
from transferseg.data.readers.folders import ImageFolder, ImageMaskFolder
from transferseg.data.readers.nih import NIH_FINDINGS, NIHChestXray14
from transferseg.data.readers.nih_boxes import NIH_BOX_FINDINGS, NIHChestXray14Boxes
from transferseg.data.readers.siim import SIIM_CLASSES, SIIMCovid19
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
from transferseg.data.views import InMemory, SelectedClasses, original

__all__ = [
    "CCXS",
    "CCXS_CLASSES",
    "CHEXPERT_FINDINGS",
    "NIH_BOX_FINDINGS",
    "NIH_FINDINGS",
    "SIIM_CLASSES",
    "SYNTHETIC_CLASSES",
    "SYNTHETIC_FINDINGS",
    "Augment",
    "Augmentation",
    "AugmentationChain",
    "Box",
    "BoxReader",
    "COCOBoxes",
    "CheXpert",
    "ColourJitter",
    "Fold",
    "ImageFolder",
    "ImageMaskFolder",
    "InMemory",
    "NIHChestXray14",
    "NIHChestXray14Boxes",
    "PreparedDataset",
    "RandomScaleCrop",
    "Reader",
    "RotatingKFold",
    "SIIMCovid19",
    "Sample",
    "SelectedClasses",
    "SyntheticRadiographs",
    "ValidationReport",
    "check_batch",
    "check_no_leak",
    "choose_covering",
    "class_presence",
    "content_hash",
    "content_hashes",
    "denormalise",
    "few",
    "flips_augmentation",
    "image_size",
    "k_fold",
    "khadka2020_augmentation",
    "masks_from_boxes",
    "merand2021_augmentation",
    "mmseg_augmentation",
    "normalise",
    "original",
    "read_dicom",
    "read_image",
    "read_mask",
    "resize_image",
    "resize_mask",
    "split_by_group",
    "to_channels",
    "validate",
]
