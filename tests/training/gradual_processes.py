"""What each of two processes does in `test_gradual`, results as JSON."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from tests.training.tiny import Net, TermsLoss, loader
from transferseg.errors import TrainingError
from transferseg.models import Freezable, Unfreezing, freeze
from transferseg.training import EpochEvent, TrainState, fit, sgd

GRADUAL = Unfreezing({1: "first"})


class Small(Freezable, Net):
    """Frozen by the names of its layers: first, norm, pool, last."""


def small(seed: int = 0, **options) -> Small:
    torch.manual_seed(seed)
    return Small(**options)


def state_of(model: Small, *, unused: bool = True) -> TrainState:
    handler = DistributedDataParallelKwargs(find_unused_parameters=unused)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[handler])
    return TrainState.prepare(model, optimizer=partial(sgd, lr=0.1), accelerator=accelerator)


def values(module):
    return [x for p in module.parameters() for x in p.detach().flatten().tolist()]


def refusal(state: TrainState, batch: int) -> str | None:
    data = loader(12, batch=batch, shuffle=False)
    try:
        list(fit(state, data, loss=TermsLoss(), epochs=1, unfreeze=GRADUAL))
    except TrainingError as error:
        return str(error)
    finally:
        state.accelerator.free_memory()
    return None


def trained(batch: int) -> dict:
    options = {"norm": False, "dropout": 0.0}
    model = small(**options)
    found = {"before": values(model.first)}
    state = state_of(model)
    data = loader(12, batch=batch, shuffle=False)
    for event in fit(state, data, loss=TermsLoss(), epochs=3, unfreeze=GRADUAL):
        if isinstance(event, EpochEvent) and event.epoch == 1:
            found["after one epoch"] = values(model.first)
    found["first"], found["last"] = values(model.first), values(model.last)
    state.accelerator.free_memory()
    already = small(**options)
    freeze(already, "first")
    found["errors"] = [
        refusal(state_of(small(**options), unused=False), batch),
        refusal(state_of(already), batch),
    ]
    return found


def main(folder: Path, batch: int) -> None:
    found = trained(batch)
    accelerator = Accelerator(cpu=True)
    name = f"{accelerator.num_processes}-{accelerator.process_index}.json"
    (folder / name).write_text(json.dumps(found))
    accelerator.end_training()
