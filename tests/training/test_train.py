from __future__ import annotations

import csv
import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from transferseg.errors import TrainingError
from transferseg.training import adamw, cosine, evaluate, plateau, sgd, train

from .conftest import _forget
from .tiny import (
    Accuracy,
    Scripted,
    Stop,
    TermsLoss,
    accelerator,
    bce,
    cut,
    loader,
    net,
    same,
    samples,
    timeless,
    weights,
)


def run(model=None, *, epochs=3, **options):
    model = net() if model is None else model
    given = {
        "loss": TermsLoss(),
        "optimizer": partial(adamw, lr=0.05),
        "schedule": cosine(),
        "accelerator": accelerator(),
        "progress": False,
        **options,
    }
    data = given.pop("train_loader", None) or loader(9)
    return train(model, data, given.pop("validation", None) or loader(5), epochs=epochs, **given)


def test_rows_and_files(tmp_path):
    model = net()
    history = run(model, folder=tmp_path / "run", metrics=Accuracy(), score="accuracy")
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]
    assert list(history.rows[0]) == [
        "epoch", "step", "loss", "bce", "square", "learning_rate", "seconds", "data_seconds",
        "images_per_second", "samples_seen", "skipped", "score", "score_name",
        "validation_accuracy", "validation_loss", "validation_loss_bce", "validation_loss_square",
    ]  # fmt: skip
    assert history.samples_seen == 27
    assert 0 < history.seconds == pytest.approx(sum(r["seconds"] for r in history.rows))
    best = max(history.rows, key=lambda row: row["score"])
    assert (history.best_epoch, history.best_score) == (best["epoch"], best["score"])
    scores = evaluate(model, loader(5), metrics=Accuracy())
    assert scores["accuracy"] == history.rows[-1]["validation_accuracy"]
    found = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert found == ["best", "history.csv", "last"]
    with (tmp_path / "run" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == [row["score"] for row in history.rows]
    history.to_csv(tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_text() == (tmp_path / "run" / "history.csv").read_text()
    state = json.loads((tmp_path / "run" / "last" / "train_state.json").read_text())
    assert state["counters"]["history"] == list(history.rows)


def test_early_stopping_and_the_best_weights(tmp_path):
    seen = []

    class Watched(Scripted):
        def update(self, logits, target):
            super().update(logits, target)
            seen.append(weights(model))

    for folder in (None, tmp_path / "run"):
        _forget()
        seen.clear()
        model = net()
        history = run(
            model,
            epochs=9,
            metrics=Watched([0.1, 0.5, 0.5, 0.4, 0.9]),
            score=lambda scores: scores["quality"],
            patience=2,
            restore_best=True,
            folder=folder,
            validation=loader(2),
        )
        assert len(history.rows) == 4
        assert (history.best_epoch, history.best_score) == (2, 0.5)
        assert same(weights(model), seen[1])
        assert not same(weights(model), seen[3])
    assert same(load_file(tmp_path / "run" / "best" / "model.safetensors"), seen[1])


def test_the_last_weights_stay_unless_asked():
    model, other = net(), net()
    run(model, metrics=Scripted([3, 2, 1]), score="quality")
    _forget()
    run(other, metrics=Scripted([1, 2, 3]), score="quality", restore_best=True)
    assert same(weights(model), weights(other))


def test_the_loss_decides_without_metrics():
    history = run()
    lowest = min(history.rows, key=lambda row: row["validation_loss"])
    assert history.best_epoch == lowest["epoch"]
    assert history.best_score == lowest["validation_loss"]


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize(
    "schedule", [cosine(), plateau(factor=0.5, patience=0, mode="min")], ids=["cosine", "plateau"]
)
def test_a_resumed_run_is_the_same_run(tmp_path, after, schedule, monkeypatch):
    straight = net()
    expected = run(straight, epochs=4, schedule=schedule, folder=tmp_path / "a", restore_best=True)
    _forget()
    with monkeypatch.context() as patch:
        cut(patch, after)
        with pytest.raises(Stop):
            run(net(), epochs=4, schedule=schedule, folder=tmp_path / "b", resume=True)
    _forget()
    model = net(3)
    history = run(
        model, epochs=4, schedule=schedule, folder=tmp_path / "b", resume=True, restore_best=True
    )
    assert timeless(history) == timeless(expected)
    assert (history.best_epoch, history.best_score) == (
        expected.best_epoch,
        expected.best_score,
    )
    assert same(weights(straight), weights(model))
    name = "best/model.safetensors"
    assert same(load_file(tmp_path / "a" / name), load_file(tmp_path / "b" / name))


def test_a_finished_run_is_only_read(tmp_path):
    model = net()
    history = run(model, folder=tmp_path / "run")
    trained = weights(model)
    _forget()
    again = net(4)
    assert run(again, folder=tmp_path / "run", resume=True) == history
    assert same(weights(again), trained)
    _forget()
    stopped = {"metrics": Scripted([2, 1]), "score": "quality", "patience": 1, "epochs": 5}
    first = run(folder=tmp_path / "stopped", **stopped)
    _forget()
    assert run(folder=tmp_path / "stopped", resume=True, **stopped) == first


def test_a_run_is_not_overwritten(tmp_path):
    run(folder=tmp_path / "run", epochs=1)
    _forget()
    with pytest.raises(TrainingError, match="already holds a run; give resume=True"):
        run(folder=tmp_path / "run", epochs=1)


def test_plateau_follows_the_score():
    history = run(
        optimizer=partial(sgd, lr=0.1),
        schedule=plateau(factor=0.5, patience=0),
        metrics=Scripted([1, 2, 2]),
        score="quality",
        epochs=3,
    )
    # the rate of a row is that of the update to come, as with every other schedule
    assert [row["learning_rate"] for row in history.rows] == [0.1, 0.1, 0.05]
    _forget()
    history = run(
        optimizer=partial(sgd, lr=0.1),
        schedule=plateau(factor=0.5, patience=0),
        metrics=Scripted([2, 1, 1]),
        score="quality",
        epochs=3,
    )
    assert [row["learning_rate"] for row in history.rows] == [0.1, 0.05, 0.025]


def test_without_validation(tmp_path):
    model = net()
    history = train(
        model, loader(6), loss=bce, epochs=2, accelerator=accelerator(), folder=tmp_path / "r",
        progress=False,
    )  # fmt: skip
    assert history.best_epoch is history.best_score is None
    assert "score" not in history.rows[0]
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["history.csv", "last"]


def test_validation_changes_nothing_in_training():
    model, other = net(), net()
    run(model)
    _forget()
    train(
        other, loader(9), loss=TermsLoss(), optimizer=partial(adamw, lr=0.05), schedule=cosine(),
        accelerator=accelerator(), epochs=3, progress=False,
    )  # fmt: skip
    assert same(weights(model), weights(other))


def test_accelerator_and_model_are_handed_back():
    shared = accelerator(mixed_precision="bf16")
    model = net()
    run(model, accelerator=shared, epochs=1)
    assert not hasattr(model, "_original_forward")
    assert shared._models == []
    run(model, accelerator=shared, epochs=1)
    dtypes = []
    model.first.register_forward_hook(lambda *args: dtypes.append(args[-1].dtype))
    model(torch.zeros(1, 1, 4, 4))
    assert dtypes == [torch.float32]


def test_progress(capsys):
    run(progress=True, epochs=2)
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown
    assert "10/10" in shown
    assert "score=" in shown


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"metrics": Accuracy()}, "say which score"),
        ({"metrics": Accuracy(), "score": "acuracy"}, "Did you mean 'accuracy'"),
        ({"schedule": plateau()}, r"make it plateau\(mode='min'\)"),
        ({"resume": True}, "resume needs the folder"),
        ({"patience": 0}, "patience must be 1"),
        ({"epochs": 2.5}, r"epochs must be a whole number, got 2\.5"),
        ({"epochs": None}, "epochs must be a whole number, got None"),
        ({"epochs": -1}, "epochs must be 0 or more, got -1"),
    ],
)
def test_options_that_do_not_fit(options, match):
    shared = accelerator()
    with pytest.raises(TrainingError, match=match):
        run(accelerator=shared, **options)
    assert shared._models == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"patience": 2}, "patience needs a score"),
        ({"restore_best": True}, "restore_best needs a score"),
        ({"schedule": plateau()}, "a plateau schedule needs a score"),
        ({"metrics": Accuracy(), "mode": "max"}, "metrics and mode without a validation loader"),
    ],
)
def test_options_that_need_validation(options, match):
    with pytest.raises(TrainingError, match=match):
        train(net(), loader(2), loss=bce, epochs=1, progress=False, **options)


