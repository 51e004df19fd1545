"""A rotating run that was cut goes on as if it had not been, and only as what it was."""

from __future__ import annotations

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


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize(
    "schedule", [cosine(), plateau(factor=0.5, patience=0)], ids=["cosine", "plateau"]
)
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.filterwarnings("ignore:the last batch of every epoch has one sample")
def test_a_resumed_run_is_the_same_run(tmp_path, after, schedule, pooled, monkeypatch):
    """With dropout, so that the random state counts; pooled: some runs leave out a lone sample."""
    options = {"epochs": 3, "schedule": schedule, "batch_size": 3}
    straight = net(pooled=pooled)
    expected = rotate(straight, folder=tmp_path / "a", **options)
    _forget()
    with monkeypatch.context() as patch:
        cut(patch, after)
        with pytest.raises(Stop):
            rotate(net(pooled=pooled), folder=tmp_path / "b", resume=True, **options)
    _forget()
    model = net(3, pooled=pooled)
    history = rotate(model, folder=tmp_path / "b", resume=True, **options)
    assert timeless(history) == timeless(expected)
    assert same(weights(straight), weights(model))
    assert (history.best_epoch, history.best_score) == (expected.best_epoch, expected.best_score)
    _forget()
    again = net(5, pooled=pooled)  # a finished run is only read
    assert rotate(again, folder=tmp_path / "b", resume=True, **options) == history
    assert same(weights(again), weights(model))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"folds": RotatingKFold(3, seed=5)}, r"validated by RotatingKFold\(.*seed=4.* by Rot"),
        ({"folds": RotatingKFold(2, seed=4)}, r"folds=3.*folds=2"),
        ({"score": "loss"}, r"scored by accuracy \(max\).*by loss \(min\)"),
        ({"epochs": 3}, r"laid out for 9 updates, but this training has \d+; give the same"),
        ({"batch_size": 1}, r"laid out for 9 updates"),
        ({"resume": False}, "already holds a run"),
    ],
)
def test_a_run_is_not_resumed_in_another_way(tmp_path, options, match):
    given = {"folder": tmp_path, "epochs": 1, "batch_size": 3}
    rotate(**given)
    _forget()
    with pytest.raises(TrainingError, match=match):
        rotate(**{**given, "resume": True, **options})


def test_runs_of_train_are_told_apart(tmp_path):
    plain = {
        "loss": TermsLoss(), "optimizer": OPTIMIZER, "metrics": Accuracy(), "score": "accuracy",
        "progress": False,
    }  # fmt: skip
    train(net(), loader(4), loader(2), epochs=1, folder=tmp_path / "a", accelerator=accelerator(),
          **plain)  # fmt: skip
    _forget()
    with pytest.raises(TrainingError, match=r"validated by a loader of its own.* by RotatingKFold"):
        rotate(folder=tmp_path / "a", resume=True, schedule=None)
    _forget()
    train(net(), loader(4), epochs=1, folder=tmp_path / "b", loss=TermsLoss(),
          optimizer=OPTIMIZER, accelerator=accelerator(), progress=False)  # fmt: skip
    _forget()
    with pytest.raises(TrainingError, match="validated by a loader of its own, or not at all"):
        rotate(folder=tmp_path / "b", resume=True, schedule=None)
    _forget()
    rotate(folder=tmp_path / "c", schedule=None)
    _forget()
    with pytest.raises(TrainingError, match=r"validated by RotatingKFold.* by a loader of its own"):
        train(net(), loader(4), loader(2), epochs=9, folder=tmp_path / "c", resume=True,
              accelerator=accelerator(), **plain)  # fmt: skip
