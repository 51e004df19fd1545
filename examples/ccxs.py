"""Few labelled X-rays: autoencoder on NIH ChestX-ray14, then U-Net on CCXS, against no pretraining.

    python examples/ccxs.py --data FOLDER [--peer]

FOLDER holds `nih_cxr14/` (images and Data_Entry_2017.csv of NIH ChestX-ray14, or a part of it) and
`ccxs/` (COVID-19 Chest X-ray Segmentations as published: images, masks, structure.csv,
metadata.csv). Writes table.md, results.json, curves.png, overlays.png and the model. With --peer a
U-Net of segmentation-models-pytorch, as it comes, is trained on the same images beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

import transferseg as ts
from transferseg.metrics import SegmentationCounts, SegmentationScores

Parts = dict[str, tuple[int, ...]]
# Half of the usual widths: 56 images do not fill more, and two CPU cores are enough.
DECODER_CHANNELS = (128, 64, 32, 16, 16)


@dataclass(frozen=True)
class Run:
    """A trained U-Net, the side of its images, and how it did."""

    model: torch.nn.Module
    size: int
    history: ts.training.History
    scores: SegmentationScores


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("TRANSFERSEG_DATA")
    parser.add_argument("--data", type=Path, default=default, help="or set TRANSFERSEG_DATA")
    parser.add_argument("--folder", type=Path, default=Path("ccxs_results"))
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=192, help="side of the images in pixels")
    parser.add_argument("--pretrain-images", type=int, default=None, help="default: all")
    parser.add_argument("--pretrain-epochs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=45)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1, help="of the split and of all trainings")
    parser.add_argument("--peer", action="store_true", help="train smp's own U-Net as well")
    parser.add_argument("--peer-size", type=int, default=224)
    parser.add_argument("--peer-epochs", type=int, default=40)
    options = parser.parse_args()
    if options.data is None:
        parser.error("say where the data are: --data FOLDER, or TRANSFERSEG_DATA")
    return options


def batches(
    reader: ts.data.Reader,
    indices: Sequence[int],
    model: torch.nn.Module,
    *,
    size: int,
    seed: int,
    augment: bool,
    batch_size: int,
) -> DataLoader:
    """Shuffled batches; images are decoded and resized once."""
    data = ts.data.PreparedDataset(
        reader, indices, input=model.spec.input, size=size, cache=True, seed=seed,
        augment=ts.data.merand2021_augmentation() if augment else None,
    )  # fmt: skip
    return DataLoader(data, batch_size=batch_size, shuffle=True)


def check_leaks(ccxs: ts.data.CCXS, parts: Parts, unlabelled: ts.data.Reader) -> None:
    """No patient and no image on two sides, the pretraining images included."""
    groups = [f"ccxs {group}" for group in ccxs.groups]
    groups += [f"nih {group}" for group in unlabelled.groups]
    hashes = (*ts.data.content_hashes(ccxs), *ts.data.content_hashes(unlabelled))
    pretraining = tuple(range(len(ccxs), len(ccxs) + len(unlabelled)))
    ts.data.check_no_leak({**parts, "pretraining": pretraining}, groups, hashes=hashes)


def pretrain(unlabelled: ts.data.Reader, options: argparse.Namespace) -> ts.Autoencoder:
    """An autoencoder of the unlabelled radiographs."""
    torch.manual_seed(options.seed)
    autoencoder = ts.create_autoencoder(options.encoder, in_channels=1, channels=DECODER_CHANNELS)
    every = range(len(unlabelled))[: options.pretrain_images]
    ts.train(
        autoencoder,
        batches(
            unlabelled,
            every,
            autoencoder,
            size=options.size,
            seed=options.seed,
            augment=True,
            batch_size=16,
        ),
        loss=ts.losses.ReconstructionLoss(),
        target="image",
        optimizer=partial(ts.training.adamw, lr=options.learning_rate),
        schedule=ts.training.cosine(warmup_steps=20),
        epochs=options.pretrain_epochs,
        seed=options.seed,
        channels_last=True,
    )
    return autoencoder


def unet(
    ccxs: ts.data.CCXS, source: ts.Autoencoder | None, options: argparse.Namespace
) -> tuple[ts.Segmenter, ts.TransferReport | None]:
    """The U-Net of both trainings, from the source's weights if there is one."""
    torch.manual_seed(options.seed)
    model = ts.create_model(
        "unet", options.encoder, classes=ccxs.classes, mode=ccxs.mode, in_channels=1,
        channels=DECODER_CHANNELS,
    )  # fmt: skip
    if source is None:
        return model, None
    report = ts.transfer_weights(source, model, parts=("encoder", "decoder"))
    report.raise_if_below(encoder=1.0)
    return model, report


def peer(ccxs: ts.data.CCXS, options: argparse.Namespace) -> torch.nn.Module:
    """segmentation-models-pytorch's U-Net with its own decoder widths, from random weights."""
    torch.manual_seed(options.seed)
    model = smp.Unet(
        options.encoder, encoder_weights=None, in_channels=1, classes=len(ccxs.classes)
    )
    # What the loop needs to know of any model: its classes and what its input is.
    model.spec = ts.ModelSpec(
        "unet", options.encoder, ccxs.classes, ccxs.mode, input=ts.InputSpec(channels=1)
    )
    return model


