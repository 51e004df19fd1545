"""What weights in MMSegmentation's files need before they are timm's."""

from __future__ import annotations

import torch
from torch import Tensor


def merging_as_timm(values: Tensor) -> Tensor:
    """Swin's patch merging with its inputs in timm's order.

    Of its `reduction.weight`, `norm.weight` and `norm.bias`. MMSegmentation unfolds: for each
    channel the four pixels (00, 01, 10, 11); timm concatenates the channels of the pixels
    00, 10, 01, 11.

    Args:
        values: (..., 4 C).

    Returns:
        The same values, (..., 4 C).

    Example:
        >>> import torch
        >>> merging_as_timm(torch.arange(8)).tolist()
        [0, 4, 2, 6, 1, 5, 3, 7]
    """
    return values.reshape(*values.shape[:-1], -1, 2, 2).transpose(-1, -3).flatten(-3)


def merging_as_mmseg(values: Tensor) -> Tensor:
    """The way back from `merging_as_timm`.

    Example:
        >>> import torch
        >>> merging_as_mmseg(merging_as_timm(torch.arange(8))).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return values.reshape(*values.shape[:-1], 2, 2, -1).transpose(-1, -3).flatten(-3)


def skips_last(weight: Tensor) -> Tensor:
    """A U-Net's first convolution of a block with its inputs in our order.

    MMSegmentation concatenates the skip connection, then what comes up, half of the channels each;
    here what comes up is first.

    Args:
        weight: (out, 2 C, kh, kw).

    Returns:
        The same values.

    Example:
        >>> skips_last(torch.arange(4.0).reshape(1, 4, 1, 1)).flatten().tolist()
        [2.0, 3.0, 0.0, 1.0]
    """
    skip, path = weight.chunk(2, dim=1)
    return torch.cat([path, skip], dim=1)
