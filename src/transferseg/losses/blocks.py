"""Work on large tensors block by block: what lies between two results stays in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Values in a block on the CPU. Where all operations write over the same memory (`Room`): torch's
#: threads meet after each operation, and where other processes want the cores too, each meeting may
#: last a time slice, so blocks are few; a few such tensors fit the last cache of a server. Where
#: each gets new memory (whole classes): so few that it is soon had.
ON_CPU, WHOLE_ON_CPU = 1 << 22, 1 << 18
#: Values in a block on other devices than the CPU.
ELSEWHERE = 1 << 22
#: Bytes from which NumPy asks for huge pages.
_LARGE = 1 << 22


def block_shape(tensor: Tensor, *, whole_classes: bool) -> tuple[int, int, int]:
    """The largest block that a (B, K, N) tensor is cut into.

    Args:
        tensor: what is cut.
        whole_classes: keep the K values of a pixel together.

    Example:
        >>> block_shape(torch.zeros(1, 2, 3), whole_classes=True)
        (1, 2, 3)
    """
    images, classes, pixels = tensor.shape
    if not tensor.numel():
        return max(1, images), max(1, classes), max(1, pixels)
    on_cpu = WHOLE_ON_CPU if whole_classes else ON_CPU
    size = on_cpu if tensor.device.type == "cpu" else ELSEWHERE
    most = max(1, size // classes if whole_classes else size)
    step_n = -(-pixels // -(-pixels // most))  # as many blocks as must be, of one size
    step_k = classes
    if not whole_classes:
        step_k = min(classes, size // step_n) if step_n == pixels else 1
    step_b = max(1, size // (step_k * step_n)) if (step_k, step_n) == (classes, pixels) else 1
    return min(step_b, images), step_k, step_n


def cut(
    shape: tuple[int, int, int], tensor: Tensor, *others: Tensor | None
) -> list[tuple[Any, ...]]:
    """The blocks of (B, K, N) tensors, those of one place together; None of no tensor.

    All are cut at once, since to index a tensor costs as much as a short operation.

    Example:
        >>> values = torch.arange(4).reshape(1, 2, 2)
        >>> [(one.tolist(), other) for one, other in cut((1, 1, 2), values, None)]
        [([[[0, 1]]], None), ([[[2, 3]]], None)]
    """
    parts = _pieces(tensor, shape)
    more: list[Sequence[Tensor | None]] = [
        [None] * len(parts) if given is None else _pieces(given, shape) for given in others
    ]
    return list(zip(parts, *more, strict=True))


def _pieces(tensor: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    pieces = [tensor]
    for axis, size in enumerate(shape):
        if tensor.shape[axis] > size:
            pieces = [part for piece in pieces for part in torch.split(piece, size, axis)]
    return pieces


def total_of_blocks(
    work: Callable[..., Tensor], tensor: Tensor, *others: Tensor | None, whole_classes: bool
) -> Tensor:
    """Add up what `work` sums over the pixels of each block.

    Args:
        work: of a block (b, k, n) of every tensor, or None for none: (S, b, k).
        tensor: (B, K, N).
        others: of the same shape, or None; (B, 1, N) too where classes stay whole.
        whole_classes: keep the K values of a pixel together.

    Returns:
        (S, B, K). The order of the additions is always the same.

    Example:
        >>> values = torch.arange(6.0).reshape(1, 2, 3)
        >>> total_of_blocks(lambda part: part.sum(-1)[None], values, whole_classes=False)
        tensor([[[ 3., 12.]]])
    """
    shape = block_shape(tensor, whole_classes=whole_classes)
    found = [work(*parts) for parts in cut(shape, tensor, *others)]
    if len(found) == 1:
        return found[0]
    total = found[0].new_zeros((found[0].shape[0], *tensor.shape[:2]))
    pixels = total.unsqueeze(-1).expand(*total.shape, tensor.shape[2])
    places = _pieces(pixels, (len(total), *shape))
    for place, own in zip(places, found, strict=True):
        place[..., 0].add_(own)
    return total


def written_by_blocks(
    work: Callable[..., object], tensor: Tensor, *others: Tensor | None, whole_classes: bool
) -> Tensor:
    """A tensor like `tensor`, of which `work` computes each block.

    Args:
        work: of where the values of a block (b, k, n) are to be put, and of that block of every
            tensor, or None for none.
        tensor: (B, K, N).
        others: as in `total_of_blocks`.
        whole_classes: keep the K values of a pixel together.

    Returns:
        (B, K, N), in the dtype and layout of `tensor`.

    Example:
        >>> values = torch.arange(6.0).reshape(1, 2, 3)
        >>> def work(out, part):
        ...     torch.add(part, 1, out=out)
        >>> written_by_blocks(work, values, whole_classes=False)
        tensor([[[1., 2., 3.],
                 [4., 5., 6.]]])
    """
    if tensor.is_contiguous():
        out = _memory(tensor.numel(), tensor).view(tensor.shape)
    else:
        out = torch.empty_like(tensor)
    shape = block_shape(tensor, whole_classes=whole_classes)
    # the last ones first: what a pass before has read last may be in the cache yet
    for parts in reversed(cut(shape, out, tensor, *others)):
        work(*parts)
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
