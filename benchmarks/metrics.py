"""Our counting of segmentations beside torchmetrics, smp and a plain bincount: time and memory.

    python benchmarks/metrics.py                 # every case: some minutes
    python benchmarks/metrics.py --table FILE    # and the table as markdown into FILE
    python benchmarks/metrics.py --device cuda   # on a GPU, memory as torch counts it there

A case is one batch and what is counted of it: TP, FP, FN and TN of each image and class (the pooled
ones of torchmetrics and of the bincount, which is less). Every side must give the same pooled
numbers before anything is measured. Then all sides run in turn, in one process, so that whatever
else the machine does falls on all; the figure is the median of the ratios to ours. Peak memory is
of a process of its own a side: the resident set at its largest, less what it was before the first
step (as Linux counts it; elsewhere the column is empty).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torchmetrics.functional.classification as tm
from processes import in_a_process, memory_of, place, timed, write_table
from torch import Tensor

from transferseg.metrics import SegmentationCounts

CLASSES = 19
Side = Callable[[Tensor, Tensor], Tensor]


def ours(mode: str, *, masks: bool = False) -> Side:
    """Counts of each image, (B, K, 4)."""

    def count(given: Tensor, target: Tensor) -> Tensor:
        counts = SegmentationCounts(CLASSES, mode=mode)  # type: ignore[arg-type]
        counts.update_masks(given, target) if masks else counts.update(given, target)
        return counts.rows

    return count


def of_smp(mode: str, *, logits: bool = False) -> Side:
    """get_stats of each image; exclusive classes need the argmax first."""

    def count(given: Tensor, target: Tensor) -> Tensor:
        if mode == "multilabel":
            # 0 would be none at all; no logit lies between
            found = smp.metrics.get_stats(given, target, mode=mode, threshold=1e-6)
        else:
            hard = given.argmax(1) if logits else given
            found = smp.metrics.get_stats(hard, target, mode=mode, num_classes=CLASSES)
        return torch.stack(found, dim=-1)

    return count


def bincount(given: Tensor, target: Tensor) -> Tensor:
    """The pooled table of true by predicted classes, as (1, K, 4)."""
    hard = given.argmax(1) if given.is_floating_point() else given
    table = torch.bincount((target * CLASSES + hard).flatten(), minlength=CLASSES**2)
    table = table.reshape(CLASSES, CLASSES)
    tp = table.diagonal()
    fp, fn = table.sum(0) - tp, table.sum(1) - tp
    return torch.stack([tp, fp, fn, table.sum() - tp - fp - fn], dim=-1)[None]


def stat_scores(given: Tensor, target: Tensor) -> Tensor:
    """torchmetrics, pooled, without its checks of values; (1, K, 4)."""
    count = tm.multiclass_stat_scores if target.ndim == 3 else tm.multilabel_stat_scores
    found = count(given, target, CLASSES, average=None, validate_args=False)
    return found[None, :, [0, 1, 3, 2]]


CASES: dict[str, dict[str, Side]] = {
    "multiclass logits": {
        "ours": ours("multiclass"),
        "torchmetrics": stat_scores,
        "smp": of_smp("multiclass", logits=True),
        "bincount": bincount,
    },
    "multiclass masks": {
        "ours": ours("multiclass", masks=True),
        "torchmetrics": stat_scores,
        "smp": of_smp("multiclass"),
        "bincount": bincount,
    },
    "multilabel logits": {
        "ours": ours("multilabel"),
        "torchmetrics": stat_scores,
        "smp": of_smp("multilabel"),
    },
}


def data_of(case: str, images: int, size: int, device: str) -> list[Tensor]:
    """One batch: logits or masks, and a target of the dtype that every side takes."""
    torch.manual_seed(0)
    shape = (images, CLASSES, size, size)
    target = torch.randint(0, CLASSES, (images, size, size))
    if case == "multilabel logits":
        # torchmetrics takes the sigmoid first, in which a logit of 1e-8 is one half
        pair = torch.randn(shape).round(decimals=3), torch.randint(0, 2, shape)
    elif case == "multiclass masks":
        pair = torch.randint(0, CLASSES, target.shape), target
    else:
        pair = torch.randn(shape), target
    return [tensor.to(device) for tensor in pair]


def measure_time(
    case: str, images: int, size: int, device: str, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each side and round, the sides in turn; they must agree first."""
    given, target = data_of(case, images, size, device)
    sides = CASES[case]
    expected = sides["ours"](given, target).sum(0)
    for name, side in sides.items():
        if not torch.equal(side(given, target).sum(0), expected):
            raise SystemExit(f"{case}: {name} counts something else")
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(timed(lambda side=side: side(given, target), device))
    return times


def measure_memory(case: str, name: str, images: int, size: int, device: str) -> float:
    """MiB above what the process held with the batch made; for a process of its own."""
    given, target = data_of(case, images, size, device)
    side = CASES[case][name]
    # what a first call loads and keeps is no memory of the counting
    side(given[:1, ..., :8, :8], target[:1, ..., :8, :8])
    return memory_of(lambda: side(given, target), times=3, device=device)


def rows_of(case: str, options: list[str]) -> list[list[str]]:
    """One row a side, printed as soon as it is known."""
    times = in_a_process(__file__, "--time", case, *options)
    rows = []
    for name in CASES[case]:
        memory = in_a_process(__file__, "--memory", case, name, *options)
        ratios = [theirs / mine for theirs, mine in zip(times[name], times["ours"], strict=True)]
        milliseconds = f"{statistics.median(times[name]) * 1000:.0f}"
        ratio = f"{statistics.median(ratios):.1f}"
        rows.append([case, name, milliseconds, ratio, f"{memory:.0f}"])
        print("| " + " | ".join(rows[-1]) + " |", flush=True)
    return rows


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16, help="of a batch")
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=9, help="how often each side runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", type=Path, help="a file for the table as markdown")
    parser.add_argument("--time", metavar="CASE", help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = arguments.images, arguments.size, arguments.device
    if arguments.time:
        print(json.dumps(measure_time(arguments.time, *size, arguments.rounds)))
        return
    if arguments.memory:
        print(json.dumps(measure_memory(*arguments.memory, *size)))
        return
    heads = ["what is counted", "by", "ms", "times ours", "MiB"]
    top = ["| " + " | ".join(heads) + " |", "|---|---|---:|---:|---:|"]
    print("\n".join(top), flush=True)
    keys = ("images", "size", "rounds", "threads", "device")
    options = [f"--{key}={getattr(arguments, key)}" for key in keys]
    rows = [row for case in CASES for row in rows_of(case, options)]
    if arguments.table:
        where = (
            f"{place(arguments.device, arguments.threads)}; a batch of {arguments.images} with "
            f"{CLASSES} classes, {arguments.size}x{arguments.size} pixels, float32 logits and "
            "int64 targets."
        )
        write_table(arguments.table, top, rows, where)


if __name__ == "__main__":
    main()
