"""What the benchmarks share: a process of its own a figure, its peak memory, a markdown table."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def timed(step: Callable[[], object]) -> float:
    """Seconds of one step."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def memory_of(step: Callable[[], object], times: int = 1) -> float:
    """MiB at most above what this process holds now; NaN where the system does not count it."""
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


def in_a_process(file: str, *arguments: str) -> object:
    """What a script prints as JSON, called with these arguments in a fresh process."""
    command = [sys.executable, str(Path(file).resolve()), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def write_table(path: Path, top: Sequence[str], rows: Sequence[Sequence[str]], where: str) -> None:
    """A table as markdown, and below it where it was measured."""
    lines = [*top, *("| " + " | ".join(row) + " |" for row in rows)]
    path.write_text("\n".join([*lines, "", where, ""]), encoding="utf-8")
