"""Work on large tensors block by block: what lies between two results stays in the cache."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import torch
from torch import Tensor

#: A part of a (B, K, N) tensor.
Block: TypeAlias = tuple[slice, slice, slice]
#: Values in a block. On the CPU: the largest size that torch computes in one thread. Threads of our
#: own take the blocks, since torch's meet after each operation: hundreds of meetings, each of
#: which waits for a whole time slice when another process (a loader's worker) holds a core.
ON_CPU, ELSEWHERE = (1 << 15) - 1, 1 << 22
#: More threads wait for the interpreter's lock.
MOST_THREADS = 4


def _blocks(tensor: Tensor, *, whole_classes: bool) -> list[Block]:
    """Blocks that cover a (B, K, N) tensor, in order.

    Under `torch.compile` the tensor stays whole: the compiler cuts it itself.
    """
    images, classes, pixels = tensor.shape
    if torch.compiler.is_compiling() or not tensor.numel():
        return [(slice(0, images), slice(0, classes), slice(0, pixels))]
    size = ON_CPU if tensor.device.type == "cpu" else ELSEWHERE
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


def _in_threads(work: Callable[[Block], object], parts: list[Block], tensor: Tensor) -> None:
    """Do every block, on the CPU in as many threads as torch has, at most `MOST_THREADS`."""
    threads = min(torch.get_num_threads(), MOST_THREADS, len(parts) // 8)
    if threads < 2 or tensor.device.type != "cpu":
        for part in parts:
            work(part)
        return
    inference = torch.is_inference_mode_enabled()  # a thread's own, as whether gradients are kept

    def run(share: list[Block]) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            for part in share:
                work(part)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, [parts[first::threads] for first in range(threads)]))


def total_of_blocks(
    work: Callable[[Block], Tensor], tensor: Tensor, *, whole_classes: bool
) -> Tensor:
    """Add up what `work` sums over the pixels of each block.

    Args:
        work: of a block of `tensor` (b, k, n): (S, b, k); in other threads and without gradients.
        tensor: (B, K, N), what the blocks are cut from.
        whole_classes: keep the K values of a pixel together.

    Returns:
        (S, B, K). The order of the additions is always the same.

    Example:
        >>> values = torch.arange(6.0).reshape(1, 2, 3)
        >>> total_of_blocks(lambda part: values[part].sum(-1)[None], values, whole_classes=False)
        tensor([[[ 3., 12.]]])
    """
    parts = _blocks(tensor, whole_classes=whole_classes)
    if len(parts) == 1:
        return work(parts[0])
    found: dict[int, Tensor] = {}
    numbers = {id(part): number for number, part in enumerate(parts)}

    def keep(part: Block) -> None:
        found[numbers[id(part)]] = work(part)

    _in_threads(keep, parts, tensor)
    total = found[0].new_zeros((found[0].shape[0], *tensor.shape[:2]))
    for number, part in enumerate(parts):
        total[:, part[0], part[1]].add_(found[number])
    return total


def written_by_blocks(
    work: Callable[[Block], Tensor], tensor: Tensor, *, whole_classes: bool
) -> Tensor:
    """A tensor like `tensor`, of which `work` computes each block.

    Args:
        work: of a block of `tensor` (b, k, n): the same shape in any dtype; in other threads and
            without gradients.
        tensor: (B, K, N), what the blocks are cut from.
        whole_classes: keep the K values of a pixel together.

    Returns:
        (B, K, N), in the dtype and layout of `tensor`.

    Example:
        >>> values = torch.arange(6.0).reshape(1, 2, 3)
        >>> written_by_blocks(lambda part: values[part] + 1, values, whole_classes=False)
        tensor([[[1., 2., 3.],
                 [4., 5., 6.]]])
    """
    parts = _blocks(tensor, whole_classes=whole_classes)
    if len(parts) == 1:
        return work(parts[0]).to(tensor.dtype)
    out = torch.empty_like(tensor)

    def write(part: Block) -> None:
        out[part] = work(part)

    _in_threads(write, parts, tensor)
    return out
