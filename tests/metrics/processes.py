"""Scores of every streaming metric over nine images, by one process or by several."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from tests.metrics.kinds import KINDS, batch
from transferseg.spec import InputSpec, ModelSpec
from transferseg.training import evaluate

MODES = {"index": "multiclass", "mask": "multilabel", "label": "multilabel", "image": "multilabel"}


class Given(nn.Module):
    """A model whose logits are its images: nothing to be computed differently by two."""

    def __init__(self, classes: int, mode: str) -> None:
        super().__init__()
        names = [f"c{k}" for k in range(classes)]
        mode = "binary" if classes == 1 else mode
        self.spec = ModelSpec("unet", "none", names, mode, input=InputSpec(channels=classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The image, or the logits of labels, which are images of one pixel."""
        return image.flatten(1) if image.shape[2:] == (1, 1) else image


def scores_of(name: str, size: int, accelerator: Accelerator) -> tuple[str, int]:
    """The scores as text, to the last digit, and how many images this process counted."""
    build, (what, classes) = KINDS[name]
    logits, target = batch(name, images=9)
    if what in ("index", "mask"):
        target = target.masked_fill(target == 255, 0)
    if what == "label":
        logits = logits[:, :, None, None]
    key = {"index": "mask"}.get(what, what)
    given = [
        {"image": x, key: x if what == "image" else y} for x, y in zip(logits, target, strict=True)
    ]
    metric = build()
    found = evaluate(
        Given(classes, MODES[what]),
        DataLoader(given, batch_size=size),
        metrics=metric,
        accelerator=accelerator,
        target=key,
    )
    return str(found.__dict__), len(metric.rows)


def all_scores(size: int, accelerator: Accelerator) -> dict[str, tuple[str, int]]:
    """Of every metric; see `scores_of`."""
    return {name: scores_of(name, size, accelerator) for name in KINDS}
