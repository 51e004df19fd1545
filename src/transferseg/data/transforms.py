"""Augmentation of an image and its mask together; the one file that imports albumentations.

What albumentations 2.0.8 does that one would not expect, and what is done here about it:

- `Compose(seed=...)` and `set_random_seed` give *every* transform the same seed, so that a
  horizontal and a vertical flip of p = 0.5 always happen together. Here each gets its own.
- A reflection turns a left lung into a right one, and albumentations knows no sides. Here the
  reflection is our own, and the masks of sided classes change places with it.
- uint16 images: `RandomGamma` returns float64, `MedianBlur` float32 or an OpenCV error,
  `GaussNoise` and `CLAHE` raise. Flips, rotations, affine maps, box and Gaussian blur, brightness
  and contrast keep uint8, uint16 and float32 with any number of channels. A changed dtype or shape
  is an error here.
- Importing it takes seconds and asks the network for a newer version; here it is imported on first
  use, with that question switched off.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from transferseg.errors import DataError, unknown_name
from transferseg.types import Array, TargetMode


class Augment(Protocol):
    """What changes an image and its mask together, decided by the seed alone."""

    def __call__(self, image: Array, mask: Array | None, seed: int) -> tuple[Array, Array | None]:
        """Augment one sample.

        Args:
            image: (H, W) or (H, W, C), uint8, uint16 or float32 within 0..1.
            mask: (H, W) or (H, W, K), or None.
            seed: 0 or more; the same seed gives the same result.

        Returns:
            Image and mask, dtypes kept, of one height and width: that of the image given, or one
            that is the same for every image.
        """


@runtime_checkable
class SidedAugment(Augment, Protocol):
    """An `Augment` that may reflect an image, and so must know which classes have sides."""

    def for_classes(self, classes: Sequence[str], *, mode: TargetMode) -> SidedAugment:
        """The same with its sides resolved for a reader's classes."""

    @property
    def swaps(self) -> bool:
        """Whether classes change places when it reflects an image."""


