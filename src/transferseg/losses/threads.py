"""Threads that share the blocks of a large tensor, each computing alone.

torch's own threads share each operation and meet at its end: beside other processes that want the
cores too, each meeting may last a time slice. These meet once a pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cache
from queue import Empty, SimpleQueue
from threading import Barrier, Lock
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")

#: More threads than this are torch's own: ours take turns at the interpreter between operations,
#: and each has memory of its own.
MOST = 8


class _Teams:
    """Threads that have been started, by their number; a process that is forked off has none."""

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        self._lock = Lock()
        self._known: dict[int, ThreadPoolExecutor] = {}

    def of(self, threads: int) -> ThreadPoolExecutor:
        with self._lock:
            if threads not in self._known:
                self._known[threads] = _started(threads)
            return self._known[threads]


def _started(threads: int) -> ThreadPoolExecutor:
    all_here, before = Barrier(threads), torch.get_num_threads()

    def begin(_: int) -> None:
        torch.get_num_threads()  # else the first operation would set the number anew
        torch.set_num_threads(1)  # of this thread, and of those that begin from now on
        all_here.wait()

    team = ThreadPoolExecutor(threads, "transferseg-losses")
    try:
        list(team.map(begin, range(threads)))
    except BaseException:
        all_here.abort()  # those that have begun would wait for ever
        raise
    finally:
        torch.set_num_threads(before)
    return team


_TEAMS = _Teams()


@cache
def _by_openmp() -> bool:
    # with torch's other thread pool, the number of threads is one for the whole process
    return "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()


def threads_for(tensor: Tensor) -> int:
    """How many threads of ours work on a tensor; 1: none, the caller's.

    Example:
        >>> threads_for(torch.zeros(2, device="meta"))
        1
    """
    if tensor.device.type != "cpu" or type(tensor) is not Tensor:
        return 1  # what is a tensor in name only may depend on modes of the caller's thread
    threads = torch.get_num_threads()
    return threads if 1 < threads <= MOST and _by_openmp() else 1


def shared_out(work: Callable[[Iterator[Item]], None], items: Sequence[Item], threads: int) -> None:
    """Call `work` in each thread, with an iterator over those items that no other takes.

    Without gradients and autocast; one after another in the caller's thread where it is the only
    one. What `work` raises is raised.

    Example:
        >>> found = []
        >>> shared_out(lambda own: found.extend(own), [1, 2, 3], 2)
        >>> sorted(found)
        [1, 2, 3]
    """
    if min(threads, len(items)) < 2:
        work(iter(items))
        return
    left: SimpleQueue[Item] = SimpleQueue()
    for item in items:
        left.put(item)

    def share() -> None:
        with torch.no_grad():
            work(_taken(left))

    team = _TEAMS.of(threads)
    shares = []
    try:
        for _ in range(min(threads, len(items))):
            shares.append(team.submit(share))
        wait(shares, return_when=FIRST_EXCEPTION)
    finally:
        for _ in _taken(left):
            pass  # after an error or an interrupt, the others end with what they have in hand
    wait(shares)
    for one in shares:
        one.result()


def _taken(left: SimpleQueue[Item]) -> Iterator[Item]:
    while True:
        try:
            yield left.get_nowait()
        except Empty:
            return
