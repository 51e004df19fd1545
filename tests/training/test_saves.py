"""Saves that do not fit, are damaged or half written."""

from __future__ import annotations

import json

import pytest
import torch

from transferseg.errors import TrainingError
from transferseg.training import TrainState, adamw, constant, sgd

from .conftest import _forget
from .resuming import everything, prepare, run, same
from .tiny import Net, accelerator, loader


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
        with pytest.raises(TrainingError, match=r"could not be written to .*disk full"):
            state.save(save)
    assert {p.name: p.read_bytes() for p in save.iterdir()} == before
    assert [p.name for p in save.parent.iterdir()] == ["s"]
    _forget()
    state = prepare()
    state.load(save)
    assert state.step == 2
