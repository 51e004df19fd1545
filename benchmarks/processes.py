"""What the benchmarks share: a process of its own a figure, its peak memory, a markdown table."""

from __future__ import annotations

import gc
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def wait(device: str | torch.device) -> None:
    """Until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def timed(step: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of one step."""
    wait(device)
    begin = time.perf_counter()
    step()
    wait(device)
    return time.perf_counter() - begin


def memory_of(step: Callable[[], object], times: int = 1, device: str = "cpu") -> float:
    """MiB at most above what this process holds now; NaN where the system does not count it.

    On a GPU of what torch has given out there.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(times):
            step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    forget = Path("/proc/self/clear_refs")
    if not forget.exists():
        return float("nan")
    gc.collect()
    forget.write_text("5")  # the largest resident set counts from here
    before = resident("VmRSS")
    for _ in range(times):
        step()
    return (resident("VmHWM") - before) / 1024


def resident(what: str) -> float:
    """KiB of this process: `VmRSS` now, `VmHWM` at its largest."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def place(device: str, threads: int) -> str:
    """Where something was measured, in words."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.machine()}, {threads} threads, torch {torch.__version__}"


def in_a_process(file: str, *arguments: str) -> object:
    """What a script prints as JSON, called with these arguments in a fresh process."""
    command = [sys.executable, str(Path(file).resolve()), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def write_table(path: Path, top: Sequence[str], rows: Sequence[Sequence[str]], where: str) -> None:
    """A table as markdown, and below it where it was measured."""
    lines = [*top, *("| " + " | ".join(row) + " |" for row in rows)]
    path.write_text("\n".join([*lines, "", where, ""]), encoding="utf-8")
