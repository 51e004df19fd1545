"""Frozen parts within the loops, and parts that begin to train at an epoch."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import transferseg as ts
from transferseg.errors import SpecError, TrainingError
from transferseg.models import Unfreezing, freeze, frozen
from transferseg.training import EpochEvent, TrainState, adamw, cosine, fit, sgd, train

from .conftest import _forget
from .gradual_processes import main, small, trained
from .test_processes import launch
from .test_resume import everything, same, told
from .tiny import TermsLoss, accelerator, bce, loader, rotate, samples, timeless, weights


def radiographs(count=6):
    """Images of a size that a real encoder takes."""
    items = samples(count, size=32)
    return torch.utils.data.DataLoader(items, batch_size=2, shuffle=True)


def unet():
    torch.manual_seed(0)
    return ts.create_model(
        "unet", "resnet10t", classes=["lesion"], in_channels=1, channels=[8, 8, 8, 8, 8]
    )


def test_training_moves_no_bit_of_a_frozen_encoder():
    model = unet()
    freeze(model, "encoder")
    before = weights(model)
    image = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = [f.clone() for f in model.eval().encoder(image)]
    train(
        model, radiographs(), radiographs(2), loss=bce, epochs=2, progress=False,
        optimizer=partial(adamw, lr=0.05, weight_decay=0.5), accelerator=accelerator(),
        allow_shared_groups=True,
    )  # fmt: skip
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert not any(key.startswith("encoder.") for key in moved)
    assert {"head.weight", "decoder.blocks.0.conv1.1.running_var"} <= moved
    with torch.no_grad():
        again = model.eval().encoder(image)
    assert all(torch.equal(a, b) for a, b in zip(features, again, strict=True))
    assert not any(module.training for module in model.train().encoder.modules())


def test_parts_begin_to_train_at_their_epochs():
    model = unet()
    gradual = Unfreezing({1: "encoder.stages[3:]", 2: "encoder"})
    state = TrainState.prepare(
        model, optimizer=partial(sgd, lr=0.01, momentum=0.0), accelerator=accelerator()
    )
    last, seen = weights(model), {}
    for event in fit(state, radiographs(), loss=bce, epochs=3, unfreeze=gradual):
        if isinstance(event, EpochEvent):
            moved = {k for k, v in model.state_dict().items() if not torch.equal(v, last[k])}
            seen[event.epoch] = moved
            last = weights(model)
    encoder = {e: {k for k in keys if k.startswith("encoder.")} for e, keys in seen.items()}
    assert encoder[1] == set()
    assert all(
        key.startswith(("encoder.model.layer3.", "encoder.model.layer4.")) for key in encoder[2]
    )
    for name in ("layer3.0.conv1.weight", "layer4.0.conv2.weight", "layer4.0.bn1.running_mean"):
        assert f"encoder.model.{name}" in encoder[2]
    assert {"encoder.model.conv1.0.weight", "encoder.model.bn1.running_mean"} <= encoder[3]
    assert {"head.weight", "decoder.blocks.0.conv1.0.weight"} <= seen[1] & seen[2] & seen[3]
    assert frozen(model) == ()


def prepared(seed=0):
    return TrainState.prepare(
        small(seed), optimizer=partial(adamw, lr=0.05), schedule=cosine(),
        accelerator=accelerator(), seed=7,
    )  # fmt: skip


GRADUAL = Unfreezing({1: "first", 2: "norm"})


def follow(state, *, stop=None, folder=None, unfreeze=GRADUAL):
    events = []
    for event in fit(state, loader(), loss=TermsLoss(), epochs=4, unfreeze=unfreeze):
        events.append(told(event))
        if len(events) == stop:
            state.save(folder)
            break
    return events


@pytest.mark.parametrize("stop", [3, 6, 9, 12, 15, 20])
def test_a_resumed_run_unfreezes_as_the_straight_one(tmp_path, stop):
    straight = prepared()
    expected = follow(straight)
    wanted = everything(straight)
    _forget()
    events = follow(prepared(), stop=stop, folder=tmp_path / "save")
    _forget()
    resumed = prepared(seed=5)
    resumed.load(tmp_path / "save")
    events += follow(resumed)
    assert events == expected
    same(wanted, everything(resumed))
    assert frozen(resumed.unwrapped) == frozen(straight.unwrapped) == ()


def test_train_resumes_with_unfreezing_to_the_same_weights(tmp_path):
    options = {
        "loss": TermsLoss(), "optimizer": partial(adamw, lr=0.05), "schedule": None,
        "progress": False, "unfreeze": GRADUAL,
    }  # fmt: skip
    whole = small()
    history = train(whole, loader(), epochs=4, accelerator=accelerator(), **options)
    _forget()
    train(
        small(), loader(), epochs=2, accelerator=accelerator(), folder=tmp_path / "run", **options
    )
    _forget()
    resumed = small(3)
    again = train(
        resumed, loader(), epochs=4, accelerator=accelerator(), folder=tmp_path / "run",
        resume=True, **options,
    )  # fmt: skip
    assert timeless(again) == timeless(history)
    mine, other = weights(resumed), weights(whole)
    assert all(torch.equal(mine[k], other[k]) for k in other)


def test_nothing_that_is_not_named_is_touched_by_training_gradually():
    model = small()
    freeze(model, "first")
    before = weights(model)
    train(
        model, loader(), loss=bce, epochs=2, progress=False, accelerator=accelerator(),
        unfreeze=Unfreezing({1: "norm"}),
    )  # fmt: skip
    assert torch.equal(model.first.weight, before["first.weight"])
    assert not torch.equal(model.norm.weight, before["norm.weight"])
    assert frozen(model) == ("first.weight", "first.bias")


def test_an_epoch_in_which_nothing_trains_is_an_error():
    model = small()
    with pytest.raises(TrainingError, match="every parameter is frozen in epoch 1"):
        train(
            model, loader(), loss=bce, epochs=2, progress=False, accelerator=accelerator(),
            unfreeze=Unfreezing({1: "*"}),
        )  # fmt: skip
    _forget()
    freeze(model, "*")
    with pytest.raises(TrainingError, match="every parameter is frozen in epoch 1"):
        train(model, loader(), loss=bce, epochs=1, progress=False, accelerator=accelerator())


def test_unknown_names_train_nothing():
    model = small()
    before = weights(model)
    state = TrainState.prepare(model, optimizer=sgd, accelerator=accelerator())
    for run in (
        lambda: list(fit(state, loader(), loss=bce, epochs=1, unfreeze=Unfreezing({1: "lats"}))),
        lambda: train(model, loader(), loss=bce, epochs=1, unfreeze=Unfreezing({1: "lats"})),
    ):
        with pytest.raises(SpecError, match="Did you mean 'last'"):
            run()
    assert all(torch.equal(v, before[k]) for k, v in weights(model).items())


def test_batches_are_left_out_for_a_norm_that_is_still_frozen(tmp_path):
    """Whether the last sample can be used is decided once, also in a run that is resumed."""
    gradual = Unfreezing({1: "pool"})

    def run(state, *, epochs):
        data = torch.utils.data.DataLoader(samples(5), batch_size=2, shuffle=True)
        with pytest.warns(UserWarning, match="has one sample and is left out: pool.1"):
            return [
                told(event) for event in fit(state, data, loss=bce, epochs=epochs, unfreeze=gradual)
            ]

    def state(seed=0):
        return TrainState.prepare(
            small(seed, pooled=True), optimizer=partial(sgd, lr=0.1), accelerator=accelerator()
        )

    straight = state()
    expected = run(straight, epochs=2)
    assert straight.step == 4
    wanted = everything(straight)
    _forget()
    first = state()
    events = run(first, epochs=1)
    first.save(tmp_path / "save")
    _forget()
    second = state(4)
    second.load(tmp_path / "save")
    assert events + run(second, epochs=2) == expected
    same(wanted, everything(second))


def test_a_frozen_norm_takes_batches_of_one_sample():
    model = small(pooled=True)
    freeze(model, "pool")
    state = TrainState.prepare(model, optimizer=sgd, accelerator=accelerator())
    data = torch.utils.data.DataLoader(samples(5), batch_size=2)
    assert len(list(fit(state, data, loss=bce, epochs=1))) == 4


def test_epochs_of_a_rotation_are_those_of_all_folds():
    def moved(epochs):
        _forget()
        model = small()
        before = weights(model)
        rotate(model, epochs=epochs, unfreeze=Unfreezing({1: "first"}), schedule=None)
        return not torch.equal(model.first.weight, before["first.weight"])

    assert [moved(1), moved(2)] == [False, True]


def test_two_processes_unfreeze_as_one(tmp_path):
    one = trained(4)
    two = launch(tmp_path, 2, 2, work=main)
    assert two[0]["first"] == two[1]["first"] == pytest.approx(one["first"], abs=1e-6)
    assert two[0]["last"] == two[1]["last"] == pytest.approx(one["last"], abs=1e-6)
    assert two[0]["after one epoch"] == two[0]["before"]
    assert two[0]["first"] != two[0]["before"]
    assert one["errors"] == [None, None]
    for found in two:
        waits, exchanges = found["errors"]
        assert "find_unused_parameters=True" in waits
        assert "2 of 4 parameters were frozen when the state was prepared" in exchanges


def test_a_bare_dict_is_no_unfreezing():
    state = TrainState.prepare(unet(), optimizer=sgd, accelerator=accelerator())
    with pytest.raises(TrainingError, match=r"models\.Unfreezing\(\{epoch: names\}\)"):
        fit(state, radiographs(), loss=bce, epochs=1, unfreeze={0: "decoder"})
