"""Threads that share the blocks of a large tensor, each computing alone.

torch's own threads share each operation and meet at its end: beside other processes that want the
cores too, each meeting may last a time slice. These meet once a pass. They start with the first
large loss of a process; a thread of the user's whose first use of torch falls into that moment may
be left with one thread for each operation, since torch has no number of threads for one thread.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import cache
from threading import Barrier, Lock
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Found = TypeVar("Found")

#: How many are started. Where torch has more, the work is theirs: ours take turns at the
#: interpreter between operations, and each has memory of its own.
MOST = 8


class _Team:
    """The threads, once they are started; a process that is forked off has none."""

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[], None]) -> Future[None]:
        with self._lock:
            if self._pool is None:
                self._pool = _started()
            return self._pool.submit(work)


_TEAM = _Team()


def _started() -> ThreadPoolExecutor:
    together = Barrier(MOST)

    def begin(_: int) -> None:
        torch.get_num_threads()  # else the first operation would set the number anew
        together.wait()
        torch.set_num_threads(1)  # of this thread, and of those that begin from now on
        together.wait()

    usual = _in_a_new_thread(torch.get_num_threads)
    pool = ThreadPoolExecutor(MOST, "transferseg-losses")
    try:
        list(pool.map(begin, range(MOST)))
    except BaseException:
        together.abort()  # those that have begun would wait for ever
        pool.shutdown(cancel_futures=True)
        raise
    finally:  # not in this thread, which may have a number of its own
        _in_a_new_thread(lambda: torch.set_num_threads(usual))
    return pool


def _in_a_new_thread(call: Callable[[], Found]) -> Found:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@cache
def _by_openmp() -> bool:
    # with torch's other thread pool, the number of threads is one for the whole process
    return "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()


def _bound_to_one_core() -> bool:
    """Whether threads that begin here would all be on one core, as OMP_PROC_BIND has it."""
    return hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1


def threads_for(tensor: Tensor) -> int:
    """How many threads of ours work on a tensor; 1: none, the caller's.

    Example:
        >>> threads_for(torch.zeros(2, device="meta"))
        1
    """
    # what follows operations (tracers, counters) is in force in the caller's thread alone
    followed = type(tensor) is not Tensor or torch._C._len_torch_dispatch_stack()
    if followed or tensor.device.type != "cpu":
        return 1
    threads = torch.get_num_threads()
    usable = 1 < threads <= MOST and _by_openmp() and not _bound_to_one_core()
    return threads if usable else 1


def shared_out(work: Callable[[Iterator[Item]], None], items: Sequence[Item], threads: int) -> None:
    """Call `work` in each thread, with an iterator over those items that no other takes.

    There without gradients and autocast, and in inference mode if the caller is. Where one thread
    is enough or none can be started, the caller's does it, as it is. What `work` raises is raised.

    Example:
        >>> found = []
        >>> shared_out(lambda own: found.extend(own), [1, 2, 3], 2)
        >>> sorted(found)
        [1, 2, 3]
    """
    if min(threads, len(items)) < 2:
        work(iter(items))
        return
    left, inference = deque(items), torch.is_inference_mode_enabled()

    def share() -> None:
        with torch.inference_mode(inference), torch.no_grad():
            work(_taken(left))

    shares: list[Future[None]] = []
    try:
        try:
            for _ in range(min(threads, len(items))):
                shares.append(_TEAM.submit(share))
        except RuntimeError:  # no more threads for this process, or it is about to end
            work(_taken(left))
        wait(shares, return_when=FIRST_EXCEPTION)
    finally:
        left.clear()  # after an error or an interrupt, the others end with what they have in hand
    wait(shares)
    while shares:  # none is kept: an error holds the frames it came through, and these the tensors
        shares.pop(0).result()


def _taken(left: deque[Item]) -> Iterator[Item]:
    while True:
        try:
            yield left.popleft()
        except IndexError:
            return
