"""Work on large tensors block by block: what lies between two results stays in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferseg.losses.threads import shared_out, threads_for

#: Values in a block on the CPU, of a thread that computes alone: so few that some such tensors fit
#: the cache of a core, or nearly so, and so many that the operations take longer than their calls.
ON_CPU, WHOLE_ON_CPU = 1 << 19, 1 << 18
#: Where torch's threads share each operation and meet after it: so many that they meet seldom, and
#: so few that some such tensors (`Room`: all operations write over the same) fit a server's cache.
BY_TORCH = 1 << 22
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
    size = WHOLE_ON_CPU if whole_classes else ON_CPU
    if tensor.device.type != "cpu":
        size = ELSEWHERE
    elif not whole_classes and threads_for(tensor) == 1 < torch.get_num_threads():
        size = BY_TORCH
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
    """Add up what `work` sums over the pixels of each block, in some threads at once.

    Args:
        work: of a `Room` and a block (b, k, n) of every tensor, or None for none: (S, b, k).
        tensor: (B, K, N).
        others: of the same shape, or None; (B, 1, N) too where classes stay whole.
        whole_classes: keep the K values of a pixel together.

    Returns:
        (S, B, K). The order of the additions is always the same.

    Example:
        >>> values = torch.arange(6.0).reshape(1, 2, 3)
        >>> total_of_blocks(lambda room, part: part.sum(-1)[None], values, whole_classes=False)
        tensor([[[ 3., 12.]]])
    """
    shape = block_shape(tensor, whole_classes=whole_classes)
    parts = cut(shape, tensor, *others)
    found: dict[int, Tensor] = {}

    def share(own: Iterator[tuple[int, tuple[Any, ...]]]) -> None:
        room = Room()
        for number, given in own:
            found[number] = work(room, *given)

    shared_out(share, list(enumerate(parts)), threads_for(tensor))
    if len(found) == 1:
        return found[0]
    total = found[0].new_zeros((found[0].shape[0], *tensor.shape[:2]))
    pixels = total.unsqueeze(-1).expand(*total.shape, tensor.shape[2])
    for number, place in enumerate(_pieces(pixels, (len(total), *shape))):
        place[..., 0].add_(found[number])
    return total


def written_by_blocks(
    work: Callable[..., object], tensor: Tensor, *others: Tensor | None, whole_classes: bool
) -> Tensor:
    """A tensor like `tensor`, of which `work` computes each block, in some threads at once.

    Args:
        work: of a `Room`, of where the values of a block (b, k, n) are to be put, and of that block
            of every tensor, or None for none.
        tensor: (B, K, N).
        others: as in `total_of_blocks`.
        whole_classes: keep the K values of a pixel together.

    Returns:
        (B, K, N), in the dtype and layout of `tensor`.

    Example:
        >>> values = torch.arange(6.0).reshape(1, 2, 3)
        >>> def work(room, out, part):
        ...     torch.add(part, 1, out=out)
        >>> written_by_blocks(work, values, whole_classes=False)
        tensor([[[1., 2., 3.],
                 [4., 5., 6.]]])
    """
    if tensor.is_contiguous():
        out = _memory(tensor.numel(), tensor).view(tensor.shape)
    else:
        out = torch.empty_like(tensor)

    def share(own: Iterator[tuple[Any, ...]]) -> None:
        room = Room()
        for given in own:
            work(room, *given)

    shape = block_shape(tensor, whole_classes=whole_classes)
    # the last ones first: what a pass before has read last may be in the cache yet
    shared_out(share, cut(shape, out, tensor, *others)[::-1], threads_for(tensor))
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
    """Memory that a thread's blocks all write over: new memory costs more than the arithmetic."""

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
