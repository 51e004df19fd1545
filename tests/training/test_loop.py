from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from transferseg.errors import DataError, TrainingError
from transferseg.spec import InputSpec, ModelSpec
from transferseg.training import EpochEvent, StepEvent, cosine, fit, sgd

from .conftest import _forget
from .tiny import TermsLoss, accelerator, bce, loader, net, prepare, samples


def test_the_loop_is_the_plain_loop():
    """Against a loop written with torch alone."""
    oracle = net(norm=False, dropout=0.0)
    optimizer = sgd(oracle, lr=0.1)
    losses = []
    for _ in range(2):
        for batch in loader(6, shuffle=False):
            loss = bce(oracle(batch["image"]), batch["mask"])
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(oracle.parameters(), 0.1)
            assert norm > 0.1
            optimizer.step()
            losses.append(loss.item())
    state = prepare()
    events = list(fit(state, loader(6, shuffle=False), loss=bce, epochs=2, clip_norm=0.1))
    steps = [e for e in events if isinstance(e, StepEvent)]
    assert [e.loss for e in steps] == losses
    assert [e.step for e in steps] == [1, 2, 3, 4, 5, 6]
    assert [e.epoch for e in steps] == [1, 1, 1, 2, 2, 2]
    epochs = [e for e in events if isinstance(e, EpochEvent)]
    assert [e.loss for e in epochs] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])
    assert [(e.epoch, e.step, e.samples_seen) for e in epochs] == [(1, 3, 6), (2, 6, 12)]
    for name, value in oracle.state_dict().items():
        assert torch.equal(value, state.unwrapped.state_dict()[name]), name


