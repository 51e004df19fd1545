"""Updates that are left out: what they leave behind is what a run without their batches has."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from transferseg.errors import TrainingError
from transferseg.training import EpochEvent, TrainState, adamw, cosine, fit, sgd, train

from .conftest import _forget
from .test_resume import everything, same
from .tiny import TermsLoss, accelerator, bce, net, samples


def prepare(*, norm=True, accumulate=1, scale=None, optimizer=adamw, schedule=None):
    shared = accelerator(gradient_accumulation_steps=accumulate)
    if scale is not None:  # as for float16, which accelerate does not offer on a CPU
        shared.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return TrainState.prepare(
        net(norm=norm, dropout=0.0), optimizer=partial(optimizer, lr=0.05), accelerator=shared,
        schedule=schedule,
    )  # fmt: skip


def spoiled(*places, count=10, value=float("nan")):
    """Samples of which some are not finite."""
    data = samples(count)
    for place in places:
        data[place]["image"] = torch.full_like(data[place]["image"], value)
    return data


def run(state, data, **options):
    return list(fit(state, DataLoader(data, batch_size=2), loss=TermsLoss(), epochs=1, **options))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("accumulate", "left_out"), [(1, range(4, 6)), (2, range(4, 8))])
def test_a_left_out_update_never_was(accumulate, left_out, value):
    """Weights, optimizer and the statistics of the norm, to the bit."""
    state = prepare(accumulate=accumulate)
    with pytest.warns(UserWarning, match=r"update \d .*batch 3, samples s4, s5") as caught:
        epoch = run(state, spoiled(5, value=value), skip_nonfinite=1, clip_norm=0.5)[-1]
    assert [(one.filename, one.category) for one in caught] == [(__file__, UserWarning)]
    found = everything(state)
    _forget()
    other = prepare(accumulate=accumulate)
    data = [sample for place, sample in enumerate(samples(10)) if place not in left_out]
    expected = run(other, data, clip_norm=0.5)[-1]
    same(everything(other), found)
    assert (epoch.step, epoch.loss, epoch.terms) == (expected.step, expected.loss, expected.terms)
    assert (epoch.skipped, expected.skipped) == (1, 0)
    assert (epoch.images, epoch.samples_seen) == (10 - len(left_out), 10)
    assert state.epoch_skipped == 0  # of the epoch to come


def broken_at(update):
    """A loss that is finite, and whose gradient is not in one call."""
    calls = []

    def loss(logits, target):
        calls.append(1)
        root = (logits * 0).sum().square().sqrt() if len(calls) == update else 0
        return bce(logits, target) + root

    return loss


def test_a_gradient_that_is_not_finite_is_found_though_the_loss_is():
    state = prepare()
    data = DataLoader(samples(8), batch_size=2)
    with pytest.warns(UserWarning, match=r"a gradient of update 2 .* though its loss is .*batch 2"):
        events = list(fit(state, data, loss=broken_at(2), epochs=1, skip_nonfinite=1))
    assert [event.step for event in events] == [1, 2, 3, 3]
    assert all(weight.isfinite().all() for weight in state.unwrapped.state_dict().values())


def test_too_many_in_a_row_are_an_error():
    state = prepare()
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(TrainingError, match=r"update 2 .*batch 4, samples s6, s7: nan.* 3 in a row"),
    ):
        run(state, spoiled(*range(2, 10)), skip_nonfinite=2)
    assert state.step == 1
    _forget()
    with pytest.warns(UserWarning, match="left out"):
        apart = run(prepare(), spoiled(2, 6), skip_nonfinite=1)
    assert apart[-1].skipped == 2


def test_an_epoch_without_any_update_has_no_loss():
    with pytest.warns(UserWarning, match="left out"):
        epoch = run(prepare(), spoiled(*range(4), count=4), skip_nonfinite=2)[-1]
    assert epoch.loss != epoch.loss
    assert (epoch.step, epoch.images, epoch.skipped) == (0, 0, 2)


def test_by_default_nothing_is_looked_at_and_the_error_says_how_to_skip():
    state = prepare()
    with pytest.raises(TrainingError, match=r"samples s4, s5.*skip_nonfinite=10"):
        run(state, spoiled(5))
    with pytest.raises(TrainingError, match="skip_nonfinite must be 0 or more"):
        run(state, samples(2), skip_nonfinite=-1)


def test_train_skips_and_its_history_says_so():
    shared = accelerator()
    with pytest.warns(UserWarning, match="left out"):
        history = train(
            net(dropout=0.0), DataLoader(spoiled(1), batch_size=2), loss=bce, epochs=2,
            progress=False, accelerator=shared, skip_nonfinite=1,
        )  # fmt: skip
    assert [(row["skipped"], row["step"]) for row in history.rows] == [(1, 4), (1, 8)]


# --- float16: what its scaler leaves out ------------------------------------------------------


def hundredfold(logits, target):
    return 100 * bce(logits, target)


def test_overflows_are_counted_and_the_rest_is_the_plain_run():
    """A scale is a power of two, so that it changes no bit of a gradient that does not overflow."""
    state = prepare(norm=False, scale=2.0**125, optimizer=sgd, schedule=cosine())
    data = DataLoader(samples(24), batch_size=2)
    *events, epoch = fit(state, data, loss=hundredfold, epochs=1)
    skipped = epoch.skipped
    assert 1 <= skipped < 10
    assert state.step == len(events) == 12 - skipped
    _forget()
    plain = prepare(norm=False, optimizer=sgd, schedule=cosine())
    plain.total_steps = state.total_steps
    rest = DataLoader(samples(24)[2 * skipped :], batch_size=2)
    list(fit(plain, rest, loss=hundredfold, epochs=1))
    for name, weight in plain.unwrapped.state_dict().items():
        assert torch.equal(weight, state.unwrapped.state_dict()[name]), name


def half_precision(state):
    """Let accelerate unscale before it clips, as on a GPU; gradients stay float32 all the same."""
    state.accelerator.native_amp = True
    state.accelerator.state._mixed_precision = "fp16"
    return state


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_an_update_that_is_cut_short_is_not_half_unscaled(clip_norm):
    """Neither refused by the scaler, nor made with gradients that are still scaled."""

    def interrupt(*_):
        raise KeyboardInterrupt

    straight = prepare(norm=False, optimizer=sgd)
    expected = run(straight, samples(8), clip_norm=clip_norm)[-1]
    _forget()
    state = half_precision(prepare(norm=False, scale=2.0**10, optimizer=sgd))
    hook = state.optimizer.optimizer.register_step_pre_hook(interrupt)  # the scaler has unscaled
    with pytest.raises(KeyboardInterrupt):
        run(state, samples(8), clip_norm=clip_norm)
    hook.remove()
    assert (state.step, state.batches) == (0, 0)
    epoch = run(state, samples(8), clip_norm=clip_norm)[-1]
    assert (epoch.step, epoch.skipped, epoch.loss) == (4, 0, expected.loss)
    assert state.accelerator.scaler.get_scale() == 2.0**10
    for name, weight in straight.unwrapped.state_dict().items():
        assert torch.equal(weight, state.unwrapped.state_dict()[name]), name


def test_overflows_without_end_are_an_error():
    state = prepare(norm=False, scale=float("inf"))
    data = DataLoader(samples(60), batch_size=1)
    with pytest.raises(TrainingError, match=r"overflowed in 50 updates in a row.*bf16"):
        list(fit(state, data, loss=bce, steps=1))


def test_a_loss_that_is_not_finite_leaves_the_scale_alone():
    state = prepare(scale=64.0)
    with pytest.warns(UserWarning, match="the loss of update 3"):
        events = run(state, spoiled(4), skip_nonfinite=1)
    assert (state.step, events[-1].skipped) == (4, 1)
    assert state.accelerator.scaler.get_scale() == 64.0
    assert sum(isinstance(event, EpochEvent) for event in events) == 1
