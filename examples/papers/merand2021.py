"""Merand & Klein 2021, "Relevant 2-Step Pretraining": the whole grid of its Table 3.

    python examples/papers/merand2021.py --data FOLDER              # as published
    python examples/papers/merand2021.py --data FOLDER --reduced    # minutes on two CPU cores

As published, FOLDER holds `CheXpert-v1.0-small/`, `siim-covid19/` (the Kaggle competition's CSVs
and images) and `ccxs/`; `--imagenet` adds the column of ImageNet weights (timm downloads them).
Reduced, it holds `nih_cxr14/` (in CheXpert's place), `covid_lung_boxes/` (in SIIM's) and `ccxs/`.
Interrupted, it goes on where it stood when it is started again. Writes table.md, cells.csv,
cells.json, unet_random.png, deeplabv3_random.png and every stage with its lineage.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import torch

import transferseg as ts

# CCXS and the lung boxes number the patients of one and the same collection
COVID = "covid-chestxray-dataset"
# what the paper says of training, and what it leaves open
PAPER = ts.training.merand2021()


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("TRANSFERSEG_DATA")
    parser.add_argument("--data", type=Path, default=data, help="or set TRANSFERSEG_DATA")
    parser.add_argument("--folder", type=Path, default=Path("merand2021_results"))
    parser.add_argument("--reduced", action="store_true", help="small data, encoders and images")
    parser.add_argument("--imagenet", action="store_true", help="also begin with ImageNet weights")
    parser.add_argument("--backbones", nargs="+", help="of timm")
    parser.add_argument("--architectures", nargs="+", default=["unet", "deeplabv3"])
    parser.add_argument("--pretrainings", nargs="+", default=list(ts.study.PRETRAININGS))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--size", type=int, help="side of the images in pixels")
    parser.add_argument("--images", type=int, help="of each pretraining step, at most")
    parser.add_argument("--epochs", type=int, help="of the target stage: rounds of nine runs")
    parser.add_argument("--precision", default="no", choices=["no", "bf16", "fp16"])
    options = parser.parse_args()
    if options.data is None:
        parser.error("say where the data are: --data FOLDER, or TRANSFERSEG_DATA")
    small = options.reduced
    defaults = {
        "backbones": ["resnet10t", "vgg11"] if small else ["vgg16", "resnet50", "resnext50_32x4d"],
        "seeds": [0, 1] if small else [0, 1, 2],
        "size": 80 if small else PAPER.size,
        "epochs": 2 if small else PAPER.epochs,
        "images": 400 if small else None,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def target(options: argparse.Namespace) -> ts.StageData:
    """CCXS: ten test images in which every category but pneumothorax is, the others in rotation."""
    ccxs = ts.data.CCXS(options.data / "ccxs")
    test = ts.data.choose_covering(
        ccxs.presence, 10, classes=ccxs.classes, groups=ccxs.groups, leave=["Pneumothorax"], seed=0
    )
    rest = tuple(index for index in range(len(ccxs)) if index not in test)
    return ts.StageData(
        ts.data.InMemory(ccxs, size=options.size),  # read once for all stages
        {"train": rest, "test": test},
        options.size,
        augment=PAPER.augment,
        folds=PAPER.folds,
        name="CCXS",
        patients=COVID,
    )


def pretraining(
    reader: ts.data.Reader,
    options: argparse.Namespace,
    name: str,
    *,
    patients: str = "",
    augment: bool = False,
) -> ts.StageData:
    """A data set split 70:15:15 by patient, of which at most `--images` are taken."""
    parts = ts.data.split_by_group(reader.groups, seed=0)
    share = 1.0 if options.images is None else min(1.0, options.images / len(reader))
    parts = {
        part: ts.data.few(indices, max(1, round(share * len(indices))), reader.groups, seed=0)
        for part, indices in parts.items()
    }
    if options.reduced:
        kept = sorted(index for indices in parts.values() for index in indices)
        reader = ts.data.InMemory(reader, size=options.size, indices=kept)
        place = {index: position for position, index in enumerate(kept)}
        parts = {part: [place[index] for index in indices] for part, indices in parts.items()}
    return ts.StageData(
        reader,
        parts,
        options.size,
        augment=PAPER.augment if augment else None,
        name=name,
        patients=patients,
        read_contents=options.reduced,  # CheXpert alone would be hours of reading
        cache=options.reduced,
    )


def chains(options: argparse.Namespace) -> ts.TwoStep:
    """The paper's steps on the data that there are."""
    folder = options.data
    if options.reduced:
        labels = ts.data.NIHChestXray14(folder / "nih_cxr14", partial=True)
        boxes = ts.data.COCOBoxes(
            folder / "covid_lung_boxes", groups="metadata.csv", name_column="filename",
            group_column="patientid", invalid="skip",  # four images have no line there
        )  # fmt: skip
        names, batch, workers, least = ("NIH ChestX-ray14", "COVID-19 lung boxes"), 8, 0, 2
    else:
        labels = ts.data.CheXpert(folder / "CheXpert-v1.0-small")
        # as the paper reads it: what has no box has no abnormality
        boxes = ts.data.SIIMCovid19(folder / "siim-covid19", without_boxes="all")
        names, batch, workers, least = ("CheXpert", "SIIM-FISABIO-RSNA"), PAPER.batch_size, 8, 50
    recipe = ts.TrainingRecipe.of(
        PAPER, epochs=least, batch_size=batch, workers=workers, channels_last=True,
        patience=None if options.reduced else PAPER.patience, precision=options.precision,
    )  # fmt: skip
    labelled = pretraining(labels, options, names[0])
    imagenet = ts.study.Initial(dict.fromkeys(options.backbones, "default"))
    return ts.TwoStep(
        target=target(options),
        boxes=pretraining(
            boxes, options, names[1], patients=COVID if options.reduced else "", augment=True
        ),
        labels=labelled,
        images=labelled,
        training={
            "classifier": recipe,
            "autoencoder": recipe,
            "boxes": recipe,
            "target": recipe.replace(epochs=options.epochs, workers=0),
        },
        initial={"ImageNet": imagenet} if options.imagenet else {},
        tasks={"classifier": ts.tasks.Classify(score="exact_match")},
        # DeepLabV3 at stride 16 for minutes on a CPU; the paper's library has 8
        output_stride={"deeplabv3": 16} if options.reduced else {},
        options={"unet": {"channels": (128, 64, 32, 16, 16)}} if options.reduced else {},
        pretraining_seed=0 if options.reduced else None,
    )