@pytest.mark.parametrize("count", [8, 6, 10])  # 6 and 10: the last accumulation holds one batch
def test_accumulated_batches_are_one_big_batch(count):
    big = prepare()
    list(fit(big, loader(count, batch=4, shuffle=False), loss=bce, epochs=3))
    _forget()
    small = prepare(accumulate=2)
    events = list(fit(small, loader(count, batch=2, shuffle=False), loss=bce, epochs=3))
    assert small.step == big.step == 3 * -(-count // 4)
    assert sum(isinstance(e, StepEvent) for e in events) == big.step
    for name, value in big.unwrapped.state_dict().items():
        torch.testing.assert_close(value, small.unwrapped.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_epoch_means_count_samples_not_batches():
    state = prepare(optimizer=partial(sgd, lr=0.0))
    data = loader(5, batch=2, shuffle=False)
    epoch = list(fit(state, data, loss=TermsLoss(), epochs=1))[-1]
    whole = next(iter(loader(5, batch=5, shuffle=False)))
    expected = TermsLoss().terms(state.unwrapped(whole["image"]), whole["mask"])
    assert epoch.loss == pytest.approx(expected["loss"].item())
    assert epoch.terms == pytest.approx({k: expected[k].item() for k in ("bce", "square")})


def test_learning_rates_of_events_are_those_of_their_updates():
    state = prepare(schedule=cosine(warmup_steps=2))
    events = list(fit(state, loader(6), loss=bce, epochs=2))
    rates = [e.learning_rate for e in events if isinstance(e, StepEvent)]
    shape = cosine(warmup_steps=2)
    assert rates == pytest.approx([0.1 * shape.factor(k, 6) for k in range(6)])
    assert events[-1].learning_rate == pytest.approx(0.0)


def test_no_loss_is_read_before_the_end_of_the_epoch(monkeypatch):
    reads = []
    item, tolist = torch.Tensor.item, torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "item", lambda self: reads.append("item") or item(self))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda s: reads.append("tolist") or tolist(s))
    monkeypatch.setattr("transferseg.training.loop.check_first", lambda *_: None)
    events = fit(prepare(accumulate=2), loader(8, shuffle=False), loss=TermsLoss(), epochs=1)
    first = next(events)
    reads.clear()  # the loader's own seed
    next(events)
    assert reads == []
    assert isinstance(first.loss, float)
    assert reads == ["item"]
    next(events)
    assert reads == ["item", "tolist"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_update_batch_and_samples(bad, tmp_path):
    data = samples(6)
    data[3]["image"] = data[3]["image"].clone().fill_(bad)
    state = prepare()
    events = fit(state, DataLoader(data, batch_size=2), loss=bce, epochs=1)
    for _ in range(3):
        next(events)
    with pytest.raises(TrainingError, match=r"update 2 \(epoch 1, batch 2, samples s2, s3\)"):
        next(events)
    _forget()
    state = prepare()
    events = fit(state, DataLoader(data, batch_size=2), loss=bce, epochs=1)
    next(events)
    state.save(tmp_path / "s")
    next(events)
    with pytest.raises(TrainingError, match="update 2"):  # a bad state never replaces a good one
        state.save(tmp_path / "s")
    _forget()
    state = prepare()
    state.load(tmp_path / "s")
    assert state.step == 1


def test_modes_during_training():
    model = net()
    model.eval()
    state = prepare(model)
    events = fit(state, loader(4), loss=bce, epochs=1)
    next(events)
    assert model.norm.training
    model.eval()  # left so by the loop around
    next(events)
    assert model.norm.training


def test_frozen_parts_that_stay_in_evaluation_mode_do():
    class Frozen(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(False)

    model = net()
    model.norm = Frozen(3)
    list(fit(prepare(model), loader(4), loss=bce, epochs=1))
    assert model.norm.num_batches_tracked == 0


def test_targets_by_name():
    seen = {}

    def watch(name):
        def loss(output, target):
            seen[name] = target
            return output.mean()

        return loss

    model = nn.Conv2d(1, 1, 1)
    model.spec = ModelSpec("autoencoder", "none", ("grey",), "binary", input=InputSpec(channels=1))
    data = [{**s, "label": torch.tensor([1.0])} for s in samples(2)]
    for name in ("mask", "image", "label"):
        _forget()
        batches = DataLoader(data, batch_size=2)
        list(fit(prepare(model), batches, loss=watch(name), epochs=1, target=name))
        torch.testing.assert_close(seen[name], torch.stack([s[name] for s in data]))


def test_channels_last_gives_the_same_model():
    first, second = prepare(), None
    list(fit(first, loader(6), loss=bce, epochs=2))
    _forget()
    second = prepare()
    layouts = []

    def loss(logits, target):
        return bce(logits, target)

    model = second.unwrapped
    model.first.register_forward_pre_hook(
        lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    list(fit(second, loader(6), loss=loss, epochs=2, channels_last=True))
    assert all(layouts)
    assert model.first.weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in first.unwrapped.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name])


# --- batches of one ---------------------------------------------------------------------------


def test_a_lone_last_sample_is_left_out_and_said_once():
    state = prepare(net(pooled=True), schedule=cosine())
    data = loader(5, batch=2)
    with pytest.warns(UserWarning, match=r"one sample and is left out: pool.1 ") as caught:
        events = list(fit(state, data, loss=bce, epochs=3))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert state.step == state.total_steps == 6
    assert events[-1].samples_seen == 12
    assert len(data) == 3  # the loader is as it was


def test_a_lone_last_sample_is_left_out_of_an_accumulation():
    state = prepare(net(pooled=True), accumulate=2)
    with pytest.warns(UserWarning, match="left out"):
        list(fit(state, loader(7, batch=2), loss=bce, epochs=1))
    assert state.step == 2
    assert all(p.grad is None for p in state.unwrapped.parameters())  # nothing half-accumulated


@pytest.mark.parametrize("options", [{"pooled": False}, {"pooled": True}])
def test_a_lone_sample_is_kept_where_it_can_be_used(options):
    model = net(**options)
    if options["pooled"]:
        model.pool[1] = nn.GroupNorm(1, 3)
    list(fit(state := prepare(model), loader(5, batch=2), loss=bce, epochs=1))
    assert state.samples_seen == 5
    _forget()
    list(fit(state := prepare(net()), loader(3, batch=1), loss=bce, epochs=1))
    assert state.step == 3


def test_a_frozen_norm_takes_a_lone_sample():
    model = net(pooled=True)
    model.pool[1].train = lambda mode=True: model.pool[1]
    model.pool[1].training = False
    list(fit(state := prepare(model), loader(5, batch=2), loss=bce, epochs=1))
    assert state.samples_seen == 5


@pytest.mark.parametrize(("count", "batch"), [(3, 1), (1, 4)])
@pytest.mark.parametrize("running", [True, False])
def test_batches_of_one_stop_before_the_first_step(count, batch, running):
    model = net(pooled=True)
    model.pool[1] = nn.BatchNorm2d(3, track_running_stats=running)
    state = prepare(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(TrainingError, match=r"pool.1 normalises over the batch"):
        list(fit(state, loader(count, batch=batch), loss=bce, epochs=1))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert state.step == 0


def test_batches_of_one_from_an_unknown_batch_sampler():
    class Mine(BatchSampler):
        pass

    sampler = Mine(SequentialSampler(range(3)), 2, False)
    data = DataLoader(samples(3), batch_sampler=sampler)
    with pytest.raises(TrainingError, match=r"1 sample\(s\) gives a BatchNorm one value"):
        list(fit(prepare(net(pooled=True)), data, loss=bce, epochs=1))


# --- what cannot be trained -------------------------------------------------------------------


class Endless(IterableDataset):
    def __iter__(self):
        return iter(samples(6))


def test_an_iterable_data_set():
    state = prepare(schedule=cosine())
    data = DataLoader(Endless(), batch_size=2)
    with pytest.raises(TrainingError, match="number of updates is unknown"):
        list(fit(state, data, loss=bce, epochs=1))
    list(fit(state, data, loss=bce, steps=4))
    assert (state.step, state.epoch, state.batches) == (4, 1, 1)
    list(fit(state, data, loss=bce, steps=4))
    _forget()
    state = prepare()
    assert list(fit(state, data, loss=bce, epochs=2))[-1].step == 6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "one of epochs and steps"),
        ({"epochs": 1, "steps": 1}, "one of epochs and steps"),
        ({"epochs": -1}, "epochs must be 0 or more"),
        ({"epochs": 2.5}, r"epochs must be a whole number, got 2\.5"),
        ({"epochs": 2.0}, r"epochs must be a whole number, got 2\.0"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"epochs": "2"}, "epochs must be a whole number, got '2'"),
        ({"steps": 0.5}, r"steps must be a whole number, got 0\.5"),
        ({"steps": float("nan")}, "steps must be a whole number, got nan"),
        ({"epochs": 1, "skip_nonfinite": 0.5}, r"skip_nonfinite must be a whole number, got 0\.5"),
        ({"epochs": 1, "clip_norm": 0.0}, "clip_norm must be above 0"),
        ({"epochs": 1, "target": "masks"}, "Did you mean 'mask'"),
        ({"epochs": 1, "target": "label"}, "no tensor 'label': it has"),
    ],
)
def test_arguments(options, match, monkeypatch):
    monkeypatch.setattr("transferseg.training.loop.check_first", lambda *_: None)
    with pytest.raises(TrainingError, match=match):
        list(fit(prepare(), loader(4), loss=bce, **options))


