"""What `train_rotating` computes: the loop, its folds and the scores of an epoch."""

from __future__ import annotations

import csv
from itertools import groupby

import pytest
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler

from transferseg.data import RotatingKFold
from transferseg.training import (
    EMA,
    MeanLoss,
    TrainState,
    cosine,
    evaluate,
    fit,
    train,
)
from transferseg.training.folding import held_out_part, training_part

from .conftest import _forget
from .tiny import (
    FOLDS,
    OPTIMIZER,
    Accuracy,
    Cohort,
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
