"""What each of two processes does in `test_processes`, results as JSON."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import is_torch_version
from accelerate.utils.constants import FSDP2_PYTORCH_VERSION

from tests.metrics.processes import all_scores
from tests.training.auxiliary import spread
from tests.training.folds_processes import crossed, turned
from tests.training.gradual_processes import small
from tests.training.habits_processes import habits, spoiled, unshared
from tests.training.sharding import all_of_it
from tests.training.tiny import Accuracy, TermsLoss, loader, net, rotate
from transferseg.data import RotatingKFold
from transferseg.errors import TrainingError
from transferseg.losses import BCEDiceLoss
from transferseg.models import freeze
from transferseg.stages.run import check_process
from transferseg.training import EpochEvent, MeanLoss, TrainState, cosine, evaluate, fit, sgd


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


def frozen_norm(batch, accelerator):
    """A frozen BatchNorm with statistics of its own, and a loss that is a mean over images."""
    model = small(dropout=0.0)
    model.norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    model.norm.running_var.copy_(torch.tensor([0.5, 1.5, 2.5]))
    freeze(model, "norm")
    state = TrainState.prepare(model, optimizer=partial(sgd, lr=0.1), accelerator=accelerator)
    data, losses, loss = loader(12, batch=batch), [], BCEDiceLoss("binary")
    for event in fit(state, data, loss=loss, epochs=2):
        if isinstance(event, EpochEvent):
            losses.append([event.loss, event.terms["dice"]])
    uneven = loader(9, batch=2, shuffle=False)
    scores = evaluate(
        state.model,
        uneven,
        metrics={"loss": MeanLoss(lambda *pair: loss(*pair)), "counts": Accuracy()},
        accelerator=accelerator,
    )
    kept = model.norm.running_mean.tolist() + model.norm.running_var.tolist()
    found = {"weights": values(state), "losses": losses, "scores": scores, "kept": kept}
    accelerator.free_memory()
    return found


def learned_norm(folder, accelerator):
    """A BatchNorm that each process feeds with its own batches; a save that fails on one alone."""
    state = TrainState.prepare(
        net(dropout=0.0), optimizer=partial(sgd, lr=0.3), accelerator=accelerator
    )
    list(fit(state, loader(12, batch=2, shuffle=False), loss=TermsLoss(), epochs=2))
    uneven = loader(9, batch=2, shuffle=False)
    found = evaluate(state.model, uneven, metrics=Accuracy(), accelerator=accelerator)
    place, said = folder / f"learned-{accelerator.num_processes}", ""
    if accelerator.is_main_process:
        place.write_text("a file where the folder should be")
    accelerator.wait_for_everyone()
    try:
        state.save(place / "last")
    except TrainingError as error:
        said = str(error)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        place.unlink()
    state.save(place)
    accelerator.free_memory()
    return {**found, "said": said}


def said_of_stages():
    try:
        check_process()
    except TrainingError as error:
        return str(error)
    return None


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
    losses = follow(state, shuffle=True, batch=batch, stop=4, folder=folder / "save")
    accelerator.free_memory()
    state = state_of(accelerator, 1)
    state.load(folder / "save")
    losses += follow(state, shuffle=True, batch=batch)
    found["resumed"] = values(state) == straight[1]
    found["straight"], found["losses again"] = straight[0], losses
    found["shuffled"] = straight[1]
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
    accelerator.free_memory()
    found["spoiled"] = spoiled(batch, accelerator)
    found["unshared"] = unshared(accelerator)
    found["frozen"] = frozen_norm(batch, accelerator)
    found["learned"] = learned_norm(folder, accelerator)
    found["crossed"] = crossed(folder, accelerator)
    found["crossed again"] = crossed(folder, accelerator, resume=True)
    found["turned"] = turned(accelerator)
    found["stages"] = said_of_stages()
    if accelerator.num_processes > 1 and is_torch_version(">=", FSDP2_PYTORCH_VERSION):
        found["sharded"] = all_of_it(folder, batch)  # last: it makes accelerators of its own
    name = f"{accelerator.num_processes}-{accelerator.process_index}.json"
    (folder / name).write_text(json.dumps(found))
    accelerator.end_training()
