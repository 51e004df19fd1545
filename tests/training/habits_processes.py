"""The habits around `fit` over the processes there are; only one of them has a spoiled image."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset

from tests.training.tiny import TIMES, TermsLoss, loader, net, samples
from transferseg.errors import TrainingError
from transferseg.training import (
    EMA,
    BestCheckpoints,
    EpochEvent,
    JSONLLogger,
    TrainState,
    event_row,
    fit,
    sgd,
    train,
    with_progress,
)


def spoiled(batch: int, accelerator: Accelerator) -> list[str]:
    """What is said of a last update that is not finite: of an epoch, of a run within one."""
    texts = []
    for number, end in ((10, {"epochs": 1}), (6, {"steps": 2})):
        data = samples(12)
        data[number]["image"] = torch.full_like(data[number]["image"], float("nan"))
        state = TrainState.prepare(
            net(0, norm=False, dropout=0.0), optimizer=partial(sgd, lr=0.1), accelerator=accelerator
        )
        try:
            list(fit(state, DataLoader(data, batch_size=batch), loss=TermsLoss(), **end))
        except TrainingError as error:
            texts.append(str(error))
        accelerator.free_memory()
    return texts


def unshared(accelerator: Accelerator) -> str:
    """What is said, before the first update, of validation images that two could not share."""
    try:
        train(
            net(0, norm=False, dropout=0.0), loader(4), DataLoader(Stream(), batch_size=2),
            loss=_begun, epochs=1, accelerator=accelerator, progress=False,
        )  # fmt: skip
    except (TrainingError, AssertionError) as error:
        return str(error)
    finally:
        accelerator.free_memory()
    return ""


class Stream(IterableDataset):
    def __iter__(self):
        return iter(samples(4))


def _begun(*_):
    raise AssertionError("it has begun to train")


def habits(folder: Path, batch: int, accelerator: Accelerator) -> dict[str, Any]:
    data = samples(12)
    data[6]["image"] = torch.full_like(data[6]["image"], float("nan"))
    state = TrainState.prepare(
        net(0, norm=False, dropout=0.0), optimizer=partial(sgd, lr=0.1), accelerator=accelerator
    )
    ema = EMA(state, decay=0.5)
    here = folder / f"habits-{accelerator.num_processes}"
    best, log = BestCheckpoints(here / "best", 1), JSONLLogger(here / "log.jsonl", state)
    rows = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = DataLoader(data, batch_size=batch)
        events = fit(state, batches, loss=TermsLoss(), epochs=2, skip_nonfinite=1)
        for event in with_progress(events, state, epochs=2):
            if isinstance(event, EpochEvent):
                row = {k: v for k, v in event_row(event).items() if k not in TIMES}
                log.write(row)
                rows.append({**row, "images": event.images})
                with ema.applied():
                    best.update(state, event.epoch)
    accelerator.wait_for_everyone()
    tensors = [*state.unwrapped.parameters(), *ema.averaged.module.parameters()]
    return {
        "rows": rows,
        "weights": torch.cat([tensor.detach().flatten() for tensor in tensors]).tolist(),
        "texts": [str(one.message) for one in caught if "update" in str(one.message)],
        "kept": [one.name for one in best.checkpoints],
        "logged": log.rows(),
    }
