"""What people do to a loop of their own: stop it, go back, look aside; nothing is wrong unseen."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch.utils.data import DataLoader

from transferseg.errors import TrainingError
from transferseg.training import EpochEvent, StepEvent, cosine, evaluate, fit

from .conftest import _forget
from .tiny import Accuracy, bce, darker, loader, net, prepare, prepared, same, samples, weights


def run(state, *, loss=bce, epochs=2, **options):
    """Four batches an epoch, in an order of their own."""
    return fit(state, loader(8), loss=loss, epochs=epochs, **options)


def outcome(state):
    return weights(state.unwrapped), (state.step, state.epoch, state.batches, state.samples_seen)


def straight(accumulate=1, **options):
    state = prepare(accumulate=accumulate)
    list(run(state, **options))
    _forget()
    return outcome(state)


def check(state, expected):
    (found, place), (wanted, wanted_place) = outcome(state), expected
    assert place == wanted_place
    assert same(found, wanted)


class Interrupted:
    """A loss that is interrupted in one of its calls, before or after the backward pass."""

    def __init__(self, call, *, backward):
        self.call, self.backward, self.calls = call, backward, 0

    def __call__(self, logits, target):
        self.calls += 1
        if self.calls == self.call:
            if not self.backward:
                raise KeyboardInterrupt
            logits.register_hook(self.interrupt)
        return bce(logits, target)

    def interrupt(self, _):
        raise KeyboardInterrupt


@pytest.mark.parametrize(("accumulate", "call"), [(1, 2), (2, 2), (3, 3)])
@pytest.mark.parametrize("backward", [False, True])
def test_an_update_that_is_cut_short_is_made_from_its_first_batch(
    tmp_path, accumulate, call, backward
):
    expected = straight(accumulate)
    state = prepare(accumulate=accumulate)
    with pytest.raises(KeyboardInterrupt):
        list(run(state, loss=Interrupted(call, backward=backward)))
    state.save(tmp_path / "s")  # as the handler of an interrupt does
    list(run(state))
    check(state, expected)
    _forget()
    state = prepare(net(3, norm=False, dropout=0.0), accumulate=accumulate)
    state.load(tmp_path / "s")
    list(run(state))
    check(state, expected)


def test_an_update_that_is_cut_short_before_its_step_leaves_no_gradient(monkeypatch):
    expected = straight(clip_norm=0.1)
    state = prepare()
    clip = state.accelerator.clip_grad_norm_

    def interrupted(*given):
        clip(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(state.accelerator, "clip_grad_norm_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(run(state, clip_norm=0.1))
    assert (state.step, state.batches, state.samples_seen) == (0, 0, 0)
    list(run(state, clip_norm=0.1))
    check(state, expected)


def test_a_save_is_loaded_in_the_middle_of_the_loop(tmp_path):
    expected = straight(epochs=3)
    state, gone_back = prepare(), False
    for event in run(state, epochs=3):
        if event.step == 2:
            state.save(tmp_path / "s")
        if event.step == 7 and not gone_back:
            state.load(tmp_path / "s")
            gone_back = True
    check(state, expected)


class Broken(Accuracy):
    def update(self, logits, target):
        raise ValueError("broken")


def another_accelerator(_):
    Accelerator(cpu=True)


def one_that_does_not_end_with_its_loader(_):
    plugin = GradientAccumulationPlugin(num_steps=5, sync_with_dataloader=False)
    Accelerator(cpu=True, gradient_accumulation_plugin=plugin)


def a_look_at_a_batch(state):
    looking = iter(state.accelerator.prepare_data_loader(loader(6)))
    next(looking)
    return looking


def an_evaluation_that_fails(state):
    with pytest.raises(ValueError, match="broken"):
        evaluate(state.model, loader(6), metrics=Broken(), accelerator=state.accelerator)


@pytest.mark.parametrize(
    "aside",
    [
        another_accelerator,
        one_that_does_not_end_with_its_loader,
        a_look_at_a_batch,
        an_evaluation_that_fails,
    ],
)
def test_what_else_uses_accelerate_changes_no_accumulation(aside):
    expected = straight(3)  # three batches and one
    state = prepare(accumulate=3)
    kept = [aside(state) for _ in run(state)]
    assert len(kept) == 6
    check(state, expected)


def test_evaluating_the_data_that_train_changes_no_augmentation():
    """accelerate tells the data of every loader that it begins an epoch: the first."""

    def trained(*, scored):
        data = DataLoader(prepared(augment=darker), batch_size=3)
        state = prepare()
        for _ in fit(state, data, loss=bce, epochs=3):
            if scored:
                evaluate(state.model, data, metrics=Accuracy(), accelerator=state.accelerator)
        _forget()
        return outcome(state)

    (plain, place), (scored, same_place) = trained(scored=False), trained(scored=True)
    assert place == same_place
    assert same(plain, scored)


@pytest.mark.parametrize("steps", [None, 3])
def test_evaluating_the_prepared_loader_that_trains_ends_no_accumulation(steps):
    def trained(*, scored):
        state = prepare(accumulate=2)
        ready = state.accelerator.prepare_data_loader(loader(12))
        counts = Accuracy()
        for _ in fit(state, ready, loss=bce, steps=steps, epochs=2 if steps is None else None):
            if scored:
                evaluate(state.model, ready, metrics=counts, accelerator=state.accelerator)
                assert counts.all == 12 * 36
        _forget()
        return outcome(state)

    expected = trained(scored=False)
    assert expected[1][:3] == ((6, 2, 0) if steps is None else (3, 1, 0))
    (found, place), (wanted, wanted_place) = trained(scored=True), expected
    assert place == wanted_place
    assert same(found, wanted)


def test_a_sample_that_training_leaves_out_is_there_for_all_others():
    """A norm over a 1 x 1 map cannot train on the fifth of five; the loop around may score it."""
    data, counts, seen = loader(5), Accuracy(), []
    state = prepare(net(pooled=True))

    def part(steps):
        for _ in fit(state, data, loss=bce, epochs=2):
            evaluate(state.model, data, metrics=counts, accelerator=state.accelerator)
            seen.append((len(list(data)), int(counts.all)))
            if state.step == steps:
                break

    for steps in (3, 4):  # left in an epoch, and gone on with
        with pytest.warns(UserWarning, match="left out"):
            part(steps)
        assert (state.step, state.samples_seen, len(data)) == (steps, 2 * steps, 3)
    assert set(seen) == {(3, 5 * 36)}


def test_two_trainings_side_by_side():
    expected = [straight(3), straight(2)]
    states = [prepare(accumulate=3), prepare(accumulate=2)]
    for _ in zip(*map(run, states), strict=True):
        references = states[0].accelerator.gradient_state.dataloader_references
        assert len(references) <= 3  # accelerate's own None, and one for each training
    for state, wanted in zip(states, expected, strict=True):
        check(state, wanted)


def test_gradients_of_what_the_optimizer_leaves_alone_count_nowhere():
    """They are never cleared by it: the clipped norm would grow with them."""
    oracle = net(norm=False, dropout=0.0)
    optimizer = torch.optim.SGD(oracle.last.parameters(), lr=0.1)
    for _ in range(2):
        for batch in loader(8, shuffle=False):
            optimizer.zero_grad()
            bce(oracle(batch["image"]), batch["mask"]).backward()
            assert torch.nn.utils.clip_grad_norm_(oracle.last.parameters(), 0.05) > 0.05
            optimizer.step()
    state = prepare(optimizer=lambda model: torch.optim.SGD(model.last.parameters(), lr=0.1))
    first = state.unwrapped.first.weight
    first.register_hook(lambda gradient: gradient * float("inf"))
    options = {"clip_norm": 0.05, "skip_nonfinite": 1}
    list(fit(state, loader(8, shuffle=False), loss=bce, epochs=2, **options))
    assert state.step == 8
    assert same(weights(oracle), weights(state.unwrapped))


def spoiled():
    data = samples(6)
    data[3]["image"] = data[3]["image"] * float("nan")
    return DataLoader(data, batch_size=2)


def test_no_later_save_passes_over_a_loss_that_is_not_finite(tmp_path):
    state = prepare()
    state.save(tmp_path / "s")
    with pytest.raises(TrainingError, match="update 2"):
        list(fit(state, spoiled(), loss=bce, epochs=1))
    for _ in range(2):
        with pytest.raises(TrainingError, match="update 2"):
            state.save(tmp_path / "s")
    assert json.loads((tmp_path / "s" / "train_state.json").read_text())["counters"]["step"] == 0
    state.load(tmp_path / "s")
    list(run(state, epochs=1))
    assert all(value.isfinite().all() for value in weights(state.unwrapped).values())


def test_a_run_that_ends_within_an_epoch_says_what_was_not_finite():
    state = prepare()
    with pytest.raises(TrainingError, match=r"update 2 \(epoch 1, batch 2, samples s2, s3\)"):
        list(fit(state, spoiled(), loss=bce, steps=2))


def test_the_last_epoch_of_steps_is_told_after_a_kill_too(tmp_path):
    state = prepare()
    for event in fit(state, loader(8), loss=bce, steps=8):
        if isinstance(event, StepEvent):
            state.save(tmp_path / "s")
    assert isinstance(event, EpochEvent)
    expected = event.loss, outcome(state)
    _forget()
    state = prepare()
    state.load(tmp_path / "s")
    (last,) = fit(state, loader(8), loss=bce, steps=8)
    assert (last.epoch, last.loss) == (2, expected[0])
    check(state, expected[1])
    assert list(fit(state, loader(8), loss=bce, steps=8)) == []


def test_a_save_from_before_the_first_step_begins_the_schedule_anew(tmp_path):
    state = prepare(schedule=cosine(warmup_steps=1))
    state.save(tmp_path / "s")
    first = [event.learning_rate for event in fit(state, loader(8), loss=bce, steps=3)]
    state.load(tmp_path / "s")
    again = [event.learning_rate for event in fit(state, loader(8), loss=bce, steps=6)]
    shape = cosine(warmup_steps=1)
    assert first == pytest.approx([0.1 * shape.factor(step, 3) for step in range(3)])
    # an epoch ends after the fourth update, and tells the rate of the fifth
    assert again == pytest.approx([0.1 * shape.factor(s, 6) for s in (0, 1, 2, 3, 4, 4, 5)])


def test_a_save_from_before_the_first_step_is_loaded_in_the_middle_of_the_loop(tmp_path):
    def rates(*, back):
        state = prepare(schedule=cosine(warmup_steps=1))
        state.save(tmp_path / "s")
        found = []
        for event in run(state):
            if isinstance(event, StepEvent):
                found.append(event.learning_rate)
            if back and len(found) == 3:
                state.load(tmp_path / "s")
                back, found = False, []
        _forget()
        return found, outcome(state)

    (straight_rates, expected), (found, again) = rates(back=False), rates(back=True)
    assert len(set(found)) > 4
    assert found == straight_rates
    assert again[1] == expected[1]
    assert same(again[0], expected[0])


def test_no_sample_at_all():
    with pytest.raises(TrainingError, match="no batches"):
        list(fit(prepare(net()), DataLoader([], batch_size=1), loss=bce, epochs=1))
