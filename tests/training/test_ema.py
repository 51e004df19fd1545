"""Averaged weights: the recurrence by hand, and runs that are interrupted."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from transferseg.errors import TrainingError
from transferseg.models import Unfreezing
from transferseg.training import (
    EMA,
    StepEvent,
    TrainState,
    adamw,
    cosine,
    evaluate,
    fit,
    sgd,
    train,
)

from .conftest import _forget
from .gradual_processes import small
from .test_resume import everything, told
from .test_resume import same as equal
from .tiny import (
    Accuracy,
    Scripted,
    Stop,
    TermsLoss,
    accelerator,
    bce,
    loader,
    net,
    same,
    timeless,
    weights,
)


def prepare(seed=0, **options):
    return TrainState.prepare(
        net(seed), optimizer=partial(adamw, lr=0.05), schedule=cosine(),
        accelerator=accelerator(**options), seed=7,
    )  # fmt: skip


def recurrence(history, decay, *, warmup):
    """The average of weights, one dict an update, in float64."""
    average = {name: value.double() for name, value in history[0].items()}
    for count, current in enumerate(history[1:], start=1):
        used = min(decay, (1 + count) / (10 + count)) if warmup else decay
        for name, value in current.items():
            average[name] = used * average[name] + (1 - used) * value.double()
    return average


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_the_recurrence_by_hand(warmup, accumulate):
    state = prepare(gradient_accumulation_steps=accumulate)
    ema = EMA(state, decay=0.8, warmup=warmup)
    history = [
        weights(state.unwrapped)
        for event in fit(state, loader(), loss=bce, epochs=3)
        if isinstance(event, StepEvent)
    ]
    wanted = recurrence(history, 0.8, warmup=warmup)
    found = ema.averaged.module.state_dict()
    batches = found.pop("norm.num_batches_tracked")
    assert batches == history[-1]["norm.num_batches_tracked"] == 15
    assert len(found) == 8
    for name, value in found.items():
        torch.testing.assert_close(value.double(), wanted[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, history[-1][name])  # the running statistics too
    assert int(ema.averaged.n_averaged) == state.step


def test_they_are_applied_for_a_moment():
    state = prepare()
    ema = EMA(state, decay=0.8)
    list(fit(state, loader(), loss=bce, epochs=2))
    before = everything(state)
    with ema.applied():
        inside = weights(state.unwrapped)
        scores = evaluate(state.model, loader(5), metrics=Accuracy())
    equal(before, everything(state))
    assert same(inside, ema.averaged.module.state_dict())
    assert scores == evaluate(ema.averaged.module, loader(5), metrics=Accuracy())
    with pytest.raises(Stop), ema.applied():
        raise Stop
    equal(before, everything(state))
    ema.copy_to_model()
    assert same(weights(state.unwrapped), inside)


def test_nothing_else_happens_while_they_are_applied(tmp_path):
    state = prepare()
    ema = EMA(state)
    events = fit(state, loader(), loss=bce, epochs=1)
    next(events)
    state.save(tmp_path / "save")
    with ema.applied():
        for act in (ema.update, lambda: ema.applied().__enter__(), lambda: next(events)):
            with pytest.raises(TrainingError, match=r"EMA\.applied"):
                act()
        with pytest.raises(TrainingError, match=r"EMA\.applied"):
            state.save(tmp_path / "save")
    _forget()
    again = prepare()
    EMA(again)
    again.load(tmp_path / "save")  # the former save is whole
    assert again.step == 1


def follow(state, *, stop=None, folder=None):
    seen = []
    for event in fit(state, loader(), loss=TermsLoss(), epochs=3):
        seen.append(told(event))
        if len(seen) == stop:
            state.save(folder)
            break
    return seen


@pytest.mark.parametrize("stop", [1, 4, 6, 14])
def test_a_resumed_run_averages_as_the_straight_one(tmp_path, stop):
    straight = prepare()
    ema = EMA(straight, decay=0.9)
    expected, wanted = follow(straight), everything(straight)
    _forget()
    first = prepare()
    EMA(first, decay=0.9)
    events = follow(first, stop=stop, folder=tmp_path / "save")
    _forget()
    resumed = prepare(5)
    again = EMA(resumed, decay=0.9)
    resumed.load(tmp_path / "save")
    assert events + follow(resumed) == expected
    equal(wanted, everything(resumed))
    equal(ema.averaged.state_dict(), again.averaged.state_dict())


def test_a_save_says_what_it_averages(tmp_path):
    state = prepare()
    EMA(state, decay=0.9)
    follow(state, stop=2, folder=tmp_path / "save")
    _forget()
    with pytest.raises(TrainingError, match=r"ema is None, saved was 'EMA\(decay=0.9, warmup=True"):
        prepare().load(tmp_path / "save")


def test_an_accelerator_forgets_them():
    shared = accelerator()
    EMA(TrainState.prepare(net(), optimizer=sgd, accelerator=shared))
    shared.free_memory()
    TrainState.prepare(net(), optimizer=sgd, accelerator=shared)
    assert len(shared._custom_objects) == 1


def test_what_cannot_be_averaged():
    state = prepare()
    for decay in (-0.1, 1.0):
        with pytest.raises(TrainingError, match="0 <= decay < 1"):
            EMA(state, decay=decay)
    assert state.ema is None
    EMA(state)
    with pytest.raises(TrainingError, match="has an average already"):
        EMA(state)


# --- train --------------------------------------------------------------------------------------


def run(model, **options):
    return train(
        model, loader(9), loader(5), loss=TermsLoss(), optimizer=partial(adamw, lr=0.05),
        **{
            "epochs": 4, "schedule": cosine(), "accelerator": accelerator(), "progress": False,
            "ema_decay": 0.9, "metrics": Accuracy(), "score": "accuracy", **options,
        },
    )  # fmt: skip


def test_train_scores_and_keeps_the_averaged_weights(tmp_path):
    """Against the loop written out."""
    state = TrainState.prepare(
        net(), optimizer=partial(adamw, lr=0.05), schedule=cosine(), accelerator=accelerator()
    )
    ema, scores, averages = EMA(state, decay=0.9), [], []
    for event in fit(state, loader(9), loss=TermsLoss(), epochs=4):
        if not isinstance(event, StepEvent):
            with ema.applied():
                scores.append(evaluate(state.model, loader(5), metrics=Accuracy())["accuracy"])
                averages.append(weights(state.unwrapped))
    for restore in (False, True):
        _forget()
        model = net()
        history = run(model, folder=tmp_path / str(restore), restore_best=restore)
        assert [row["score"] for row in history.rows] == scores
        best = averages[scores.index(max(scores))]
        assert same(weights(model), best if restore else averages[-1])
        assert same(load_file(tmp_path / str(restore) / "best" / "model.safetensors"), best)
    _forget()
    model = net()
    run(model, restore_best=True)  # without a folder
    assert same(weights(model), best)


@pytest.mark.parametrize("after", [3])
def test_train_resumes_all_habits_together(tmp_path, monkeypatch, after):
    """Averages, gradual unfreezing, early stopping, the best and the log at once."""
    options = {
        "unfreeze": Unfreezing({1: "first"}), "patience": 2, "best_k": 2, "restore_best": True,
        "log_every": 2, "schedule": None, "epochs": 9, "score": "quality",
    }  # fmt: skip
    scripted = [0.1, 0.4, 0.6, 0.5, 0.6, 0.2]
    model = small()
    expected = run(model, folder=tmp_path / "a", metrics=Scripted(scripted), **options)
    assert len(expected.rows) == 5
    save, count = TrainState.save, []

    def cut(self, folder):
        count.append(1)
        if len(count) > after:
            raise Stop
        save(self, folder)

    _forget()
    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "save", cut)
        with pytest.raises(Stop):
            run(small(), folder=tmp_path / "b", metrics=Scripted(scripted), **options)
    _forget()
    again = small(4)
    history = run(
        again, folder=tmp_path / "b", resume=True, metrics=Scripted(scripted[after:]), **options
    )
    assert timeless(history) == timeless(expected)
    assert same(weights(model), weights(again))
    texts = []
    for name in "ab":
        index = (tmp_path / name / "checkpoints" / "index.json").read_text()
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        texts.append((index, [line.split('"learning_rate"')[0] for line in lines]))
    assert texts[0] == texts[1]
    kept = [tmp_path / name / "checkpoints" / "step-00000015" for name in "ab"]
    files = [load_file(folder / "model.safetensors") for folder in kept]
    assert same(files[0], files[1])
    assert same(files[0], weights(model))
