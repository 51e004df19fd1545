"""A run that was interrupted, saved and loaded is the run that was not, to the last bit."""

from __future__ import annotations

import json
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, WeightedRandomSampler

from transferseg.errors import TrainingError
from transferseg.training import (
    EpochEvent,
    StepEvent,
    TrainState,
    adamw,
    constant,
    cosine,
    fit,
    polynomial,
    sgd,
)
from transferseg.training.loaders import without_lone_samples

from .conftest import _forget
from .tiny import Net, TermsLoss, accelerator, darker, loader, net, prepared, samples

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


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6, 7, 8])
def test_resumed_run_is_the_same_run(tmp_path, accumulate, stop):
    straight = prepare(accumulate=accumulate)
    expected = run(straight, loader())
    wanted = everything(straight)
    state, events = interrupted(tmp_path, loader, stop=stop, accumulate=accumulate)
    assert events == expected
    same(wanted, everything(state))
    assert (state.epoch, state.batches, state.samples_seen) == (3, 0, 30)


@pytest.mark.parametrize("every_step", [True, False])
def test_saving_changes_nothing(tmp_path, every_step):
    straight = prepare()
    expected = run(straight, loader())
    wanted = everything(straight)
    _forget()
    saved = prepare()
    assert run(saved, loader(), folder=tmp_path / "s", every=1 if every_step else 4) == expected
    same(wanted, everything(saved))


def weighted():
    return DataLoader(
        samples(10), batch_size=3, sampler=WeightedRandomSampler(torch.arange(1.0, 11.0), 8)
    )


def subset():
    return DataLoader(samples(10), batch_size=2, sampler=SubsetRandomSampler(range(1, 10, 2)))


def own_generator():
    return loader(generator=torch.Generator().manual_seed(3))


def in_order():
    return loader(shuffle=False)


class Jittered(list):
    """Noise that follows from the epoch and the index, as augmentations should."""

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        noise = torch.Generator().manual_seed(1000 * self.epoch + index)
        image = sample["image"]
        return {**sample, "image": image + torch.randn(image.shape, generator=noise)}


def augmented():
    return DataLoader(Jittered(samples(10)), batch_size=2, shuffle=True)


def with_workers():
    return loader(num_workers=1)


@pytest.mark.parametrize(
    "make", [weighted, subset, own_generator, in_order, augmented, with_workers]
)
def test_any_sampler(tmp_path, make):
    straight = prepare(optimizer=sgd, schedule=polynomial())
    expected = run(straight, make())
    wanted = everything(straight)
    state, events = interrupted(tmp_path, make, stop=5, optimizer=sgd, schedule=polynomial())
    assert events == expected
    same(wanted, everything(state))


def test_looking_at_a_lone_sample_draws_no_random_number():
    """A resumed run looks again, so that its dropout would differ from then on."""
    state = TrainState.prepare(net(pooled=True), optimizer=sgd, accelerator=accelerator())
    before = torch.get_rng_state()
    data = DataLoader(prepared(augment=darker), batch_size=11)
    with (
        pytest.warns(UserWarning, match="one sample and is left out"),
        without_lone_samples(state.accelerator, data, state.unwrapped),
    ):
        assert torch.equal(torch.get_rng_state(), before)


def test_leaving_and_going_on_in_the_same_process():
    straight = prepare()
    expected = run(straight, loader())
    wanted = everything(straight)
    _forget()
    state, data = prepare(), loader()
    events = run(state, data, stop=3)
    events += run(state, data, stop=5)
    events += run(state, data)
    assert events == expected
    same(wanted, everything(state))


def test_epochs_differ_in_order_and_seeds_too():
    def orders(seed):
        seen = []
        data = DataLoader(samples(8), batch_size=8, shuffle=True)

        def watch(logits, target):
            seen.append(tuple(target.flatten(1).float().mean(1).tolist()))
            return logits.mean()

        list(fit(prepare(seed=seed), data, loss=watch, epochs=3))
        return seen

    first = orders(1)
    assert len(set(first)) == 3
    assert orders(1) == first
    assert not set(orders(2)) & set(first)


def test_datasets_are_told_the_epoch():
    class Told(list):
        def set_epoch(self, epoch):
            self.epochs = [*getattr(self, "epochs", []), epoch]

    data = Told(samples(4))
    state = prepare()
    run(state, DataLoader(data, batch_size=2), stop=4)
    assert list(dict.fromkeys(data.epochs)) == [0, 1]
    data.epochs = []
    run(state, DataLoader(data, batch_size=2))
    assert list(dict.fromkeys(data.epochs)) == [1, 2]


