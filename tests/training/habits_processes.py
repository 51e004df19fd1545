"""The habits around `fit` over the processes there are; only one of them has a spoiled image."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from tests.training.tiny import TIMES, TermsLoss, net, samples
from transferseg.training import (
    EMA,
    BestCheckpoints,
    EpochEvent,
    JSONLLogger,
    TrainState,
    event_row,
    fit,
    sgd,
    with_progress,
)


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
        loader = DataLoader(data, batch_size=batch)
        events = fit(state, loader, loss=TermsLoss(), epochs=2, skip_nonfinite=1)
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
