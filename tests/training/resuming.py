"""What the tests of saving and resuming share: a state, a run over it, and all that it holds."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import torch

from transferseg.training import StepEvent, TrainState, adamw, cosine, fit

from .conftest import _forget
from .tiny import TermsLoss, accelerator, net

EPOCHS = 3


def prepare(*, model_seed=0, accumulate=1, schedule=None, optimizer=adamw, seed=7, **options):
    return TrainState.prepare(
        net(model_seed),
        optimizer=partial(optimizer, lr=0.05),
        schedule=cosine(warmup_steps=1) if schedule is None else schedule,
        accelerator=accelerator(gradient_accumulation_steps=accumulate),
        seed=seed,
        **options,
    )


def told(event):
    """An event as values, without its wall time."""
    if isinstance(event, StepEvent):
        return ("step", event.step, event.epoch, event.loss, event.terms, event.learning_rate)
    return ("epoch", event.epoch, event.step, event.loss, event.terms, event.samples_seen)


def run(state, data, *, stop=None, folder=None, every=1, epochs=EPOCHS):
    """The events of a run; saves every few updates; leaves after the event number `stop`."""
    seen = []
    for event in fit(state, data, loss=TermsLoss(), epochs=epochs, clip_norm=0.5):
        seen.append(told(event))
        if folder is not None and (len(seen) % every == 0 or len(seen) == stop):
            state.save(folder)
        if len(seen) == stop:
            break
    return seen


def everything(state):
    tensors = {f"model.{k}": v for k, v in state.unwrapped.state_dict().items()}
    for index, values in state.optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{k}": v for k, v in values.items()})
    tensors["rates"] = torch.tensor([g["lr"] for g in state.optimizer.param_groups])
    tensors["random"] = torch.get_rng_state()
    return {k: v.clone() for k, v in tensors.items()}


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def interrupted(tmp_path, make_loader, *, stop, **options):
    """Run to the event number `stop`, then go on from the save as another process would."""
    _forget()
    state = prepare(**options)
    events = run(state, make_loader(), stop=stop, folder=tmp_path / "save", every=2)
    _forget()
    torch.manual_seed(999)
    random.seed(999)
    np.random.seed(999)  # noqa: NPY002
    state = prepare(model_seed=5, **options)
    state.load(tmp_path / "save")
    events += run(state, make_loader())
    return state, events
