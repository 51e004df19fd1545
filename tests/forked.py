"""Processes of their own without the seconds that imports cost: forked from one that has done them.

The server is started once a session, when it is first needed. It has imported the library, and has
neither computed nor opened anything: what is forked from it is as a process started anew, with
another seed of hashes than the tests have.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch

#: What the server imports; of what it cannot, every process pays the import itself.
PRELOADED = (
    "tests.training.processes",
    "tests.training.killed",
    "tests.study.chains",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
)


def server() -> BaseContext:
    """The context whose processes are forked from the server; spawned where there is no fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _work(
    work: Callable[..., Any], given: tuple[Any, ...], environment: Mapping[str, str], said: Path
) -> None:
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # for workers of its own: as everywhere
    torch.set_num_threads(1)
    try:
        work(*given)
    except BaseException:
        said.write_text(traceback.format_exc())
        raise


def start(
    work: Callable[..., Any], *given: Any, said: Path, environment: Mapping[str, str] | None = None
) -> Any:
    """Begin `work(*given)` in a process of its own; an error that ends it is written to `said`."""
    alone = {"CUDA_VISIBLE_DEVICES": "", **(environment or {})}
    context: Any = server()
    process = context.Process(target=_work, args=(work, given, alone, said))
    process.start()
    return process


def together(work: Callable[..., Any], *given: Any, folder: Path, processes: int) -> None:
    """`work(*given)` in processes that know of each other as torchrun tells them, to their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running, said = [], [folder / f"said-{processes}-{rank}" for rank in range(processes)]
    for rank in range(processes):
        several = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes,
            "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        environment = {k: str(v) for k, v in several.items()} if processes > 1 else {}
        running.append(start(work, *given, said=said[rank], environment=environment))
    for process in running:
        process.join(240)
    ends = [process.exitcode for process in running]
    for process in running:
        process.kill()
    errors = [path.read_text() for path in said if path.exists()]
    assert ends == [0] * processes, "\n".join([f"ended with {ends}", *errors])
