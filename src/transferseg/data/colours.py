"""Random brightness, contrast, saturation and hue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from transferseg.data.images import unit_scale
from transferseg.errors import DataError
from transferseg.types import Array


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast, saturation and hue of an image at random; the mask stays.

    Each of the four happens with `probability`, independently. On values of 0 to 1, held there
    after every step: brightness adds a number, contrast multiplies, saturation multiplies the S of
    HSV, hue turns its H. Contrast comes before saturation and hue or after them, with equal chance.
    Images without three channels have neither saturation nor hue, and get the first two only.

    Attributes:
        brightness: largest number added or taken away, 0 to 1.
        contrast: smallest and largest factor, 0 or more.
        saturation: smallest and largest factor, 0 or more.
        hue: largest turn to either side, 0 to 180 degrees.
        probability: of each of the four.

    Raises:
        DataError: a number outside its range; when called, float images outside 0..1.

    Source: MMSegmentation's `PhotoMetricDistortion`, whose numbers are the defaults (32 of 255, and
        18 of OpenCV's 180 steps of two degrees). It cuts to whole numbers after each step; here
        they are rounded once, at the end.

    Example:
        >>> jitter = ColourJitter(brightness=0.0, saturation=(1.0, 1.0), hue=0.0)
        >>> grey = np.full((1, 1), 100, np.uint8)
        >>> values = [int(jitter(grey, None, seed)[0][0, 0]) for seed in range(50)]
        >>> min(values) >= 50, max(values) <= 150, len(set(values)) > 10
        (True, True, True)
    """

    brightness: float = 32 / 255
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 36.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        for name, most in (("brightness", 1.0), ("hue", 180.0), ("probability", 1.0)):
            value = getattr(self, name)
            if not 0.0 <= value <= most:
                raise DataError(f"{name} must lie in 0..{most:g}, got {value}.")
        for name in ("contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0.0 <= low <= high:
                raise DataError(f"{name} must be two factors from 0, going up, got {(low, high)}.")

    def __call__(self, image: Array, mask: Array | None, seed: int) -> tuple[Array, Array | None]:
        """Augment one sample; see `Augment`."""
        rng = np.random.default_rng(seed)
        happens = rng.random(4) < self.probability
        added = rng.uniform(-self.brightness, self.brightness)
        contrast, saturation = rng.uniform(*self.contrast), rng.uniform(*self.saturation)
        turn = rng.uniform(-self.hue, self.hue)
        contrast_first = bool(rng.integers(2))
        full = unit_scale(image)
        x: Any = image.astype(np.float32) / np.float32(full)
        if happens[0]:
            x = _held(x + np.float32(added))
        if happens[1] and contrast_first:
            x = _held(x * np.float32(contrast))
        if image.ndim == 3 and image.shape[2] == 3 and (happens[2] or happens[3]):
            x = _turned(x, saturation if happens[2] else 1.0, turn if happens[3] else 0.0)
        if happens[1] and not contrast_first:
            x = _held(x * np.float32(contrast))
        if image.dtype.kind != "f":
            x = np.rint(x * np.float32(full))
        return x.astype(image.dtype), mask


def _held(x: Any) -> Any:  # noqa: ANN401 - an array
    return np.clip(x, 0.0, 1.0)


def _turned(x: Any, saturation: float, turn: float) -> Any:  # noqa: ANN401
    """Saturation multiplied and hue turned, in HSV."""
    import cv2

    hsv: Any = cv2.cvtColor(np.ascontiguousarray(x), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + np.float32(turn)) % 360.0
    hsv[..., 1] = _held(hsv[..., 1] * np.float32(saturation))
    return _held(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