def draw(table: ts.study.StudyTable, options: argparse.Namespace) -> None:
    """Bars as the paper's Figures 4 and 5: a picture for each architecture and initialisation."""
    for architecture in options.architectures:
        for start in ["random", *(["ImageNet"] if options.imagenet else [])]:
            where = {"architecture": architecture, "initialisation": start}
            if not any(row.values for row in table.rows if where.items() <= row.axes.items()):
                continue  # nothing of it has been scored
            axes = table.bars("backbone", ("pretraining", "parts"), where=where)
            axes.set_title(f"{architecture}, {start}: pooled mean IoU (%) on the test images")
            ts.plots.save(axes, options.folder / f"{architecture}_{start}.png")


def main() -> None:
    """Build the grid, run it, write the table and the bars."""
    options, start = arguments(), time.perf_counter()
    study = ts.Study.grid(
        chains(options).stage,
        pretraining=options.pretrainings,
        parts=["encoder", "both"],
        initialisation=["random", *(["ImageNet"] if options.imagenet else [])],
        architecture=options.architectures,
        backbone=options.backbones,
        seed=options.seeds,
    )
    print(f"{len(study.cells)} cells, {len(study.stages)} stages to train once each")
    result = ts.run_study(study, options.folder / "stages")
    table = result.table(percent=True)
    table.write(options.folder)
    print(table.to_markdown(rows=("backbone", "pretraining"),
                            columns=("architecture", "parts", "initialisation")))  # fmt: skip
    draw(table, options)
    seconds = time.perf_counter() - start
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}"
    print(f"{seconds:.0f} s on {machine}; everything is in {options.folder}/")
    result.raise_if_failed()


if __name__ == "__main__":
    main()