def test_arguments_are_checked_before_iteration():
    with pytest.raises(TrainingError):
        fit(prepare(), loader(4), loss=bce)


@pytest.mark.parametrize("end", [{"epochs": np.int64(2)}, {"steps": np.uint8(6)}])
def test_whole_numbers_of_numpy_are_whole_numbers(tmp_path, end):
    """They are not JSON, and the state says in JSON how long its schedule is."""
    state = prepare(schedule=cosine())
    list(fit(state, loader(6), loss=bce, **end))
    assert (state.step, state.epoch, state.total_steps) == (6, 2, 6)
    state.save(tmp_path / "s")
    _forget()
    again = prepare(schedule=cosine())
    again.load(tmp_path / "s")
    assert (again.step, again.total_steps) == (6, 6)


def test_losses_must_be_scalars():
    with pytest.raises(TrainingError, match=r"scalar tensor, got \(2, 1, 6, 6\)"):
        list(fit(prepare(), loader(4), loss=lambda a, b: a, epochs=1))
    with pytest.raises(TrainingError, match="scalar tensor, got float"):
        list(fit(prepare(), loader(4), loss=lambda a, b: 0.5, epochs=1))


def test_a_model_needs_a_spec():
    with pytest.raises(TrainingError, match=r"Conv2d has no ModelSpec"):
        fit(prepare(nn.Conv2d(1, 1, 1)), loader(4), loss=bce, epochs=1)


def test_empty_loaders():
    with pytest.raises(TrainingError, match="no batches"):
        list(fit(prepare(), loader(1, batch=2, drop_last=True), loss=bce, epochs=1))


@pytest.mark.parametrize(
    ("key", "change", "match"),
    [("mask", lambda mask: mask + 7, r"mask value\(s\) 7"),
     ("image", lambda image: image.repeat(3, 1, 1), r"3 channel\(s\), the model takes 1")],
)  # fmt: skip
def test_the_first_batch_is_checked_before_the_first_step(key, change, match):
    data = [{**sample, key: change(sample[key])} for sample in samples(4)]
    state = prepare()
    with pytest.raises(DataError, match=match):
        list(fit(state, DataLoader(data, batch_size=2), loss=bce, epochs=1))
    assert state.step == 0


def test_another_accelerator_does_not_change_the_accumulation():
    state = prepare(accumulate=2)
    accelerator()  # its state is global: it sets the accumulation of every other to 1
    list(fit(state, loader(8), loss=bce, epochs=1))
    assert state.step == 2


def test_no_warnings_in_a_common_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(fit(prepare(schedule=cosine()), loader(4), loss=bce, epochs=1))
