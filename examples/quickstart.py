"""Few labels, many images: an autoencoder becomes a U-Net. Makes its own data; under 4 minutes.

An autoencoder learns synthetic radiographs without labels. Its encoder and decoder move into a
U-Net, which is fine-tuned on a few labelled radiographs and compared, on radiographs of other
patients, with the same U-Net from random weights.

    python examples/quickstart.py
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

import transferseg as ts

ENCODER = "resnet10t"
DECODER_CHANNELS = (128, 64, 32, 16, 16)
LEARNING_RATE = 1e-3


def loader(
    reader: ts.data.Reader,
    model: ts.Segmenter | ts.Autoencoder,
    batch_size: int,
    indices: tuple[int, ...] | None = None,
    augment: ts.data.Augment | None = None,
) -> DataLoader:
    """Shuffled batches; the model's own spec says how its images are normalised."""
    data = ts.data.PreparedDataset(
        reader, indices, input=model.spec.input, size=reader[0].image.shape[0], augment=augment,
        cache=True,
    )  # fmt: skip
    return DataLoader(data, batch_size=batch_size, shuffle=True)


def pretrain(unlabelled: ts.data.Reader, epochs: int) -> ts.Autoencoder:
    """Train an autoencoder to give its images back."""
    torch.manual_seed(0)
    autoencoder = ts.create_autoencoder(ENCODER, in_channels=1, channels=DECODER_CHANNELS)
    ts.train(
        autoencoder,
        loader(unlabelled, autoencoder, 16),
        loss=ts.losses.ReconstructionLoss(),
        target="image",
        optimizer=lambda model: ts.training.adamw(model, lr=LEARNING_RATE),
        schedule=ts.training.cosine(),
        epochs=epochs,
        channels_last=True,
    )
    return autoencoder


def fine_tune(
    source: ts.Autoencoder | None, labelled: ts.data.Reader, few: tuple[int, ...], epochs: int
) -> tuple[ts.Segmenter, ts.training.History, ts.TransferReport | None]:
    """Train a U-Net on the few labelled images, from the source's weights if there is one."""
    torch.manual_seed(0)
    unet = ts.create_model(
        "unet", ENCODER, classes=labelled.classes, mode=labelled.mode, in_channels=1,
        channels=DECODER_CHANNELS,
    )  # fmt: skip
    report = None
    if source is not None:
        report = ts.transfer_weights(source, unet, parts=("encoder", "decoder"))
        report.raise_if_below(encoder=1.0)
    history = ts.train(
        unet,
        loader(labelled, unet, 4, few, augment=ts.data.merand2021_augmentation()),
        # Some classes are in few images: Dice over the batch, absent classes left to BCE.
        loss=ts.losses.BCEDiceLoss(unet.spec.mode, per_image=False, empty="skip"),
        optimizer=lambda model: ts.training.adamw(model, lr=LEARNING_RATE),
        schedule=ts.training.cosine(),
        epochs=epochs,
        channels_last=True,
    )
    return unet, history, report


def score(unet: ts.Segmenter, test: ts.data.Reader) -> ts.metrics.SegmentationScores:
    """Pooled scores on the test images."""
    counts = ts.metrics.SegmentationCounts(test.classes, mode=test.mode)
    return ts.evaluate(unet, loader(test, unet, 16), metrics=counts)


def table(scores: dict[str, ts.metrics.SegmentationScores]) -> str:
    """Pooled IoU of every class, a column a run."""
    rows = [("pooled IoU", *scores)]
    for name in next(iter(scores.values())).classes:
        rows.append((name, *(f"{run.iou[name]:.3f}" for run in scores.values())))
    rows.append(("mean", *(f"{run.mean_iou:.3f}" for run in scores.values())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def draw(models: dict[str, ts.Segmenter], test: ts.data.Reader, path: Path) -> Path:
    """Overlays of three test images: a row an image, a column a model."""
    figure = Figure(figsize=(4 * len(models), 12), layout="constrained")
    axes = figure.subplots(3, len(models), squeeze=False)
    for row, index in zip(axes, (0, len(test) // 2, len(test) - 1), strict=True):
        sample = test[index]
        for ax, (name, model) in zip(row, models.items(), strict=True):
            mask = ts.predict(model, sample.image)
            ts.plots.overlay(sample.image, mask, truth=sample.mask, classes=test.classes, ax=ax)
            ax.set_title(f"{sample.id}, {name}")
            if ax is not row[-1]:
                ax.get_legend().remove()
    return ts.plots.save(figure, path)


def main() -> None:
    """Run the comparison and write pictures, models and the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("quickstart_results"))
    parser.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    parser.add_argument("--unlabelled", type=int, default=300, help="images without labels")
    parser.add_argument("--labelled", type=int, default=8, help="images with masks")
    parser.add_argument("--pretrain-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    start = time.perf_counter()

    world = ts.data.SyntheticRadiographs
    unlabelled = world(options.unlabelled, size=options.size, seed=1, task="images")
    labelled = world(max(40, 2 * options.labelled), size=options.size, seed=2)
    test = world(100, size=options.size, seed=3)
    everyone = range(len(labelled))
    few = ts.data.few(everyone, options.labelled, labelled.groups, seed=0)

    print(f"1. An autoencoder learns {len(unlabelled)} unlabelled images")
    autoencoder = pretrain(unlabelled, options.pretrain_epochs)
    print(f"2. A U-Net learns {len(few)} labelled images, from random weights")
    scratch, scratch_history, _ = fine_tune(None, labelled, few, options.epochs)
    print("3. The same U-Net, from the autoencoder's encoder and decoder")
    moved, moved_history, report = fine_tune(autoencoder, labelled, few, options.epochs)

    models = {"random": scratch, "autoencoder": moved}
    scores = {name: score(model, test) for name, model in models.items()}
    options.folder.mkdir(parents=True, exist_ok=True)
    moved.save_pretrained(options.folder / "unet", transfer=report)
    draw(models, test, options.folder / "overlays.png")
    curves = {"random": scratch_history.rows, "autoencoder": moved_history.rows}
    ts.plots.save(ts.plots.curves(curves, "loss"), options.folder / "curves.png")

    print(f"\n{report}\n")
    print(f"{len(test)} test images of other patients; the U-Net began with:")
    print(table(scores))
    print(f"\nPictures, the model and its transfer report are in {options.folder}/")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
