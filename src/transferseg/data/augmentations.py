"""Augmentations one after the other, and those of papers that are made of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from transferseg.data.colours import ColourJitter
from transferseg.data.crops import IGNORED, RandomScaleCrop
from transferseg.data.transforms import (
    Augment,
    Augmentation,
    SidedAugment,
    albumentations_library,
)
from transferseg.errors import DataError
from transferseg.types import Array, TargetMode


@dataclass(frozen=True)
class AugmentationChain:
    """Augmentations in order, each with a seed of its own that follows from the sample's.

    Attributes:
        steps: any `Augment`; those with sides are told the classes.

    Raises:
        DataError: no steps.

    Example:
        >>> from transferseg.data import flips_augmentation
        >>> chain = AugmentationChain((RandomScaleCrop(2), flips_augmentation()))
        >>> chain(np.zeros((4, 4), np.uint8), None, seed=0)[0].shape
        (2, 2)
    """

    steps: tuple[Augment, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise DataError("a chain of augmentations needs a step; give augment=None for none.")

    def for_classes(self, classes: Sequence[str], *, mode: TargetMode) -> AugmentationChain:
        """This chain with the sides of its steps resolved for a reader's classes."""
        steps = (
            step.for_classes(classes, mode=mode) if isinstance(step, SidedAugment) else step
            for step in self.steps
        )
        return replace(self, steps=tuple(steps))

    @property
    def swaps(self) -> bool:
        """Whether classes change places when a step reflects an image."""
        return any(isinstance(step, SidedAugment) and step.swaps for step in self.steps)

    def __call__(self, image: Array, mask: Array | None, seed: int) -> tuple[Array, Array | None]:
        """Augment one sample; see `Augment`."""
        sources = np.random.SeedSequence(seed).spawn(len(self.steps))
        for step, source in zip(self.steps, sources, strict=True):
            image, mask = step(image, mask, int(source.generate_state(1, np.uint64)[0]))
        return image, mask


def mmseg_augmentation(
    crop: int | tuple[int, int] = 512,
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    largest_share: float = 0.75,
    reflect: float = 0.5,
    swap: tuple[tuple[str, str], ...] | None = None,
    colours: ColourJitter | None = ColourJitter(),  # noqa: B008 - a frozen value
) -> AugmentationChain:
    """Random scale, crop, left-right reflection and colours, as most configs of MMSegmentation.

    There the factor applies to the image as it was read, its aspect ratio kept; here to the image
    at the size of the `PreparedDataset`.

    Args:
        crop: height and width of the piece that trains, in pixels.
        scale: see `RandomScaleCrop`.
        largest_share: see `RandomScaleCrop`.
        reflect: probability of the left-right reflection.
        swap: classes that change places with it; see `Augmentation`.
        colours: see `ColourJitter`; None leaves them.

    Source: MMSegmentation, configs/_base_/datasets/ade20k.py: `RandomResize` (0.5 to 2.0),
        `RandomCrop` (`cat_max_ratio` 0.75), `RandomFlip` (0.5), `PhotoMetricDistortion`.

    Example:
        >>> augment = mmseg_augmentation(32)
        >>> image, mask = augment(np.zeros((40, 48, 3), np.uint8), np.zeros((40, 48), np.uint8), 0)
        >>> image.shape, mask.shape
        ((32, 32, 3), (32, 32))
    """
    steps: list[Augment] = [
        RandomScaleCrop(crop, scale=scale, largest_share=largest_share),
        Augmentation(reflect=reflect, swap=swap),
    ]
    return AugmentationChain((*steps, *(() if colours is None else (colours,))))


def _khadka2020_transforms(
    *, vertical: float, rotation: float, degrees: float, elastic: float, shift: float, flare: float
) -> list[Any]:
    import cv2

    library = albumentations_library()
    warp: dict[str, Any] = {
        "interpolation": cv2.INTER_LINEAR, "mask_interpolation": cv2.INTER_NEAREST,
        "border_mode": cv2.BORDER_CONSTANT, "fill": 0,
        # A lone number would fill every fourth channel alone when ElasticTransform warps a mask.
        "fill_mask": (IGNORED,) * 4,
    }  # fmt: skip
    transforms = {
        library.VerticalFlip: (vertical, {}),
        library.Rotate: (rotation, {"limit": (-degrees, degrees), **warp}),
        library.ElasticTransform: (elastic, {"alpha": 40.0, "sigma": 6.0, **warp}),
        library.RGBShift: (shift, {}),
        library.RandomSunFlare: (flare, {"src_radius": 40}),
    }
    return [kind(p=p, **options) for kind, (p, options) in transforms.items() if p]


def khadka2020_augmentation(
    *,
    reflect: float = 0.5,
    vertical: float = 0.5,
    rotation: float = 0.5,
    degrees: float = 5.0,
    elastic: float = 0.2,
    shift: float = 0.2,
    flare: float = 0.1,
    swap: tuple[tuple[str, str], ...] | None = None,
) -> Augmentation:
    """Flips, rotation, elastic deformation, channel shift and solar flares, for colour images.

    The paper names them, and 5 degrees; how often and how strong is this library's choice. Its
    "horizontal flipping" and "mirroring" are taken as one. What a rotation or a deformation
    uncovers is black, and ignored in the mask.

    Args:
        reflect: probability of the left-right reflection.
        vertical: probability of the top-bottom reflection.
        rotation: probability of a rotation.
        degrees: largest angle to either side.
        elastic: probability of a deformation by a few pixels (at 256 px).
        shift: probability that each channel of RGB is shifted by up to 20 of 255; 0 for other
            images than RGB, and for uint16.
        flare: probability of a solar flare, its source 40 px in radius; 0 likewise.
        swap: see `Augmentation`.

    Source: Khadka 2020, section 3.2.

    Example:
        >>> khadka2020_augmentation(flare=0.0).reflect
        0.5
    """
    build = partial(
        _khadka2020_transforms,
        vertical=vertical, rotation=rotation, degrees=degrees, elastic=elastic, shift=shift,
        flare=flare,
    )  # fmt: skip
    return Augmentation(build, reflect=reflect, swap=swap)