def test_steps_end_in_the_middle_of_an_epoch_and_at_its_end():
    state = prepare(schedule=constant())
    kinds = [type(e) for e in fit(state, loader(), loss=TermsLoss(), steps=7)]
    assert kinds == [StepEvent] * 5 + [EpochEvent] + [StepEvent] * 2
    assert (state.step, state.epoch, state.batches) == (7, 1, 2)
    kinds = [type(e) for e in fit(state, loader(), loss=TermsLoss(), steps=10)]
    assert kinds == [StepEvent] * 3 + [EpochEvent]
    assert list(fit(state, loader(), loss=TermsLoss(), steps=10)) == []
    assert list(fit(state, loader(), loss=TermsLoss(), epochs=2)) == []


def test_a_schedule_is_not_outrun():
    state = prepare()
    run(state, loader(), epochs=1)
    with pytest.raises(TrainingError, match=r"laid out for 5 updates.*end at 10.*total_steps=10"):
        run(state, loader(), epochs=2)


def test_a_saved_schedule_can_be_lengthened(tmp_path):
    state = prepare()
    run(state, loader(), epochs=1, folder=tmp_path / "s", every=6)
    assert state.learning_rate == 0.0
    _forget()
    state = prepare(total_steps=10)
    state.load(tmp_path / "s")
    run(state, loader(), epochs=2)
    assert state.total_steps == 10
    assert state.step == 10
    assert state.learning_rate == 0.0
    rates = cosine(warmup_steps=1)
    assert rates.factor(6, 10) > 0


# --- what does not fit ------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path):
    state = prepare()
    run(state, loader(), stop=2, folder=tmp_path / "s")
    _forget()
    return tmp_path / "s"


def test_no_save_and_foreign_folders(tmp_path):
    state = prepare()
    with pytest.raises(TrainingError, match="no such folder"):
        state.load(tmp_path / "gone")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match=r"expected train_state.json, found notes.txt"):
        state.load(tmp_path / "foreign")
    with pytest.raises(TrainingError, match=r"it is not a save"):
        state.save(tmp_path / "foreign")
    assert (tmp_path / "foreign" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seed": 8}, "seed is 8, saved was 7"),
        ({"accumulate": 2}, "gradient_accumulation_steps is 2, saved was 1"),
        ({"optimizer": sgd}, "optimizer is 'SGD', saved was 'AdamW'"),
        ({"schedule": constant()}, "schedule is .*constant.*, saved was .*cosine"),
    ],
)
def test_other_conditions_are_named(save, options, match):
    state = prepare(**options)
    before = everything(state)
    with pytest.raises(TrainingError, match=match):
        state.load(save)
    same(before, everything(state))


def test_other_models_are_named(save):
    wider = Net()
    wider.last = torch.nn.Conv2d(3, 2, 1)
    wider.extra = torch.nn.Conv2d(1, 1, 1)
    wider.norm = torch.nn.Identity()
    state = TrainState.prepare(wider, optimizer=adamw, accelerator=accelerator(), seed=7)
    with pytest.raises(TrainingError) as caught:
        state.load(save)
    text = str(caught.value)
    assert "missing in the save: extra.weight, extra.bias" in text
    assert "not in the model: norm.weight" in text
    assert "last.weight (2, 3, 1, 1) (saved (1, 3, 1, 1))" in text


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl"])
def test_damaged_files_are_named(save, name):
    whole = (save / name).read_bytes()
    (save / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=f"damaged: {name}"):
        prepare().load(save)
    (save / name).unlink()
    with pytest.raises(TrainingError, match=f"damaged: {name}"):
        prepare().load(save)
    (save / name).write_bytes(b"?" * len(whole))
    with pytest.raises(TrainingError):  # the same size: found while reading
        prepare().load(save)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", json.dumps({"format": 1, "files": {}, "counters": {}})]
)
def test_damaged_description(save, text):
    (save / "train_state.json").write_text(text)
    with pytest.raises(TrainingError, match="is damaged"):
        prepare().load(save)


def test_another_loader_in_the_middle_of_an_epoch(save):
    state = prepare()
    state.load(save)
    with pytest.raises(TrainingError, match=r"2 batches of an epoch of 5 are done.* has 4"):
        run(state, loader(8))


@pytest.mark.parametrize("broken", ["accelerator", "json"])
def test_an_exception_while_saving_leaves_the_former_save(save, monkeypatch, broken):
    before = {p.name: p.read_bytes() for p in save.iterdir()}
    state = prepare()
    run(state, loader(), stop=3)

    def fail(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        if broken == "accelerator":
            patch.setattr("accelerate.accelerator.save_accelerator_state", fail)
        else:
            patch.setattr("transferseg.training.saves.json.dumps", fail)
        with pytest.raises(OSError, match="disk full"):
            state.save(save)
    assert {p.name: p.read_bytes() for p in save.iterdir()} == before
    assert [p.name for p in save.parent.iterdir()] == ["s"]
    _forget()
    state = prepare()
    state.load(save)
    assert state.step == 2
