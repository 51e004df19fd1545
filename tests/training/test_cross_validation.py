"""K-fold: every image scored once, by a model that has not seen its group."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from transferseg.data import Fold, RotatingKFold, k_fold
from transferseg.errors import DataError, TrainingError
from transferseg.training import (
    EMA,
    BestCheckpoints,
    CrossValidation,
    History,
    MeanLoss,
    TrainState,
    cosine,
    cross_validate,
    evaluate,
    fit,
    khadka2020,
    plateau,
)
from transferseg.training.folding import held_out_part, training_part

from .conftest import _forget
from .tiny import (
    OPTIMIZER,
    Accuracy,
    Cohort,
    Scripted,
    Stop,
    TermsLoss,
    accelerator,
    cut,
    darker,
    net,
    prepared,
    same,
    timeless,
    weights,
)

GROUPS = Cohort().groups
FOLDS = k_fold(GROUPS, 3, seed=1)


def validate(model=None, *, epochs=2, data=None, validation=None, **options) -> CrossValidation:
    given = {
        "folds": FOLDS,
        "batch_size": 2,
        "loss": TermsLoss(),
        "metrics": Accuracy(),
        "optimizer": OPTIMIZER,
        "schedule": cosine(),
        "accelerator": options.get("accelerator") or accelerator(),
        "progress": False,
        **options,
    }
    model = net() if model is None else model
    data = prepared(augment=darker) if data is None else data
    validation = prepared() if validation is None else validation
    return cross_validate(model, data, validation, epochs=epochs, **given)


@pytest.mark.parametrize(("accumulate", "ema_decay"), [(1, None), (2, 0.5)])
def test_every_fold_is_a_training_of_its_own(tmp_path, accumulate, ema_decay):
    """To the bit, with dropout and augmentation: nothing of one fold is left in the next."""
    model = net()
    before = weights(model)
    result = validate(
        model,
        folder=tmp_path,
        clip_norm=0.5,
        ema_decay=ema_decay,
        accelerator=accelerator(gradient_accumulation_steps=accumulate),
    )
    saved = [{path.name for path in (tmp_path / f"fold{k}" / "last").iterdir()} for k in (1, 3)]
    assert saved[0] == saved[1]  # an average is kept with its own fold alone
    assert same(before, weights(model))
    pooled, right, pixels = None, 0, 0
    for number, fold in enumerate(FOLDS, start=1):
        _forget()
        oracle = net()
        state = TrainState.prepare(
            oracle, optimizer=OPTIMIZER, schedule=cosine(),
            accelerator=accelerator(gradient_accumulation_steps=accumulate),
        )  # fmt: skip
        ema = None if ema_decay is None else EMA(state, decay=ema_decay)
        batches = training_part(prepared(augment=darker), fold.train, batch_size=2, workers=0)
        events = [
            event for event in fit(state, batches, loss=TermsLoss(), epochs=2, clip_norm=0.5)
            if not hasattr(event, "tensors")
        ]  # fmt: skip
        if ema is not None:
            ema.copy_to_model()
        assert same(load_file(tmp_path / f"fold{number}" / "model" / "model.safetensors"),
                    weights(oracle))  # fmt: skip
        history = result.histories[number - 1]
        assert [row["loss"] for row in history.rows] == [event.loss for event in events]
        assert history.rows[-1]["learning_rate"] == 0.0
        counts, mean = Accuracy(), MeanLoss(TermsLoss())
        held_out = held_out_part(prepared(), fold.validation, batch_size=2, workers=0)
        evaluate(oracle, held_out, metrics={"a": counts, "b": mean})
        assert result.fold_scores[number - 1]["accuracy"] == counts.scores()["accuracy"]
        assert result.fold_scores[number - 1]["loss"] == mean.scores()["loss"]
        right, pixels = right + counts.right.item(), pixels + counts.all.item()
        pooled = mean if pooled is None else pooled + mean
    assert pixels == 12 * 36  # every pixel of every image, once
    counts = result.counts["scores"]
    assert (counts.right.item(), counts.all.item()) == (right, pixels)
    assert result.scores["accuracy"] == pytest.approx(right / pixels)
    assert result.scores["loss"] == pooled.scores()["loss"]


def test_the_state_is_prepared_once_and_handed_back(monkeypatch):
    calls, real = [], Accelerator.prepare

    def counted(self, *args, **options):
        calls.append(len(args))
        return real(self, *args, **options)

    monkeypatch.setattr(Accelerator, "prepare", counted)
    shared = accelerator()
    validate(accelerator=shared)
    assert calls == [2]
    assert shared._models == []
    validate(accelerator=shared)  # it serves another one


@pytest.mark.parametrize("share", [None, 0.3])
def test_what_is_held_out_is_seen_once_and_last(share):
    log = []
    validate(
        data=prepared(Cohort(name="train", log=log), augment=darker),
        validation=prepared(Cohort(name="validation", log=log)),
        validation_share=share,
        score=None if share is None else "accuracy",
    )
    at = 0
    for fold in FOLDS:
        end = at
        seen = {"train": [], "validation": []}
        while len(seen["validation"]) == 0 or not set(fold.validation) <= set(seen["validation"]):
            name, index = log[end]
            seen[name].append(index)
            end += 1
        length = len(fold.validation)
        assert seen["validation"][-length:] == list(fold.validation)
        chosen = set(seen["validation"][:-length])  # on which it is decided
        assert bool(chosen) == (share is not None)
        assert set(seen["train"]) | chosen == set(fold.train)
        parts = [set(seen["train"]), chosen, set(fold.validation)]
        named = [{GROUPS[k] for k in part} for part in parts]
        assert sum(map(len, named)) == len(set(GROUPS))  # no group on two sides
        at = end
    assert at == len(log)


def test_the_best_epoch_is_chosen_on_images_of_the_training_part(tmp_path):
    """Scores of the share: a fold stops by them, and its best weights are those that are scored."""
    values = [0.5, 0.1, 0.2] * 2 + [0.1, 0.2, 0.3, 0.4]
    scripted = Following(values)
    result = validate(
        epochs=4, metrics=scripted, score="quality", validation_share=0.3, patience=2,
        restore_best=True, schedule=None, folder=tmp_path, best_k=2,
    )  # fmt: skip
    assert [len(history.rows) for history in result.histories] == [3, 3, 4]
    assert [history.best_epoch for history in result.histories] == [1, 1, 4]
    for number in (1, 2, 3):
        files = [tmp_path / f"fold{number}" / name / "model.safetensors"
                 for name in ("model", "best")]  # fmt: skip
        assert same(*map(load_file, files))
        kept = BestCheckpoints(tmp_path / f"fold{number}" / "checkpoints")
        assert [one.epoch for one in kept.checkpoints] == [[1, 3], [1, 3], [4, 3]][number - 1]
        assert same(load_file(kept.paths[0] / "model.safetensors"), load_file(files[0]))


class Following(Scripted):
    """Scripted, its calls counted over all copies; what is held out asks for none."""

    def __deepcopy__(self, memo):
        return self


def test_the_summary_is_what_it_says():
    def mean(*losses):
        found = MeanLoss(torch.nn.functional.l1_loss)
        for loss in losses:
            found.update(torch.full((1, 1), float(loss)), torch.zeros(1, 1))
        return {"loss": found}

    folds = (Fold((1, 2, 3), (0,)), Fold((0, 3), (1, 2)), Fold((0, 1, 2), (3,)))
    result = CrossValidation(folds, (History(()),) * 3, (mean(1), mean(4, 6), mean(math.nan)))
    spread = result.summary()["loss"]
    assert math.isnan(spread.pooled)
    assert (spread.mean, spread.best_minus_worst, spread.folds) == (3.0, 4.0, 2)
    whole = CrossValidation(folds[:2], (History(()),) * 2, (mean(1), mean(4, 6)))
    assert whole.scores == {"loss": pytest.approx(11 / 3)}  # each image counts once
    assert whole.fold_scores == ({"loss": 1.0}, {"loss": 5.0})


def test_a_recipe_gives_its_arguments():
    recipe = khadka2020(epochs=1, batch_size=2)
    given = recipe.fold_options(net(), accelerator=accelerator())
    result = validate(**{**given, "validation_share": 0.3})
    assert {row["score_name"] for history in result.histories for row in history.rows} == {
        "mean_dice (max)"
    }
    assert result.summary()["mean_dice"].folds == 3
    rows = result.counts["scores"].rows
    assert int(rows.sum()) == 12 * 36  # TP, FP, FN and TN of every pixel, once
    assert len(rows) == 12


# --- going on -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "share", "every"), [(1, 0.3, None), (3, None, None), (3, None, 1)]
)
def test_a_cut_cross_validation_goes_on_where_it_was(tmp_path, after, share, every, monkeypatch):
    options = {"validation_share": share, "save_every": every}
    if share is not None:
        options |= {
            "score": "accuracy", "restore_best": True, "schedule": plateau(patience=0)
        }  # fmt: skip
    straight = validate(folder=tmp_path / "a", **options)
    _forget()
    with monkeypatch.context() as patch:
        cut(patch, after)
        with pytest.raises(Stop):
            validate(folder=tmp_path / "b", resume=True, **options)
    _forget()
    log = []
    data = prepared(Cohort(name="train", log=log), augment=darker)
    resumed = validate(folder=tmp_path / "b", resume=True, data=data, **options)
    if share is None:  # epochs of eight images, updates of two
        assert len(log) == 6 * 8 - after * (8 if every is None else 2)
    for one, other in zip(resumed.histories, straight.histories, strict=True):
        assert timeless(one) == timeless(other)
    assert resumed.scores == straight.scores
    assert resumed.fold_scores == straight.fold_scores
    for number in (1, 2, 3):
        files = [tmp_path / part / f"fold{number}" / "model" / "model.safetensors"
                 for part in "ab"]  # fmt: skip
        assert same(*map(load_file, files))
    _forget()
    log.clear()
    again = validate(folder=tmp_path / "b", resume=True, data=data, **options)
    assert log == []  # finished folds are only scored
    assert again.scores == straight.scores


def test_another_cross_validation_is_not_gone_on_with(tmp_path):
    validate(folder=tmp_path, epochs=1)
    for options, match in (
        ({}, "already holds a cross-validation; give resume=True"),
        ({"resume": True, "folds": k_fold(GROUPS, 3, seed=2)}, "of other folds, images or"),
        ({"resume": True, "folds": k_fold(GROUPS, 2, seed=1)}, "of other folds, images or"),
        ({"resume": True, "validation_share": 0.3, "score": "accuracy"}, "validation_share; go on"),
    ):
        _forget()
        with pytest.raises(TrainingError, match=match):
            validate(folder=tmp_path, epochs=1, **options)


# --- what does not fit --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"folds": ()}, TrainingError, "no folds; make them"),
        ({"folds": FOLDS[:2]}, TrainingError, r"8 positions, 8 different ones, and there are 12"),
        ({"folds": (*FOLDS, FOLDS[0])}, TrainingError, "16 positions, 12 different ones"),
        ({"folds": (Fold(FOLDS[0].train[1:] + FOLDS[0].validation, FOLDS[0].validation),)},
         DataError, "share images"),
        ({"folds": RotatingKFold(3, by_group=False).epoch(GROUPS, 0)}, DataError, "group"),
        ({"patience": 2}, TrainingError, r"patience look\(s\) at scores while a fold trains"),
        ({"best_k": 2}, TrainingError, r"best_k look\(s\) at scores while a fold trains"),
        ({"schedule": plateau(), "score": "accuracy"}, TrainingError, "score and a plateau"),
        ({"validation_share": 1.0, "score": "accuracy"}, TrainingError, "between 0 and 1"),
        ({"validation_share": 0.2}, TrainingError, "say which score decides"),
        ({"validation_share": 0.2, "score": "acuracy"}, TrainingError, "Did you mean 'accuracy'"),
        ({"metrics": Accuracy}, TrainingError, "got the class Accuracy"),
        ({"batch_size": 0}, TrainingError, "batch_size must be 1 or more"),
        ({"batch_size": 1.5}, TrainingError, r"batch_size must be a whole number, got 1\.5"),
        ({"epochs": 2.5}, TrainingError, r"epochs must be a whole number, got 2\.5"),
        ({"epochs": -1}, TrainingError, "epochs must be 0 or more, got -1"),
        ({"validation": prepared(augment=darker)}, TrainingError, "are augmented"),
        ({"resume": True}, TrainingError, "resume needs the folder"),
        ({"save_every": 2}, TrainingError, "save_every needs a place"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(options, error, match):
    model, shared = net(), accelerator()
    before = weights(model)
    with pytest.raises(error, match=match):
        validate(model, accelerator=shared, **options)
    assert same(before, weights(model))
    assert shared._models == []


def test_progress_counts_folds(capsys):
    validate(progress=True, epochs=1)
    assert "fold 3/3, epoch 1/1" in capsys.readouterr().err