def test_a_folder_needs_a_model_that_can_be_saved(tmp_path):
    model = nn.Conv2d(1, 1, 1)
    model.spec = net().spec
    with pytest.raises(TrainingError, match="Conv2d has no save_pretrained"):
        run(model, folder=tmp_path / "run")


def test_scores_that_are_never_numbers():
    nothing = Scripted([float("nan")] * 3)
    with pytest.warns(UserWarning, match="no score was a number"):
        history = run(metrics=nothing, score="quality", restore_best=True)
    assert (len(history.rows), history.best_epoch) == (3, None)


def test_undefined_scores_are_nan():
    from transferseg.metrics import SegmentationCounts

    class Undefined(SegmentationCounts):
        def scores(self):
            return super().scores(empty="exclude")

    history = run(metrics=Undefined(["lesion"], mode="binary"), score="mean_dice", epochs=1)
    row = history.rows[0]
    assert row["score"] == row["validation_mean_dice"] == row["validation_dice_lesion"]
    assert row["validation_images"] == 5


def test_a_term_of_the_loss_is_never_taken_for_a_score():
    with pytest.raises(TrainingError, match="unknown score 'bce'"):
        run(metrics=Accuracy(), score="bce", epochs=1)
    history = run(metrics=Accuracy(), score="loss_bce", epochs=2)
    assert history.best_score == min(row["score"] for row in history.rows)


def test_a_run_is_not_resumed_under_another_score(tmp_path):
    run(folder=tmp_path, epochs=1)
    with pytest.raises(TrainingError, match=r"scored by loss \(min\).*by accuracy \(max\)"):
        run(folder=tmp_path, epochs=2, resume=True, metrics=Accuracy(), score="accuracy")


class Grouped(list):
    groups = ("a", "b", "c")


def test_a_group_on_both_sides_is_refused_before_training():
    data = torch.utils.data.DataLoader(Grouped(samples(3)), batch_size=3)
    model = net()
    before = weights(model)
    with pytest.raises(TrainingError, match=r"3 group.* a, b, c"):
        run(model, train_loader=data, validation=data, epochs=1)
    assert same(before, weights(model))
    run(model, train_loader=data, validation=data, epochs=1, allow_shared_groups=True)


def test_progress_false_prints_nothing(capfd):
    run(epochs=1, metrics=Accuracy(), score="accuracy")
    assert capfd.readouterr() == ("", "")
