"""Tiny stages over synthetic radiographs, and tasks that can be watched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from transferseg.data import SyntheticRadiographs, split_by_group
from transferseg.losses import BCEDiceLoss
from transferseg.spec import ModelSpec
from transferseg.stages import ModelRecipe, Stage, StageData, TrainingRecipe
from transferseg.stages.describe import describe_value, key_of
from transferseg.stages.tasks import Classify, Reconstruct, Segment
from transferseg.training import Loss, adamw

MODEL = ModelRecipe("test_resnet", in_channels=1)
RECIPE = TrainingRecipe(epochs=2, batch_size=4, channels_last=False)
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def reader(seed: int = 0, task: str = "segment") -> SyntheticRadiographs:
    return SyntheticRadiographs(12, size=48, seed=seed, task=task)


def data(seed: int = 0, *, task: str = "segment", **changes) -> StageData:
    scenes = reader(seed, task)
    parts = split_by_group(scenes.groups, SHARES, seed=0)
    options = {"reader": scenes, "parts": parts, "size": 32, "name": f"world {seed}", **changes}
    return StageData(**options)


def autoencoder(**changes) -> Stage:
    options = {"task": Reconstruct(), "data": data(1), "model": MODEL, "training": RECIPE}
    return Stage("autoencoder", **{**options, **changes})


def classifier(**changes) -> Stage:
    options = {
        "task": Classify(),
        "data": data(1, task="classify"),
        "model": MODEL,
        "training": RECIPE,
    }
    return Stage("classifier", **{**options, **changes})


def unet(**changes) -> Stage:
    options = {"task": Segment(), "data": data(0), "model": MODEL, "training": RECIPE}
    return Stage(**{"name": "unet", **options, **changes})


def chain() -> Stage:
    """Autoencoder -> U-Net on other classes of the same images -> U-Net."""
    first = autoencoder()
    both = ("encoder", "decoder")
    middle = unet(name="middle", data=data(2), parent=first, parts=both, seed=3)
    return unet(parent=middle, parts=both)


def shapeless(output: Tensor, target: Tensor) -> Tensor:
    """A loss that is none: it forgets to reduce."""
    return output - target


class Stopped(RuntimeError):
    """What a watched loss raises."""


@dataclass
class Watched:
    """A loss that writes a line a call, and stops the training at one of them."""

    loss: Loss
    log: Path
    name: str
    stop_at: int | None = None

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        if logits.requires_grad:
            with self.log.open("a") as file:
                file.write(f"{self.name}\n")
            failing = self.name == "middle" and (self.log.parent / "stop").exists()
            if failing or self.stop_at == len(self.log.read_text().splitlines()):
                raise Stopped(f"in {self.name}")
        return self.loss(logits, target)

    def describe(self) -> str:
        return self.name


@dataclass(frozen=True)
class WatchedSegment(Segment):
    """Segment, with every training batch written to a file."""

    log: Path | None = None
    stop_at: int | None = None
    title: str = "segment"

    def make_loss(self, spec: ModelSpec) -> Loss:
        assert self.log is not None
        return Watched(super().make_loss(spec), self.log, self.title, self.stop_at)

    def describe(self) -> str:
        return self.title


def write_a_key(path: Path) -> None:
    """The key of some settings, a set among them, and the order that the set has here."""
    letters = set("abcdefghijklmnopqrstuvwxyz")
    settings = [BCEDiceLoss("binary"), partial(adamw, lr=1e-3), letters]
    found = {"key": key_of(describe_value(settings)), "order": list(letters)}
    path.write_text(json.dumps(found))