def segment(
    model: torch.nn.Module,
    ccxs: ts.data.CCXS,
    parts: Parts,
    options: argparse.Namespace,
    *,
    size: int,
    epochs: int,
) -> Run:
    """Train on CCXS; the best epoch on validation counts."""
    loaders = {
        name: batches(
            ccxs, indices, model,
            size=size, seed=options.seed, augment=name == "train", batch_size=4,
        )
        for name, indices in parts.items()
    }  # fmt: skip
    counts = SegmentationCounts(ccxs.classes, mode=ccxs.mode)
    history = ts.train(
        model,
        loaders["train"],
        loaders["validation"],
        # Most categories are absent from most images: Dice over the batch, absent ones left to BCE.
        loss=ts.losses.BCEDiceLoss(ccxs.mode, per_image=False, empty="skip"),
        metrics=counts,
        score="mean_iou",
        restore_best=True,
        optimizer=partial(ts.training.adamw, lr=options.learning_rate),
        schedule=ts.training.cosine(warmup_steps=20),
        epochs=epochs,
        seed=options.seed,
        channels_last=True,
    )
    counts.reset()
    return Run(model, size, history, ts.evaluate(model, loaders["test"], metrics=counts))


def table(runs: dict[str, Run]) -> str:
    """Pooled IoU on the test part, a row a category, as Markdown."""
    lines = ["| category | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    first = next(iter(runs.values())).scores
    for name in first.present:
        values = " | ".join(f"{run.scores.iou[name]:.3f}" for run in runs.values())
        lines.append(f"| {name} | {values} |")
    means = " | ".join(f"**{run.scores.mean_iou:.3f}**" for run in runs.values())
    lines.append(f"| **mean of the {len(first.present)} present** | {means} |")
    return "\n".join(lines)


def draw(runs: dict[str, Run], ccxs: ts.data.CCXS, test: Sequence[int]) -> Figure:
    """Lungs and findings of three test images: a row an image, a column a model."""
    figure = Figure(figsize=(5 * len(runs) + 2, 13), layout="constrained")
    for row, index in zip(figure.subplots(3, len(runs)), test[:: len(test) // 3], strict=False):
        sample = ccxs[index]
        for ax, (name, run) in zip(row, runs.items(), strict=True):
            mask = ts.predict(run.model, sample.image, size=run.size)
            shown = [ccxs.classes.index(c) for c in ccxs.classes if c not in ("Airways",)][:7]
            ts.plots.overlay(
                sample.image, mask[..., shown], truth=sample.mask[..., shown],
                classes=[ccxs.classes[c] for c in shown], ax=ax,
            )  # fmt: skip
            ax.set_title(name)
            if ax is not row[-1] and ax.get_legend():
                ax.get_legend().remove()
    return figure


def main() -> None:
    """Pretrain, train with and without, score, write."""
    options, start = arguments(), time.perf_counter()
    ccxs = ts.data.CCXS(options.data / "ccxs")
    unlabelled = ts.data.NIHChestXray14(options.data / "nih_cxr14", partial=True)
    parts = ts.data.split_by_group(
        ccxs.groups,
        {"train": 0.65, "validation": 0.15, "test": 0.2},
        seed=options.seed,
        stratify=ccxs.presence,
    )
    check_leaks(ccxs, parts, unlabelled)
    print({name: f"{len(indices)} images" for name, indices in parts.items()})

    ours = partial(
        segment, ccxs=ccxs, parts=parts, options=options, size=options.size, epochs=options.epochs
    )
    autoencoder = pretrain(unlabelled, options)
    moved, report = unet(ccxs, autoencoder, options)
    runs = {"random weights": ours(unet(ccxs, None, options)[0]), "autoencoder": ours(moved)}
    seconds = time.perf_counter() - start
    if options.peer:
        runs["smp, random weights"] = segment(
            peer(ccxs, options), ccxs, parts, options,
            size=options.peer_size, epochs=options.peer_epochs,
        )  # fmt: skip

    options.folder.mkdir(parents=True, exist_ok=True)
    moved.save_pretrained(options.folder / "unet", transfer=report)
    (options.folder / "table.md").write_text(table(runs) + "\n")
    results = {
        "options": {k: str(v) for k, v in vars(options).items() if k not in ("data", "folder")},
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}",
        "images": {name: len(indices) for name, indices in parts.items()},
        "seconds without peer": round(seconds),
        "seconds of training": {name: round(run.history.seconds) for name, run in runs.items()},
        "scores": {name: run.scores.to_dict() for name, run in runs.items()},
        "best epoch": {name: run.history.best_epoch for name, run in runs.items()},
    }
    (options.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    curves = {name: run.history.rows for name, run in runs.items()}
    ts.plots.save(ts.plots.curves(curves, "validation_mean_iou"), options.folder / "curves.png")
    figure = draw(runs, ccxs, parts["test"])
    ts.plots.save(figure, options.folder / "overlays.png", dpi=60)

    print(f"\n{report}\n\nPooled IoU on {len(parts['test'])} test images of other patients:\n")
    print(table(runs))
    print(f"\nPictures, results and the model are in {options.folder}/ ({seconds:.0f} s)")


if __name__ == "__main__":
    main()
