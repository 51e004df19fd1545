"""What each of two processes does in `test_processes`; run as a script, results as JSON."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from tests.metrics.processes import all_scores
from tests.training.auxiliary import spread
from tests.training.habits_processes import habits
from tests.training.tiny import Accuracy, TermsLoss, loader, net, rotate
from transferseg.data import RotatingKFold
from transferseg.training import EpochEvent, TrainState, cosine, evaluate, fit, sgd


def state_of(accelerator: Accelerator, seed: int) -> TrainState:
    return TrainState.prepare(
        net(seed, norm=False, dropout=0.0),
        optimizer=partial(sgd, lr=0.1),
        schedule=cosine(),
        accelerator=accelerator,
    )


def follow(state, *, shuffle, batch, stop=None, folder=None):
    losses = []
    data = loader(12, batch=batch, shuffle=shuffle)
    for event in fit(state, data, loss=TermsLoss(), epochs=2):
        if isinstance(event, EpochEvent):
            losses.append([event.loss, event.learning_rate, event.samples_seen])
        if stop is not None and event.step == stop:
            state.save(folder)
            break
    return losses


def values(state):
    return torch.cat([p.detach().flatten() for p in state.unwrapped.parameters()]).tolist()


def main(folder: Path, batch: int) -> None:
    accelerator = Accelerator(cpu=True)
    found = {}
    state = state_of(accelerator, 0)
    found["losses"] = follow(state, shuffle=False, batch=batch)
    found["weights"] = values(state)
    found["step"] = state.step
    counts = Accuracy()
    data = loader(9, batch=2, shuffle=False)
    found["scores"] = evaluate(state.model, data, metrics=counts, accelerator=accelerator)
    found["share"] = counts.all.item()
    found["metrics"] = all_scores(2, accelerator)
    accelerator.free_memory()
    state = state_of(accelerator, 0)
    straight = follow(state, shuffle=True, batch=batch), values(state)
    accelerator.free_memory()
    state = state_of(accelerator, 0)
    losses = follow(state, shuffle=True, batch=batch, stop=2, folder=folder / "save")
    accelerator.free_memory()
    state = state_of(accelerator, 1)
    state.load(folder / "save")
    losses += follow(state, shuffle=True, batch=batch)
    found["resumed"] = values(state) == straight[1]
    found["straight"], found["losses again"] = straight[0], losses
    accelerator.free_memory()
    model, folds = net(0, norm=False, dropout=0.0), RotatingKFold(3, by_group=False)
    # the eight images that train in a run are one batch: several would be of other images in each
    history = rotate(
        model,
        folds=folds,
        batch_size=2 * batch,
        accelerator=accelerator,
        optimizer=partial(sgd, lr=0.1),
    )
    columns = ("step", "loss", "validation_accuracy", "validation_loss", "samples_seen")
    found["rotating"] = [[row[name] for name in columns] for row in history.rows]
    found["rotated"] = torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
    accelerator.free_memory()
    found["auxiliary"] = spread(folder, batch, accelerator)
    accelerator.free_memory()
    found["habits"] = habits(folder, batch, accelerator)
    name = f"{accelerator.num_processes}-{accelerator.process_index}.json"
    (folder / name).write_text(json.dumps(found))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
