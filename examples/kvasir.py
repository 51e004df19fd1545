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
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from kvasir_page import PAGE, PEER
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

import transferseg as ts
from transferseg.metrics import SegmentationCounts

ENCODER = "mobilenetv2_035"
# Of the weights: TensorFlow's padding, its epsilon in batch norm, images from -1 to 1.
ARGUMENTS = {"pad_type": "same", "bn_eps": 1e-3}
INPUT = ts.InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
STARTS = ("ImageNet", "random")
ARCHITECTURES = {"U-Net": "unet", "Attention U-Net": "attention_unet"}
SMP = "U-Net of smp"
SEED = 0


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
        size: side of the images in pixels.
        epochs: passes over the training images.
        batch_size: images an update.
        learning_rate: of AdamW, the highest.
        warmup: updates until it is reached; then a cosine down to 0.
        augment: whether images are reflected, turned, zoomed and recoloured.
        channels: of the decoder's blocks, deep to shallow.
    """

    size: int
    epochs: int
    batch_size: int
    learning_rate: float
    warmup: int
    augment: bool
    channels: tuple[int, ...]


OURS = Settings(192, 10, 4, 2e-3, 100, augment=True, channels=(96, 64, 32, 16, 8))
STOCK = Settings(160, 8, 8, 1e-3, 0, augment=False, channels=(256, 128, 64, 32, 16))
QUICK = {"size": 64, "epochs": 2, "warmup": 2}


@dataclass(frozen=True)
class Run:
    """A trained network, how it was trained, and how it did."""

    settings: Settings  # its `seconds` are the processor's, of one core
    history: ts.training.History
    seconds: float
    counts: SegmentationCounts

    def scores(self) -> dict[str, float]:
        """IoU and Dice of the one class, pooled and as the mean over images."""
        return {
            f"{said} {name}": getattr(self.counts.scores(scheme), f"mean_{key}")
            for scheme, said in (("pooled", "pooled"), ("per_image", "per-image"))
            for name, key in (("IoU", "iou"), ("Dice", "dice"))
        }


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


def ours(architecture: str, weights: Path | None, settings: Settings) -> torch.nn.Module:
    """Our network; with weights, its feature maps are those of the weights' own model."""
    torch.manual_seed(SEED)
    model = ts.create_model(
        architecture, ENCODER, classes=["polyp"], input_spec=INPUT, weights=weights,
        encoder_options={"arguments": ARGUMENTS}, channels=settings.channels,
    )  # fmt: skip
    if weights is not None:
        check_features(model, weights)
    return model


def original(weights: Path) -> torch.nn.Module:
    """The model that the weights were written for."""
    model = timm.create_model(ENCODER, num_classes=0, **ARGUMENTS)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def check_features(model: torch.nn.Module, weights: Path) -> None:
    """The encoder's feature maps must equal the original's to the last bit."""
    image = torch.rand(1, 3, 97, 130, generator=torch.Generator().manual_seed(SEED)) * 2 - 1
    with ts.training.evaluation_mode(model), torch.inference_mode():
        expected = original(weights).forward_intermediates(image, intermediates_only=True)
        for mine, theirs in zip(model.encoder(image), expected, strict=True):
            if not torch.equal(mine, theirs):
                raise SystemExit("the encoder does not compute what its weights were made for")


def stock(weights: Path | None) -> torch.nn.Module:
    """segmentation-models-pytorch's U-Net as it comes, over the same encoder."""
    torch.manual_seed(SEED)
    model = smp.Unet(f"tu-{ENCODER}", encoder_weights=None, classes=1, **ARGUMENTS)
    if weights is not None:
        own = model.encoder.model.state_dict()
        given = original(weights).state_dict()
        model.encoder.model.load_state_dict({name: given[name] for name in own})
    # What the loop needs to know of any model: its classes and what its input is.
    model.spec = ts.ModelSpec("unet", ENCODER, ["polyp"], "binary", input=INPUT)
    return model


def peer_loss() -> Callable[[Tensor, Tensor], Tensor]:
    """The Dice of smp and torch's cross-entropy."""
    dice = smp.losses.DiceLoss("binary")
    return lambda logits, mask: (
        dice(logits, mask) + F.binary_cross_entropy_with_logits(logits, mask.float())
    )


def transforms() -> list[Any]:
    """What an endoscope does: any way up, nearer or farther."""
    import albumentations as A
    import cv2

    return [
        A.VerticalFlip(p=0.5),
        A.Affine(scale=(0.9, 1.15), rotate=(-20, 20), border_mode=cv2.BORDER_REFLECT_101, p=0.5),
    ]


def train(
    model: torch.nn.Module,
    sides: tuple[ts.data.Reader, ts.data.Reader],
    settings: Settings,
    *,
    loss: ts.training.Loss,
    channels_last: bool,
) -> Run:
    """Train for the whole budget, score the last epoch; nothing is chosen by the scores."""
    augmentation = ts.data.Augmentation(transforms, reflect=0.5)
    loaders = [
        DataLoader(
            ts.data.PreparedDataset(
                reader, input=INPUT, size=settings.size, seed=SEED, cache=True,
                augment=augmentation if settings.augment and index == 0 else None,
            ),
            batch_size=settings.batch_size, shuffle=index == 0,
        )
        for index, reader in enumerate(sides)
    ]  # fmt: skip
    counts = SegmentationCounts(["polyp"], mode="binary")
    begin = time.process_time()
    history = ts.train(
        model,
        *loaders,
        loss=loss,
        metrics=counts,
        score="mean_dice",
        optimizer=partial(ts.training.adamw, lr=settings.learning_rate),
        schedule=ts.training.cosine(warmup_steps=settings.warmup) if settings.warmup else None,
        epochs=settings.epochs,
        seed=SEED,
        channels_last=channels_last,
    )
    seconds = time.process_time() - begin
    return Run(settings, history, seconds, counted(model, sides[1], settings.size))


def counted(model: torch.nn.Module, reader: ts.data.Reader, size: int) -> SegmentationCounts:
    """Pixels right and wrong of every image at its own size, whatever the network saw."""
    counts = SegmentationCounts(["polyp"], mode="binary")
    for index in range(len(reader)):
        sample = reader[index]
        mask = ts.predict(model, sample.image, size=size)
        counts.update_masks(*(torch.from_numpy(m)[None, None] for m in (mask, sample.mask)))
    return counts


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
