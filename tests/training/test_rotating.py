from __future__ import annotations

import csv
import json
import math
from itertools import groupby

import pytest
import torch
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler

from transferseg.data import RotatingKFold
from transferseg.errors import DataError, TrainingError
from transferseg.training import (
    EMA,
    MeanLoss,
    TrainState,
    constant,
    cosine,
    evaluate,
    fit,
    plateau,
    train,
)
from transferseg.training.folding import held_out_part, training_part

from .conftest import _forget
from .tiny import (
    FOLDS,
    OPTIMIZER,
    Accuracy,
    Cohort,
    Scripted,
    TermsLoss,
    accelerator,
    darker,
    loader,
    net,
    prepared,
    rotate,
    same,
    weights,
)

SCHEME = (
    "RotatingKFold(folds=3, seed=4, by_group=True, reshuffle=True): images that validate in one "
    "run train in the others"
)


def test_it_is_the_loop_written_by_hand():
    model = net()
    history = rotate(model, clip_norm=0.5, folds=RotatingKFold(4, by_group=False))
    _forget()
    oracle, folds = net(), RotatingKFold(4, by_group=False)
    state = TrainState.prepare(
        oracle,
        optimizer=OPTIMIZER,
        schedule=cosine(),
        total_steps=2 * 4 * 5,  # nine of twelve images train, in batches of two
        accelerator=accelerator(),
    )
    data, validation = prepared(augment=darker), prepared()
    for epoch in range(2):
        right, pixels, losses, seen = 0, 0, 0.0, 0
        validated = MeanLoss(TermsLoss())
        for fold in folds.epoch(data.groups, epoch):
            batches = DataLoader(data, batch_size=2, sampler=SubsetRandomSampler(fold.train))
            *_, last = fit(state, batches, loss=TermsLoss(), epochs=state.epoch + 1, clip_norm=0.5)
            losses, seen = losses + last.loss * len(fold.train), seen + len(fold.train)
            held_out = DataLoader(Subset(validation, fold.validation), batch_size=2)
            counts, mean = Accuracy(), MeanLoss(TermsLoss())
            evaluate(state.model, held_out, metrics={"a": counts, "b": mean})
            right, pixels = right + counts.right.item(), pixels + counts.all.item()
            validated += mean
        row = history.rows[epoch]
        assert pixels == 12 * 36  # every image once
        assert row["validation_accuracy"] == row["score"] == pytest.approx(right / pixels)
        assert row["validation_loss"] == validated.scores()["loss"]
        assert row["loss"] == pytest.approx(losses / seen)
        assert (row["epoch"], row["runs"], row["step"]) == (epoch + 1, 4, state.step)
        assert (row["samples_seen"], row["learning_rate"]) == (
            state.samples_seen,
            state.learning_rate,
        )
    assert state.step == 40
    assert history.rows[-1]["learning_rate"] == 0.0
    assert same(weights(model), weights(oracle))


def test_averaged_weights_count_the_folds():
    model = net()
    history = rotate(model, epochs=1, schedule=None, ema_decay=0.5)
    _forget()
    oracle, validated = net(), MeanLoss(TermsLoss())
    state = TrainState.prepare(oracle, optimizer=OPTIMIZER, accelerator=accelerator())
    ema = EMA(state, decay=0.5)
    for fold in FOLDS.epoch(Cohort().groups, 0):
        batches = training_part(prepared(augment=darker), fold.train, batch_size=2, workers=0)
        list(fit(state, batches, loss=TermsLoss(), epochs=state.epoch + 1))
        mean = MeanLoss(TermsLoss())
        with ema.applied():
            held_out = held_out_part(prepared(), fold.validation, batch_size=2, workers=0)
            evaluate(state.model, held_out, metrics=mean)
        validated += mean
    assert history.rows[0]["validation_loss"] == validated.scores()["loss"]
    assert not same(weights(model), weights(oracle))
    ema.copy_to_model()
    assert same(weights(model), weights(oracle))


def test_no_run_trains_on_what_it_validates():
    log = []
    rotate(
        epochs=3,
        data=prepared(Cohort(name="train", log=log), augment=darker),
        validation=prepared(Cohort(name="validation", log=log)),
    )
    parts = [(name, [k for _, k in read]) for name, read in groupby(log, lambda entry: entry[0])]
    assert [name for name, _ in parts] == ["train", "validation"] * 9
    groups = Cohort().groups
    orders = []
    for epoch in range(3):
        everything = []
        for run, fold in enumerate(FOLDS.epoch(groups, epoch)):
            (_, trained), (_, validated) = parts[6 * epoch + 2 * run :][:2]
            assert sorted(trained) == list(fold.train)
            assert sorted(validated) == list(fold.validation)
            assert not {groups[k] for k in trained} & {groups[k] for k in validated}
            everything += validated
            orders.append(tuple(trained))
        assert sorted(everything) == list(range(12))
    assert len(set(orders)) == 9  # other images, or another order


def test_runs_differ_in_their_augmentations():
    seeds = []

    def noted(image, mask, seed):
        seeds.append(seed)
        return image, mask

    rotate(epochs=2, data=prepared(augment=noted))
    assert len(seeds) == len(set(seeds)) == 2 * 2 * 12


def test_every_score_says_how_it_came_about(tmp_path):
    history = rotate(folder=tmp_path / "run")
    assert history.validation_scheme == SCHEME
    assert [row["validation_scheme"] for row in history.rows] == [SCHEME, SCHEME]
    with (tmp_path / "run" / "history.csv").open() as file:
        assert [row["validation_scheme"] for row in csv.DictReader(file)] == [SCHEME, SCHEME]
    assert list(history.rows[0]) == [
        "epoch", "runs", "step", "loss", "bce", "square", "learning_rate", "seconds",
        "data_seconds", "images_per_second", "samples_seen", "skipped", "score", "score_name",
        "validation_scheme", "validation_accuracy", "validation_loss", "validation_loss_bce",
        "validation_loss_square",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "best", "history.csv", "last",
    ]  # fmt: skip
    assert history.seconds == pytest.approx(sum(row["seconds"] for row in history.rows))
    assert history.samples_seen == 2 * 2 * 12
    _forget()
    held_out = train(
        net(), loader(4), loader(2), loss=TermsLoss(), epochs=1, accelerator=accelerator(),
        progress=False,
    )  # fmt: skip
    assert held_out.validation_scheme is None


# --- schedules, stopping, batches ---------------------------------------------------------------


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
