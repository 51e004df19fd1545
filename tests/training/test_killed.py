"""Killed at any moment, a run goes on from its last save and ends as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from tests.forked import together

from .killed import EVERY, loop_kills, main, rotation_kills, train_kills
from .tiny import TIMES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="attempts are forks of a process")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of all runs, and what each of their attempts was."""
    folder = tmp_path_factory.mktemp("killed")
    together(main, folder, folder=folder, processes=1)
    return folder, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(
    ("name", "kills"),
    [("loop", loop_kills()), ("train", train_kills()), ("rotating", rotation_kills())],
)
def test_no_kill_costs_more_updates_than_there_are_between_two_saves(trained, name, kills):
    _, found = trained
    straight, attempts = found[f"straight {name}"], found[f"killed {name}"]
    assert [one["done"] for one in straight] == [True]
    assert [tuple(one["kill"]) for one in attempts[:-1]] == kills
    assert all(one["killed"] for one in attempts[:-1])
    assert attempts[-1]["done"]
    repeated = [one["begun"] + one["executed"] - one["saved"] for one in attempts]
    assert all(0 <= count <= EVERY for count in repeated), repeated
    assert max(repeated) > 0
    assert sum(one["executed"] for one in attempts) == straight[0]["executed"] + sum(repeated)


@pytest.mark.parametrize("name", ["loop", "train", "rotating", "failing"])
def test_the_end_is_the_end_of_a_run_that_was_never_killed(trained, name):
    folder, _ = trained
    straight = folder / f"straight-{'loop' if name == 'failing' else name}" / "run"
    killed = folder / name / "run"
    names = sorted(path.name for path in straight.iterdir())
    assert sorted(path.name for path in killed.iterdir()) == names  # nothing is left half done
    kept = name in ("train", "rotating")
    assert names == (["best", "history.csv", "last"] if kept else ["last"])
    for model in straight.glob("*/model.safetensors"):
        other = killed / model.relative_to(straight)
        assert model.read_bytes() == other.read_bytes(), model
    assert "norm.running_var" in load_file(killed / "last" / "model.safetensors")
    for file in ("optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl"):
        same(*(torch.load(run / "last" / file, weights_only=False) for run in (straight, killed)))
    assert described(killed) == described(straight)
    if kept:
        assert rows(killed) == rows(straight)


def same(first, second):
    """Equal to the last bit, whatever it is."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            same(value, second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            same(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif hasattr(first, "tobytes"):
        assert first.tobytes() == second.tobytes()
    else:
        assert first == second


def described(run):
    """The description of a save without wall times and file sizes (pickles tell their names)."""
    values = json.loads((run / "last" / "train_state.json").read_text())
    counters = values["counters"]
    for one in (counters, *counters["history"]):
        for name in TIMES:
            one.pop(name, None)
    del counters["epoch_seconds"], counters["epoch_data_seconds"], values["files"]
    return values


def rows(run):
    with (run / "history.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def test_every_change_of_files_may_fail_and_training_goes_on(trained):
    folder, _ = trained
    said = json.loads((folder / "failing.json").read_text())
    assert len(said) > 8  # a folder, five files, the folder, two renames
    for text in said:
        assert "the state could not be written to" in text
        assert "No space left on device" in text
        assert "MB free there" in text
        assert "save again" in text
