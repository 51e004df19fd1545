"""A run that was interrupted, saved and loaded is the run that was not, to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, WeightedRandomSampler

from transferseg.errors import TrainingError
from transferseg.training import (
    EpochEvent,
    StepEvent,
    TrainState,
    constant,
    cosine,
    fit,
    polynomial,
    save_every,
    sgd,
)
from transferseg.training.loaders import without_lone_samples

from .conftest import _forget
from .resuming import EPOCHS, everything, interrupted, prepare, run, same, told
from .tiny import TermsLoss, accelerator, darker, loader, net, prepared, samples


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


@pytest.mark.parametrize(("steps", "saved"), [(1, 8), (2, 8), (3, 6), (6, 6), (7, 7), (10, 5)])
def test_a_loop_that_saves_every_so_many_updates(tmp_path, steps, saved):
    straight = prepare()
    expected = run(straight, loader())
    wanted = everything(straight)
    _forget()
    state = prepare()
    for event in save_every(events_of(state), state, tmp_path / "s", steps=steps):
        if event.step == 9:
            break
    _forget()
    state = prepare(model_seed=3)
    assert not state.resume(tmp_path / "none")
    assert state.resume(tmp_path / "s")
    assert state.step == saved  # every epoch of five updates too
    rest = [told(event) for event in save_every(events_of(state), state, tmp_path / "s", steps=1)]
    assert rest == expected[-len(rest) :]
    same(wanted, everything(state))
    _forget()
    state = prepare()
    state.load(tmp_path / "s")
    assert state.epoch == EPOCHS


def events_of(state):
    return fit(state, loader(), loss=TermsLoss(), epochs=EPOCHS, clip_norm=0.5)


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
