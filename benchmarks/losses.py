"""BCE + Dice beside segmentation-models-pytorch's and MONAI's: time and additional memory.

    python benchmarks/losses.py                  # 8x13x512x512, eager and compiled: minutes
    python benchmarks/losses.py --table FILE     # and the table as markdown into FILE
    python benchmarks/losses.py --busy 1         # beside a process that wants the cores too
    python benchmarks/losses.py --device cuda    # on a GPU, memory as torch counts it there

Forward and backward of one multilabel loss on float32 logits and masks that are there already:
ours, DiceLoss of segmentation-models-pytorch + torch's BCE with logits, and torch's BCE with logits
+ MONAI's DiceLoss(sigmoid=True). All run in turn, in one process, so that whatever else the machine
does falls on each; the figures are medians, and the ratios medians of the ratios of one turn.
Beside the compiled sides runs MONAI's as it is, not compiled.
Memory is of a process of its own a side: the resident set at its largest, less what it was before
the first step (as Linux counts it; elsewhere the column is empty). For a compiled side that first
step is the one after compiling. The gradient itself is a part of it: 104 MiB by default.
MONAI is in no extra of the package: pip install monai.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import monai
import segmentation_models_pytorch as smp
import torch
from processes import in_a_process, memory_of, place, timed, write_table
from torch import Tensor, nn

import transferseg as ts


class Sum(nn.Module):
    """BCE with logits plus a Dice loss."""

    def __init__(self, dice: nn.Module) -> None:
        super().__init__()
        self.bce, self.dice = nn.BCEWithLogitsLoss(), dice

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum of both, a scalar."""
        return self.bce(logits, target) + self.dice(logits, target)


SIDES: dict[str, Callable[[], nn.Module]] = {
    "ours": lambda: ts.losses.BCEDiceLoss("multilabel"),
    "smp": lambda: Sum(smp.losses.DiceLoss("multilabel")),
    "monai": lambda: Sum(monai.losses.DiceLoss(sigmoid=True)),
}
#: What runs in turn, by mode; what ends so is not compiled.
AS_IT_IS = ", eager"
TURNS = {"eager": [*SIDES], "compiled": [*SIDES, "monai" + AS_IT_IS]}


def batch(shape: list[int], device: str) -> tuple[Tensor, Tensor]:
    """Logits with a gradient and a mask of 0 and 1."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(shape)).to(device).requires_grad_()
    return logits, (torch.rand(shape) > 0.7).float().to(device)


def step_of(side: str, mode: str, logits: Tensor, target: Tensor) -> Callable[[], None]:
    """What is measured: forward, backward, and to free the gradient."""
    loss = SIDES[side.removesuffix(AS_IT_IS)]()
    if mode == "compiled" and not side.endswith(AS_IT_IS):
        loss = torch.compile(loss)

    def step() -> None:
        loss(logits, target).backward()
        logits.grad = None  # here, so that each side frees its own

    return step


@contextmanager
def company(busy: int) -> Iterator[None]:
    """So many processes that never rest, as those of a data loader may be."""
    endless = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(endless) for _ in range(busy)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


def measure_time(mode: str, shape: list[int], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every turn, by side."""
    data = batch(shape, device)
    steps = {side: step_of(side, mode, *data) for side in TURNS[mode]}
    for step in steps.values():
        step()
        step()
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for turn in range(rounds):
        first = turn % len(steps)
        order = list(steps)[first:] + list(steps)[:first]
        for side in order:
            seconds[side].append(timed(steps[side], device))
    return seconds


def measure_memory(side: str, mode: str, shape: list[int], device: str) -> float:
    """MiB above what the process held with the data made; for a process of its own."""
    logits, target = batch(shape, device)
    step = step_of(side, mode, logits, target)
    if mode == "compiled":
        step()
    return memory_of(step, device=device)


def rows_of(modes: list[str], options: list[str]) -> list[list[str]]:
    """One row a mode and side, printed as soon as it is known."""
    rows = []
    for mode in modes:
        seconds = in_a_process(__file__, "--time", mode, *options)
        memory = {
            side: in_a_process(__file__, "--memory", side, mode, *options) for side in TURNS[mode]
        }
        for side in TURNS[mode]:
            pairs = zip(seconds[side], seconds["ours"], strict=True)
            ratio = statistics.median(theirs / mine for theirs, mine in pairs)
            rows.append([
                mode, side, f"{statistics.median(seconds[side]) * 1000:.0f}", f"{ratio:.1f}",
                f"{memory[side]:.0f}", f"{memory['ours'] / memory[side]:.2f}",
            ])  # fmt: skip
            print("| " + " | ".join(rows[-1]) + " |", flush=True)
    return rows


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=["eager", "compiled"], help="one of both alone")
    parser.add_argument("--shape", default="8x13x512x512", help="images x classes x pixels")
    parser.add_argument("--rounds", type=int, default=15, help="how often each side runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--busy", type=int, default=0, help="processes beside it, for the times")
    parser.add_argument("--table", type=Path, help="a file for the table as markdown")
    parser.add_argument("--time", metavar="MODE", help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = [int(size) for size in arguments.shape.split("x")]
    if arguments.time:
        with company(arguments.busy):
            times = measure_time(arguments.time, shape, arguments.rounds, arguments.device)
        print(json.dumps(times))
        return
    if arguments.memory:
        side, mode = arguments.memory
        print(json.dumps(measure_memory(side, mode, shape, arguments.device)))
        return
    heads = ["mode", "side", "ms", "times ours", "additional MiB", "ours / this"]
    top = ["| " + " | ".join(heads) + " |", "|" + "---|" * 2 + "---:|" * 4]
    print("\n".join(top), flush=True)
    keys = ("shape", "rounds", "threads", "device", "busy")
    options = [f"--{key}={getattr(arguments, key)}" for key in keys]
    rows = rows_of([arguments.mode] if arguments.mode else ["eager", "compiled"], options)
    if arguments.table:
        where = (
            f"{place(arguments.device, arguments.threads)}, smp {smp.__version__}, MONAI "
            f"{monai.__version__}; {arguments.shape} float32, forward and backward, "
            f"{arguments.busy} busy processes beside it."
        )
        write_table(arguments.table, top, rows, where)


if __name__ == "__main__":
    main()
