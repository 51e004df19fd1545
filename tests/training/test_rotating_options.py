"""The options of `train_rotating`: schedules, stopping, logs, data, and what does not fit."""

from __future__ import annotations

import json
import math

import pytest
import torch

from transferseg.data import RotatingKFold
from transferseg.errors import DataError, TrainingError
from transferseg.training import constant, plateau

from .conftest import _forget
from .tiny import (
    FOLDS,
    Cohort,
    Scripted,
    TermsLoss,
    accelerator,
    darker,
    net,
    prepared,
    rotate,
    same,
    weights,
)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.filterwarnings("ignore:the last batch of every epoch has one sample")
def test_a_schedule_ends_with_the_last_update(accumulate, pooled):
    """13 images of patients of one and two: parts differ in size, and some leave a lone sample."""
    reader = Cohort(13)
    sizes = [len(fold.train) for epoch in range(4) for fold in FOLDS.epoch(reader.groups, epoch)]
    assert len(set(sizes)) > 1
    batches = [size // 2 if pooled else -(-size // 2) for size in sizes]
    history = rotate(
        net(pooled=pooled),
        epochs=4,
        data=prepared(reader, augment=darker),
        validation=prepared(reader),
        accelerator=accelerator(gradient_accumulation_steps=accumulate),
    )
    assert history.rows[-1]["step"] == sum(-(-count // accumulate) for count in batches)
    assert history.rows[-1]["learning_rate"] == 0.0
    assert history.rows[-2]["learning_rate"] > 0.0


def test_a_lone_last_sample_is_left_out_and_said():
    with pytest.warns(UserWarning, match=r"one sample and is left out: pool.1 "):
        history = rotate(
            net(pooled=True), epochs=1, folds=RotatingKFold(4, by_group=False), schedule=None
        )
    assert history.samples_seen == 4 * 8  # of nine images in batches of two


def test_early_stopping_counts_epochs_and_the_best_weights_come_back():
    model, seen = net(), []

    class Watched(Scripted):
        def scores(self):
            seen.append(weights(model))
            return super().scores()

    history = rotate(
        model,
        epochs=9,
        metrics=Watched([0.1, 0.5, 0.5, 0.4, 0.9]),
        score="quality",
        patience=2,
        restore_best=True,
        schedule=constant(),
    )
    assert [row["score"] for row in history.rows] == [0.1, 0.5, 0.5, 0.4]
    assert (history.best_epoch, history.best_score) == (2, 0.5)
    assert same(weights(model), seen[-3])  # of four; a name is tried before the first
    assert not same(weights(model), seen[3])


def test_best_weights_that_never_were_are_said_where_it_was_called():
    nothing = Scripted([float("nan")] * 2)
    with pytest.warns(UserWarning, match="no score was a number") as caught:
        rotate(metrics=nothing, score="quality", restore_best=True)
    assert caught[0].filename == rotate.__code__.co_filename  # which calls `train_rotating`


class Spoilt(TermsLoss):
    """Not a number in the first batches that train."""

    def __init__(self, count):
        self.left = count

    def terms(self, logits, target):
        parts = super().terms(logits, target)
        if torch.is_grad_enabled() and self.left:
            self.left -= 1
            parts["loss"] = parts["loss"] * math.nan
        return parts


@pytest.mark.parametrize("spoilt", [4, 12])
@pytest.mark.filterwarnings("ignore:the loss of update")
def test_losses_that_are_no_numbers_are_left_out_of_the_means(spoilt):
    """Three runs of eight images, in batches of two: the first run may have none that is whole."""
    (row,) = rotate(
        loss=Spoilt(spoilt), skip_nonfinite=spoilt, epochs=1, schedule=None, score="accuracy"
    ).rows
    assert (row["skipped"], row["step"]) == (spoilt, 12 - spoilt)
    assert math.isnan(row["loss"]) == (spoilt == 12)
    assert math.isnan(row.get("bce", math.nan)) == (spoilt == 12)


def test_updates_are_logged_and_the_best_models_kept(tmp_path):
    options = {"folder": tmp_path, "best_k": 1, "log_every": 6}
    rotate(epochs=1, schedule=None, **options)
    _forget()
    history = rotate(epochs=2, schedule=None, resume=True, **options)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["event"], row["epoch"], row["step"]) for row in log] == [
        ("step", 2, 6), ("step", 3, 12), ("epoch", 1, 12),
        ("step", 5, 18), ("step", 6, 24), ("epoch", 2, 24),
    ]  # fmt: skip
    kept = json.loads((tmp_path / "checkpoints" / "index.json").read_text())["checkpoints"]
    assert [one["score"] for one in kept] == [history.best_score]


def test_the_loss_decides_without_metrics():
    history = rotate(metrics=None, score=None)
    assert history.rows[0]["score_name"] == "loss (min)"
    assert history.best_score == min(row["validation_loss"] for row in history.rows)


def test_workers_change_nothing():
    alone, helped = net(), net()
    rotate(alone, epochs=1)
    _forget()
    rotate(helped, epochs=1, workers=1)
    assert same(weights(alone), weights(helped))


def test_a_part_of_a_reader():
    """Positions are those of the data set, not of the reader behind it."""
    log = []
    part = (1, 4, 5, 7, 8, 10)
    rotate(
        data=prepared(Cohort(log=log), augment=darker, indices=part),
        validation=prepared(indices=part),
        folds=RotatingKFold(2),
    )
    assert {index for _, index in log} == set(part)


def test_progress_counts_runs(capsys):
    rotate(progress=True)
    shown = capsys.readouterr().err
    assert "run 6/6" in shown
    assert "score=" in shown


# --- what does not fit --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"validation": prepared(indices=range(11))},
         "of 12 and 11 .* position 11 are s11 and none"),
        ({"validation": prepared(indices=[1, 0, *range(2, 12)])}, "position 0 are s0 and s1"),
        ({"validation": prepared(augment=darker)}, "validation data are augmented"),
        ({"data": prepared(indices=[0, 1, 2, 3, 1])}, r"image\(s\) s1 stand twice"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"epochs": -1}, "epochs must be 0 or more, got -1"),
        ({"epochs": 2.5}, r"epochs must be a whole number, got 2\.5"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"score": None}, "say which score"),
        ({"score": "acuracy"}, "Did you mean 'accuracy'"),
        ({"schedule": plateau(mode="min")}, r"make it plateau\(mode='max'\)"),
        ({"resume": True}, "resume needs the folder"),
        ({"patience": 0}, "patience must be 1"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(options, match):
    model, shared = net(), accelerator()
    before = weights(model)
    with pytest.raises(TrainingError, match=match):
        rotate(model, accelerator=shared, **options)
    assert same(before, weights(model))
    assert shared._models == []


def test_too_few_groups_are_said_before_anything_is_prepared():
    shared = accelerator()
    with pytest.raises(DataError, match=r"8 group\(s\) cannot fill 9 folds"):
        rotate(folds=RotatingKFold(), accelerator=shared)
    assert shared._models == []


def test_no_epochs_train_nothing():
    model = net()
    before = weights(model)
    history = rotate(model, epochs=0)
    assert (history.rows, history.validation_scheme) == ((), None)
    assert same(before, weights(model))
