"""Work on large tensors block by block: what lies between two results stays in the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

#: A part of a (B, K, N) tensor.
Block: TypeAlias = tuple[slice, slice, slice]
#: Values in a block on the CPU. Where all operations write over the same memory (`Room`), so many
#: that each is long beside the meeting of torch's threads after it; a few such tensors fit the last
#: cache of a server. Where each gets new memory (whole classes), so few that it is soon had.
ON_CPU, WHOLE_ON_CPU = 1 << 21, 1 << 18
#: Values in a block on other devices.
ELSEWHERE = 1 << 22
#: Bytes from which NumPy asks for huge pages.
_LARGE = 1 << 22


def blocks_of(tensor: Tensor, *, whole_classes: bool) -> list[Block]:
    """Blocks that cover a (B, K, N) tensor, in order.

    Args:
        tensor: what is cut.
        whole_classes: keep the K values of a pixel together.

    Example:
        >>> [part[1:] for part in blocks_of(torch.zeros(1, 2, 3), whole_classes=True)]
        [(slice(0, 2, None), slice(0, 3, None))]
    """
    images, classes, pixels = tensor.shape
    if not tensor.numel():
        return [(slice(0, images), slice(0, classes), slice(0, pixels))]
    on_cpu = WHOLE_ON_CPU if whole_classes else ON_CPU
    size = on_cpu if tensor.device.type == "cpu" else ELSEWHERE
    most = max(1, size // classes if whole_classes else size)
    step_n = -(-pixels // -(-pixels // most))  # as many blocks as must be, of one size
    step_k = classes
    if not whole_classes:
        step_k = min(classes, size // step_n) if step_n == pixels else 1
    step_b = max(1, size // (step_k * step_n)) if (step_k, step_n) == (classes, pixels) else 1
    return [
        (slice(b, b + step_b), slice(k, k + step_k), slice(n, n + step_n))
        for b in range(0, images, step_b)
        for k in range(0, classes, step_k)
        for n in range(0, pixels, step_n)
    ]


def total_of_blocks(
    work: Callable[[Block], Tensor], tensor: Tensor, *, whole_classes: bool
) -> Tensor:
    """Add up what `work` sums over the pixels of each block.

    Args:
        work: of a block of `tensor` (b, k, n): (S, b, k).
        tensor: (B, K, N), what the blocks are cut from.
        whole_classes: keep the K values of a pixel together.

    Returns:
        (S, B, K). The order of the additions is always the same.

    Example:
        >>> values = torch.arange(6.0).reshape(1, 2, 3)
        >>> total_of_blocks(lambda part: values[part].sum(-1)[None], values, whole_classes=False)
        tensor([[[ 3., 12.]]])
    """
    first, *others = blocks_of(tensor, whole_classes=whole_classes)
    found = work(first)
    if not others:
        return found
    total = found.new_zeros((found.shape[0], *tensor.shape[:2]))
    total[:, first[0], first[1]] = found
    for part in others:
        total[:, part[0], part[1]].add_(work(part))
    return total


def written_by_blocks(
    work: Callable[[Block, Tensor], object], tensor: Tensor, *, whole_classes: bool
) -> Tensor:
    """A tensor like `tensor`, of which `work` computes each block.

    Args:
        work: of a block of `tensor` (b, k, n) and where its values, of that shape, are to be put.
        tensor: (B, K, N), what the blocks are cut from.
        whole_classes: keep the K values of a pixel together.

    Returns:
        (B, K, N), in the dtype and layout of `tensor`.

    Example:
        >>> values = torch.arange(6.0).reshape(1, 2, 3)
        >>> def work(part, out):
        ...     torch.add(values[part], 1, out=out)
        >>> written_by_blocks(work, values, whole_classes=False)
        tensor([[[1., 2., 3.],
                 [4., 5., 6.]]])
    """
    if tensor.is_contiguous():
        out = _memory(tensor.numel(), tensor).view(tensor.shape)
    else:
        out = torch.empty_like(tensor)
    for part in blocks_of(tensor, whole_classes=whole_classes):
        work(part, out[part])
    return out


def _memory(values: int, like: Tensor) -> Tensor:
    """So many values of a tensor's dtype, on its device; on huge pages where the system has them.

    To fill pages of 4 KiB costs as much as the arithmetic. NumPy asks for huge ones, torch does not
    by itself.
    """
    size = values * like.element_size()
    if like.device.type != "cpu" or size < _LARGE:
        return torch.empty(values, dtype=like.dtype, device=like.device)
    return torch.from_numpy(np.empty(size, np.uint8)).view(like.dtype)


class Room:
    """Memory that all blocks of a pass write over: new memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def like(self, name: str, block: Tensor) -> Tensor:
        """A contiguous tensor of the block's shape and dtype; the same memory under one name.

        Example:
            >>> room = Room()
            >>> first = room.like("p", torch.zeros(2, 1, 8))
            >>> room.like("p", torch.zeros(1, 1, 8)).data_ptr() == first.data_ptr()
            True
        """
        kept = self._kept.get(name)
        if kept is None or kept.numel() < block.numel():
            kept = self._kept[name] = _memory(block.numel(), block).view(block.shape)
        if kept.shape == block.shape:
            return kept
        return kept.view(-1)[: block.numel()].view(block.shape)