def albumentations_library() -> Any:  # noqa: ANN401 - albumentations has no types
    """The module itself, imported on first use; for the builders of transforms in this room."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def side_pairs(
    classes: Sequence[str], swap: Iterable[tuple[str, str]] | None = None
) -> tuple[tuple[int, int], ...]:
    """Positions of the classes that change places when an image is reflected left to right.

    Args:
        classes: class names in order.
        swap: pairs of names; None finds them: names that differ by the word left or right alone.

    Returns:
        Pairs of positions.

    Raises:
        DataError: a pair that names an unknown class or one class twice; with None, a class of
            one side without its counterpart, whose mask would be wrong after a reflection.

    Example:
        >>> side_pairs(("Right Lung", "Heart", "Left Lung"))
        ((2, 0),)
    """
    if swap is not None:
        pairs = tuple((str(a), str(b)) for a, b in swap)
        for name in (name for pair in pairs for name in pair):
            if name not in classes:
                raise DataError(unknown_name("class to swap", name, classes))
        flat = [name for pair in pairs for name in pair]
        if len(set(flat)) != len(flat):
            raise DataError(f"a class can change places with one other only, got swap={pairs}.")
        return tuple((classes.index(a), classes.index(b)) for a, b in pairs)
    found = []
    # "Lung (left)", "lung-left", "LeftLung": names as their words
    spelled = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() for name in classes]
    lower = [" ".join(re.findall(r"[a-z0-9]+", name)) for name in spelled]
    for position, name in enumerate(lower):
        words = name.split()
        side = next((side for side in ("left", "right") if side in words), None)
        if side is None:
            continue
        opposite = {"left": "right", "right": "left"}[side]
        other = " ".join(opposite if word == side else word for word in words)
        if other not in lower:
            raise DataError(
                f"class {classes[position]!r} has a side but no counterpart {other!r}, so a "
                "left-right reflection would mislabel it; give swap= (() to swap nothing), or "
                "augment without reflection."
            )
        if side == "left":
            found.append((position, lower.index(other)))
    return tuple(found)


@dataclass(frozen=True)
class Augmentation:
    """Albumentations transforms on an image and its mask, exactly repeatable, aware of sides.

    Attributes:
        transforms: returns the list of albumentations transforms, applied in order; called once a
            process, so it must pickle (a module-level function or a `functools.partial` of one).
        reflect: probability of a left-right reflection, before the transforms. Use this rather
            than `HorizontalFlip`, which leaves the masks of left and right as they are.
        swap: pairs of class names that change places with a reflection; None finds the pairs that
            differ by the word left or right ("Left Lung", "Right Lung"), () swaps nothing. It is
            resolved by `for_classes`, which `PreparedDataset` calls.

    Raises:
        DataError: a probability outside 0..1; when called, transforms that change shape or dtype,
            or that cannot take such an image.

    Example:
        >>> mirror = Augmentation(reflect=1.0).for_classes(("polyp",), mode="binary")
        >>> image = np.arange(4, dtype=np.uint8).reshape(2, 2)
        >>> mirror(image, None, seed=0)[0].tolist()
        [[1, 0], [3, 2]]
    """

    transforms: Callable[[], Sequence[Any]] = list
    reflect: float = 0.0
    swap: tuple[tuple[str, str], ...] | None = None
    _pairs: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    _mode: TargetMode = field(default="binary", repr=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.reflect <= 1.0:
            raise DataError(f"reflect is a probability from 0 to 1, got {self.reflect}.")

    def for_classes(self, classes: Sequence[str], *, mode: TargetMode) -> Augmentation:
        """This augmentation with its sides resolved for a reader's classes.

        Raises:
            DataError: see `side_pairs`.
        """
        pairs = side_pairs(tuple(classes), self.swap) if self.reflect else ()
        return replace(self, _pairs=pairs, _mode=mode)

    @property
    def swaps(self) -> bool:
        """Whether classes change places when it reflects an image."""
        return bool(self.reflect and self._pairs)

    def __call__(self, image: Array, mask: Array | None, seed: int) -> tuple[Array, Array | None]:
        """Augment one sample; see `Augment`."""
        first, *rest = np.random.SeedSequence(seed).spawn(1 + len(self._compose().transforms))
        if np.random.default_rng(first).random() < self.reflect:
            image = np.ascontiguousarray(image[:, ::-1])
            mask = None if mask is None else self._reflected(mask)
        if not rest:
            return image, mask
        compose = self._compose()
        compose.set_random_seed(int(first.generate_state(1)[0]))
        for transform, source in zip(compose.transforms, rest, strict=True):
            transform.set_random_seed(int(source.generate_state(1)[0]))
        if mask is None:
            return self._checked(image, _applied(compose, image=image)["image"]), None
        small, dtype = _for_opencv(mask)
        result = _applied(compose, image=image, mask=small)
        warped = self._checked(small, result["mask"])
        return self._checked(image, result["image"]), warped.astype(dtype, copy=False)

    def _reflected(self, mask: Array) -> Array:
        mirrored = np.ascontiguousarray(mask[:, ::-1])
        source = mirrored.copy()
        for a, b in self._pairs:
            if self._mode == "multilabel":
                mirrored[..., a], mirrored[..., b] = source[..., b], source[..., a]
            else:
                mirrored[source == a], mirrored[source == b] = b, a
        return mirrored

    def _checked(self, before: Array, after: Array) -> Array:
        if after.shape != before.shape or after.dtype != before.dtype:
            raise DataError(
                f"the transforms turned {before.dtype} {before.shape} into {after.dtype} "
                f"{after.shape}; use transforms that keep both (see transferseg.data.transforms)."
            )
        # Interpolation and blur may leave 0..1 by a rounding error, which `normalise` would refuse.
        return np.clip(after, 0.0, 1.0) if after.dtype.kind == "f" else after

    def _compose(self) -> Any:  # noqa: ANN401 - albumentations has no types
        compose = self.__dict__.get("_built")
        if compose is None:
            transforms = list(self.transforms())
            compose = albumentations_library().Compose(transforms) if transforms else _Nothing()
            object.__setattr__(self, "_built", compose)
        return compose

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_built"}


class _Nothing:
    """No transforms: saves the import of albumentations when there is only a reflection."""

    transforms: tuple[Any, ...] = ()


def _applied(compose: Any, **parts: Array) -> Any:  # noqa: ANN401 - albumentations has no types
    try:
        return compose(**parts)
    except Exception as error:  # albumentations' own, NumPy's and OpenCV's
        image = parts["image"]
        raise DataError(
            f"the transforms cannot take an image of {image.dtype} {image.shape}: {error}; leave "
            "out those that want others, such as colour shifts and flares, which want RGB of uint8."
        ) from error


def _for_opencv(mask: Array) -> tuple[Array, np.dtype[Any]]:
    """The mask in a dtype that OpenCV warps; int64 is none."""
    if mask.dtype in (np.uint8, np.uint16):
        return mask, mask.dtype
    if int(mask.min()) < 0 or int(mask.max()) > 65535:
        raise DataError(f"mask values must lie in 0..65535, got {mask.min()}..{mask.max()}.")
    return mask.astype(np.uint16), mask.dtype


def _blur_and_rotation(
    *, blur: float, sigma: float, rotation: float, degrees: float, outside: int
) -> list[Any]:
    import cv2

    library = albumentations_library()
    return [
        library.GaussianBlur(blur_limit=0, sigma_limit=(0.1, sigma), p=blur),
        library.Rotate(
            limit=(-degrees, degrees),
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_NEAREST,
            border_mode=cv2.BORDER_CONSTANT,
            fill=0,
            fill_mask=outside,
            p=rotation,
        ),
    ]


def merand2021_augmentation(
    *,
    reflect: float = 0.5,
    swap: tuple[tuple[str, str], ...] | None = None,
    blur: float = 0.3,
    sigma: float = 1.0,
    rotation: float = 0.5,
    degrees: float = 10.0,
    outside: int = 0,
) -> Augmentation:
    """The "mild blur, y-axis reflection and small rotations" of Merand and Klein.

    The paper gives no numbers; the defaults are this library's choice. A reflected radiograph shows
    the heart on the other side, and its left lung where the right one was: the masks of the classes
    named left and right change places (in CCXS "Left Lung" and "Right Lung"), which the paper does
    not mention.

    Args:
        reflect: probability of the left-right reflection.
        swap: pairs of classes that change places with it; None finds left and right by name, ()
            swaps nothing.
        blur: probability of a Gaussian blur.
        sigma: largest standard deviation of the blur, in pixels at the training size (from 0.1).
        rotation: probability of a rotation.
        degrees: largest angle to either side.
        outside: mask value of the corners that a rotation uncovers: 0 is background, 255 ignored.
            The image is black there.

    Returns:
        An `Augmentation`.

    Source: Merand 2021, section 3.3.

    Example:
        >>> merand2021_augmentation(degrees=5).reflect
        0.5
    """
    build = partial(
        _blur_and_rotation,
        blur=blur, sigma=sigma, rotation=rotation, degrees=degrees, outside=outside,
    )  # fmt: skip
    return Augmentation(build, reflect=reflect, swap=swap)


def _vertical_flip(p: float) -> list[Any]:
    return [albumentations_library().VerticalFlip(p=p)]


def flips_augmentation(
    *,
    horizontal: float = 0.5,
    vertical: float = 0.5,
    swap: tuple[tuple[str, str], ...] | None = None,
) -> Augmentation:
    """Reflections along both axes, independent of each other (endoscopy, microscopy).

    Args:
        horizontal: probability of the left-right reflection.
        vertical: probability of the top-bottom reflection.
        swap: as in `merand2021_augmentation`, for the left-right reflection.

    Example:
        >>> flip = flips_augmentation(horizontal=0.0, vertical=1.0)
        >>> flip(np.array([[0], [1]], np.uint8), None, seed=0)[0].tolist()
        [[1], [0]]
    """
    return Augmentation(partial(_vertical_flip, vertical), reflect=horizontal, swap=swap)
