"""A rotating run that was cut within an epoch goes on within it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from transferseg.data import RotatingKFold
from transferseg.errors import TrainingError
from transferseg.training import cosine, plateau, train

from .conftest import _forget
from .tiny import (
    OPTIMIZER,
    Accuracy,
    Stop,
    TermsLoss,
    accelerator,
    cut,
    loader,
    net,
    rotate,
    same,
    timeless,
    weights,
)


def noted(done):
    """The optimizer of `rotate`; every update that is made goes into a list."""

    def make(model):
        optimizer = OPTIMIZER(model)
        optimizer.register_step_post_hook(lambda *_: done.append(1))
        return optimizer

    return make


@pytest.mark.parametrize(
    ("every", "options"),
    [
        (3, {"schedule": cosine(), "ema_decay": 0.5}),
        (4, {"schedule": plateau(factor=0.5, patience=0), "best_k": 1, "restore_best": True}),
    ],
    ids=["within runs", "at their ends"],
)
def test_cut_at_every_save_it_is_the_same_run(tmp_path, every, options, monkeypatch):
    """Two epochs of three runs of four updates; every attempt is left at its second save."""
    options = {**options, "log_every": 1}
    straight, made = net(), []
    expected = rotate(straight, folder=tmp_path / "a", optimizer=noted(made), **options)
    assert len(made) == 24
    executed, ended = [], False
    given = {**options, "folder": tmp_path / "b", "save_every": every, "resume": True}
    while not ended:
        _forget()
        model, made = net(len(executed)), []
        with monkeypatch.context() as patch:
            cut(patch, 1)
            try:
                history = rotate(model, optimizer=noted(made), **given)
                ended = True
            except Stop:
                assert len(made) <= 2 * every
        executed.append(len(made))
    assert len(executed) == 24 // every + 2  # as many as saves, of updates and epochs
    assert sum(executed) == 24 + (24 - every)  # all but those before the first save came twice
    assert timeless(history) == timeless(expected)
    assert same(weights(straight), weights(model))
    assert (history.best_epoch, history.best_score) == (expected.best_epoch, expected.best_score)
    assert events(tmp_path / "b") == events(tmp_path / "a")
    assert names(tmp_path / "b") == names(tmp_path / "a")  # nothing is left of the runs


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def events(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [
        (row["event"], row["epoch"], row["step"], row["loss"]) for row in map(json.loads, lines)
    ]


@pytest.fixture
def within(tmp_path, monkeypatch):
    """The folder of a run that was cut in the second of the three runs of its first epoch."""
    with monkeypatch.context() as patch:
        cut(patch, 1)
        with pytest.raises(Stop):
            rotate(folder=tmp_path / "run", save_every=np.int64(5))
    _forget()
    return tmp_path / "run"


def test_it_goes_on_with_another_number_of_updates_or_none(within):
    history = rotate(folder=within, resume=True)
    _forget()
    assert timeless(history) == timeless(rotate())
    assert names(within) == ["best", "history.csv", "last"]


def test_it_does_not_go_on_in_another_way(within):
    with pytest.raises(
        TrainingError, match=r"validated by RotatingKFold\(.*seed=4.* by Rot.*seed=5"
    ):
        rotate(folder=within, resume=True, folds=RotatingKFold(3, seed=5))
    _forget()
    with pytest.raises(TrainingError, match=r"validated by RotatingKFold.* by a loader of its own"):
        train(net(), loader(8), loader(2), epochs=9, folder=within, resume=True,
              accelerator=accelerator(), loss=TermsLoss(), optimizer=OPTIMIZER,
              schedule=cosine(), progress=False)  # fmt: skip


def test_without_the_weights_of_its_runs_it_does_not_go_on(within):
    shutil.rmtree(within / "runs")
    with pytest.raises(TrainingError, match=r"runs.1 is gone"):
        rotate(folder=within, resume=True)


def test_a_run_of_train_that_was_cut_within_its_first_epoch_is_none(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        cut(patch, 1)
        with pytest.raises(Stop):
            train(net(), loader(8), loader(2), epochs=2, folder=tmp_path, save_every=1,
                  accelerator=accelerator(), loss=TermsLoss(), optimizer=OPTIMIZER,
                  metrics=Accuracy(), score="accuracy", progress=False,
                  allow_shared_groups=True)  # fmt: skip
    _forget()
    with pytest.raises(
        TrainingError, match=r"0 run.* and 1 batch.* train_rotating did not save it"
    ):
        rotate(folder=tmp_path, resume=True, schedule=None)
