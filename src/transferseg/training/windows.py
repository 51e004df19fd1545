"""Sliding windows: an image of any size through a model, piece by piece, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

#: How much each pixel of a window counts where windows overlap: see `blend_weights`.
Blend: TypeAlias = Literal["gaussian", "constant"]

#: Standard deviation of the Gaussian weights, as a part of the window's side (nnU-Net, MONAI).
SIGMA: Final = 0.125

#: The least that a pixel weighs beside the 1 of the window's centre (MONAI).
LEAST_WEIGHT: Final = 1e-3


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along one side: even steps, the last window shifted inside.

    Args:
        length: the image's side in pixels.
        window: the window's side, `length` at most.
        overlap: the part of a window that its neighbour covers too, 0 to below 1; a step is
            `int(window * (1 - overlap))`, one pixel at least.

    Example:
        >>> window_starts(9, 4, 0.5)
        [0, 2, 4, 5]
    """
    step = max(int(window * (1 - overlap)), 1)
    count = math.ceil((length - window) / step) + 1
    return [min(number * step, length - window) for number in range(count)]


def blend_weights(window: tuple[int, int], blend: Blend) -> Tensor:
    """The weight of each pixel of a window.

    "constant": 1 everywhere. "gaussian": a Gaussian around the centre with an eighth of each side
    as its standard deviation, never below 0.001: pixels near a window's border, which the model
    sees with half of their surroundings missing, count little beside a window that sees them whole.

    Returns:
        (h, w) float32.

    Source: Isensee 2021 (nnU-Net, doi 10.1038/s41592-020-01008-z); MONAI's
    `sliding_window_inference` has both.

    Example:
        >>> [round(weight, 3) for weight in blend_weights((1, 4), "gaussian")[0].tolist()]
        [0.011, 0.607, 0.607, 0.011]
    """
    if blend == "constant":
        return torch.ones(window)
    across = []
    for side in window:
        offset = torch.arange(side) - (side - 1) / 2
        across.append(torch.exp((offset / (SIGMA * side)).square() / -2))
    return torch.outer(across[0], across[1]).clamp(min=LEAST_WEIGHT)


def slide(
    forward: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    window: tuple[int, int],
    overlap: float,
    blend: Blend,
    batch_size: int,
    stitch: torch.device | str | None = None,
) -> Tensor:
    """The logits of a whole image from those of its windows: their weighted mean.

    Beside the image itself, one array of the result's size is held, and `batch_size` windows.

    Args:
        forward: (b, C, h, w) -> float32 (b, K, h, w), on whatever device; what comes in another
            size is resized to the window.
        image: (C, H, W), anywhere; its windows are cut out there.
        window: height and width; along a side of the image that is shorter, the window is the
            side: nothing is padded.
        overlap: see `window_starts`.
        blend: see `blend_weights`.
        batch_size: windows in one forward pass.
        stitch: where the result is put together; None: where `forward` leaves its windows.

    Returns:
        (K, H, W) float32.

    Example:
        >>> image = torch.rand(1, 9, 7)
        >>> same = slide(lambda x: x, image, window=(4, 16), overlap=0.5, blend="constant",
        ...              batch_size=3)
        >>> torch.allclose(same, image)
        True
    """
    height, width = image.shape[-2:]
    h, w = min(window[0], height), min(window[1], width)
    rows, columns = window_starts(height, h, overlap), window_starts(width, w, overlap)
    places = [(slice(y, y + h), slice(x, x + w)) for y in rows for x in columns]
    weight = blend_weights((h, w), blend)
    weights = torch.zeros(height, width)
    for y, x in places:
        weights[y, x] += weight
    total = torch.zeros(0)
    for first in range(0, len(places), batch_size):
        some = places[first : first + batch_size]
        pieces = forward(torch.stack([image[:, y, x] for y, x in some]))
        if pieces.shape[-2:] != (h, w):
            pieces = F.interpolate(pieces, (h, w), mode="bilinear", align_corners=False)
        pieces = pieces if stitch is None else pieces.to(stitch)
        if first == 0:
            total = pieces.new_zeros(pieces.shape[1], height, width)
            weight = weight.to(total.device)
        for (y, x), piece in zip(some, pieces, strict=True):
            total[:, y, x] += piece * weight
    total /= weights.to(total.device)
    return total
