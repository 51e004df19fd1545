"""Folds over the processes there are; their sizes are odd, and one holds out a single image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from tests.training.tiny import (
    OPTIMIZER,
    Accuracy,
    Cohort,
    TermsLoss,
    darker,
    net,
    prepared,
    rotate,
    same,
    weights,
)
from transferseg.data import Fold
from transferseg.training import cosine, cross_validate

IMAGES = 11
#: Whole patients each: see `Cohort`.
HELD_OUT = ((0, 1, 2, 3, 4), (5,), (6, 7, 8), (9, 10))


class Looking(Accuracy):
    """Counts that note the weights that they are about to score."""

    model: nn.Module | None = None  # of the class: neither copied nor sent with the counts
    seen: list[list[float]]

    def reset(self):
        super().reset()
        if self.model is not None:
            Looking.seen.append(_values(self.model))


def _values(model: nn.Module) -> list[float]:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def _data(log: list) -> dict[str, Any]:
    return {
        "data": prepared(Cohort(IMAGES, name="trained", log=log), augment=darker),
        "validation": prepared(Cohort(IMAGES, name="scored", log=log)),
    }


def _read(log: list, name: str) -> list[int]:
    return [index for who, index in log if who == name]


def crossed(folder: Path, accelerator: Accelerator, *, resume: bool = False) -> dict[str, Any]:
    """A cross-validation that is kept in a folder, or one that is gone on with there."""
    model, log = net(4 if resume else 0), []
    before, data = weights(model), _data(log)
    metrics = Looking()
    Looking.model, Looking.seen = model, []
    every = set(range(IMAGES))
    result = cross_validate(
        model,
        data["data"],
        data["validation"],
        folds=[Fold(tuple(sorted(every - set(held_out))), held_out) for held_out in HELD_OUT],
        batch_size=2,
        loss=TermsLoss(),
        epochs=2,
        metrics=metrics,
        optimizer=OPTIMIZER,
        schedule=cosine(),
        accelerator=accelerator,
        folder=folder / f"crossed-{accelerator.num_processes}",
        resume=resume,
        progress=False,
    )
    Looking.model = None
    return {
        "weights": Looking.seen,
        "counts": [int(result.counts["scores"].right), int(result.counts["scores"].all)],
        "scores": result.scores,
        "fold scores": result.fold_scores,
        "losses": [[row["loss"] for row in history.rows] for history in result.histories],
        "handed back": same(before, weights(model)),
        "scored": _read(log, "scored"),
        "trained": _read(log, "trained"),
    }


def turned(accelerator: Accelerator) -> dict[str, Any]:
    """Rotating folds; the counts of the last epoch are left in the metric, each process's own."""
    model, log, counts = net(), [], Accuracy()
    history = rotate(model, metrics=counts, accelerator=accelerator, epochs=2, **_data(log))
    return {
        "weights": _values(model),
        "own": [int(counts.right), int(counts.all)],
        "scores": [[row["score"], row["loss"], row["validation_loss"]] for row in history.rows],
        "scored": _read(log, "scored"),
    }
