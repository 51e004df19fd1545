"""Polyps: what ImageNet weights give a U-Net and an Attention U-Net in minutes on two cores.

    python examples/kvasir.py --data FOLDER [--weights FILE] [--peer]

FOLDER holds `kvasir_seg/train` and `kvasir_seg/validation`, each with `images/` and `masks/` of the
same names; FILE the weights of timm's mobilenetv2_035, by default in `weights/` beside FOLDER.
Every network trains on one core, as many at a time as there are, so that seconds can be compared.
Writes kvasir.md, kvasir.json and kvasir.png. With --peer segmentation-models-pytorch's U-Net as it
comes is trained as well, with the same weights, at 160 px for 8 epochs. With --held-out nothing is
written, and 160 of the training images are scored in place of the validation part and do not train:
that is where settings are chosen. --quick runs all of it on few images, in seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch
from kvasir_page import PAGE, PEER
from kvasir_training import ENCODER, SEED, Run, Settings, ours, peer_loss, stock, train
from matplotlib.figure import Figure

import transferseg as ts

STARTS = ("ImageNet", "random")
ARCHITECTURES = {"U-Net": "unet", "Attention U-Net": "attention_unet"}
SMP = "U-Net of smp"
OURS = Settings(192, 10, 4, 2e-3, 100, augment=True, channels=(96, 64, 32, 16, 8))
STOCK = Settings(160, 8, 8, 1e-3, 0, augment=False, channels=(256, 128, 64, 32, 16))
QUICK = {"size": 64, "epochs": 2, "warmup": 2}


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("TRANSFERSEG_DATA")
    parser.add_argument("--data", type=Path, default=data, help="or set TRANSFERSEG_DATA")
    parser.add_argument("--weights", type=Path, help=f"of {ENCODER}, in timm's names")
    parser.add_argument("--folder", type=Path, default=Path("kvasir_results"))
    parser.add_argument("--peer", action="store_true", help="train smp's own U-Net as well")
    parser.add_argument("--held-out", action="store_true", help="score on training images")
    parser.add_argument("--quick", action="store_true", help="24 images of 64 px, 2 epochs")
    for name in ("size", "epochs", "batch-size"):
        parser.add_argument(f"--{name}", type=int, help="of our trainings")
    parser.add_argument("--learning-rate", type=float, help="of our trainings")
    parser.add_argument("--only", help="train one and write nothing, such as 'U-Net, ImageNet'")
    options = parser.parse_args()
    if options.data is None:
        parser.error("say where the data are: --data FOLDER, or TRANSFERSEG_DATA")
    if options.weights is None:
        options.weights = options.data.parent / "weights" / f"{ENCODER}_imagenet_timm.pth"
    if not options.weights.exists():
        parser.error(f"{options.weights} is not there: say where the weights are, --weights FILE")
    return options


def parts(options: argparse.Namespace) -> tuple[ts.data.Reader, ts.data.Reader]:
    """What trains and what is scored, decoded once."""
    train, validation = (
        # JPEG masks; both parts count their images from 0.
        ts.data.ImageMaskFolder(
            options.data / "kvasir_seg" / part, classes=["polyp"], threshold=127,
            group=f"{part} {{}}".format,
        )
        for part in ("train", "validation")
    )  # fmt: skip
    first, second = range(len(train)), range(len(validation))
    if options.held_out:
        shares = {"train": 0.8, "held out": 0.2}
        first, second = ts.data.split_by_group(train.groups, shares, seed=SEED).values()
        validation = train
    if options.quick:
        first, second = first[:24], second[:8]
    sides = ts.data.InMemory(train, indices=first), ts.data.InMemory(validation, indices=second)
    names = {"train": range(len(first)), "scored": range(len(first), len(first) + len(second))}
    groups, hashes = (
        [*getattr(sides[0], k), *getattr(sides[1], k)] for k in ("groups", "pictures")
    )
    ts.data.check_no_leak(names, groups, hashes=hashes)
    return sides


def table(runs: dict[str, Run]) -> str:
    """Scores at the masks' own size and what they cost, a row a run, as Markdown."""
    columns = list(next(iter(runs.values())).scores())
    heads = ("network", "weights", "px", "epochs", "seconds", *columns)
    lines = [f"| {' | '.join(heads)} |", f"|---|---|{'--:|' * (len(heads) - 2)}"]
    for name, run in runs.items():
        cells = [*name.split(", "), str(run.settings.size), str(run.settings.epochs)]
        cells += [f"{run.seconds:.0f}", *(f"{value:.3f}" for value in run.scores().values())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gains(runs: dict[str, Run]) -> str:
    """What the ImageNet weights are worth, and our settings beside the peer's, as a list."""
    lines = []
    for network in dict.fromkeys(name.split(", ")[0] for name in runs):
        with_, without = (runs[f"{network}, {start}"].scores() for start in STARTS)
        told = (
            f"{100 * (with_[key] - without[key]):+.1f} points of {key}"
            for key in ("pooled Dice", "per-image Dice")
        )
        lines.append(f"- {network}, ImageNet against random weights: {' and '.join(told)}.")
    for start in STARTS if f"{SMP}, {STARTS[0]}" in runs else ():
        mine, theirs = (runs[f"{network}, {start}"] for network in ("U-Net", SMP))
        more = 100 * (mine.scores()["pooled Dice"] - theirs.scores()["pooled Dice"])
        share = mine.seconds / theirs.seconds
        lines.append(
            f"- Our U-Net against smp's, {start} weights: {more:+.1f} points of pooled Dice in "
            f"{share:.2f} of its seconds."
        )
    return "\n".join(lines)


def draw(runs: dict[str, Run]) -> Figure:
    """Pooled Dice of the scored images, at the training's size, by epoch."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    rows = {
        name: [{"epoch": row["epoch"], "pooled Dice": row["score"]} for row in run.history.rows]
        for name, run in runs.items()
    }
    ts.plots.curves(rows, "pooled Dice", x="epoch", ax=figure.subplots())
    return figure


def described(settings: Settings) -> str:
    """The numbers of some settings."""
    return (
        f"{settings.size} px, {settings.epochs} epochs in batches of {settings.batch_size}, "
        f"decoder {'-'.join(map(str, settings.channels))}, AdamW at {settings.learning_rate:g},"
    )


def settings_of(options: argparse.Namespace) -> tuple[Settings, Settings]:
    """Ours and the peer's, as the command line changes them."""
    names = ("size", "epochs", "batch_size", "learning_rate")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    quick = QUICK if options.quick else {}
    return replace(OURS, **{**quick, **given}), replace(STOCK, **quick)


def run(
    name: str,
    options: argparse.Namespace,
    sides: tuple[ts.data.Reader, ts.data.Reader],
    mine: Settings,
    theirs: Settings,
) -> Run:
    """One network on one core, in a process of its own."""
    torch.set_num_threads(1)
    title, start = name.split(", ")
    weights = options.weights if start == STARTS[0] else None
    if title == SMP:
        return train(stock(weights), sides, theirs, loss=peer_loss(), channels_last=False)
    model = ours(ARCHITECTURES[title], weights, mine)
    loss = ts.losses.BCEDiceLoss("binary")
    return train(model, sides, mine, loss=loss, channels_last=True)


def main() -> None:
    """Train with and without weights, score, write."""
    options, begin = arguments(), time.perf_counter()
    sides, (mine, theirs) = parts(options), settings_of(options)
    reading = time.perf_counter() - begin
    titles = (*ARCHITECTURES, SMP) if options.peer else (*ARCHITECTURES,)
    names = [f"{title}, {start}" for title, start in itertools.product(titles, STARTS)]
    names = [name for name in names if options.only in (None, name)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        jobs = {name: pool.submit(run, name, options, sides, mine, theirs) for name in names}
        runs = {name: job.result() for name, job in jobs.items()}
    print(f"\n{table(runs)}\n")
    if not (options.held_out or options.only):
        write(runs, sides, options, reading)


def write(
    runs: dict[str, Run],
    sides: tuple[ts.data.Reader, ts.data.Reader],
    options: argparse.Namespace,
    reading: float,
) -> None:
    """Write the page, the numbers and the curves."""
    mine, theirs = settings_of(options)
    machine = f"one core of a server ({platform.machine()}), torch {torch.__version__}"
    options.folder.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": machine,
        "images": {"train": len(sides[0]), "scored": len(sides[1])},
        "seconds of reading": round(reading, 1),
        "runs": {
            name: {
                "settings": asdict(run.settings),
                "seconds": round(run.seconds, 1),
                "seconds in fit": round(run.history.seconds, 1),
                "scores": run.scores(),
                "all scores": {s: run.counts.scores(s).to_dict() for s in ("pooled", "per_image")},
                "epochs": run.history.rows,
            }
            for name, run in runs.items()
        },
    }
    (options.folder / "kvasir.json").write_text(json.dumps(results, indent=1) + "\n")
    page = PAGE.format(
        flags=" --peer" if options.peer else "", encoder=ENCODER, train=len(sides[0]),
        scored=len(sides[1]), own=sides[1][0].image.shape[0], table=table(runs), gains=gains(runs),
        reading=reading, machine=machine, ours=described(mine),
        peer=PEER.format(stock=described(theirs)) if options.peer else "",
    )  # fmt: skip
    (options.folder / "kvasir.md").write_text(page)
    ts.plots.save(draw(runs), options.folder / "kvasir.png")
    print(f"The page, the numbers and the curves are in {options.folder}/")


if __name__ == "__main__":
    main()
