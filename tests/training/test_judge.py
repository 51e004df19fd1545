"""Which way a score is better, and under which name it stands in the history."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from transferseg.errors import TrainingError
from transferseg.metrics import (
    CalibrationCounts,
    LesionCounts,
    MulticlassCounts,
    MultilabelCounts,
    ReconstructionError,
    SegmentationCounts,
    SurfaceCounts,
)
from transferseg.spec import InputSpec, ModelSpec
from transferseg.training import train
from transferseg.training.judge import better, check_score, flat_numbers, make_judge

from .conftest import _forget
from .tiny import Accuracy, Scripted, TermsLoss, accelerator, bce, loader, net

TRUTH = torch.zeros(2, 1, 8, 8, dtype=torch.int64)
TRUTH[:, :, 2:6, 2:6] = 1
RIGHT = 40.0 * (TRUTH - 0.5)
WRONG = RIGHT.roll((4, 4), (2, 3))  # in the corners


@pytest.mark.parametrize(
    "make", [SegmentationCounts, SurfaceCounts, LesionCounts, CalibrationCounts]
)
def test_the_way_of_every_score_is_that_of_the_better_model(make):
    """Every number by which a right mask and a wrong one differ, but the plain counts."""
    scores = []
    for logits in (RIGHT, WRONG):
        counts = make(["lung"], mode="binary")
        counts.update(logits, TRUTH)
        scores.append(flat_numbers(counts.scores()))
    right, wrong = scores
    counted = {"predicted_lung", "volume_difference_lung", "mean_volume_difference"}
    higher = {name for name in right if right[name] > wrong[name]} - counted
    lower = {name for name in right if right[name] < wrong[name]} - counted
    assert higher | lower
    assert [name for name in higher if better(name) != "max"] == []
    assert [name for name in lower if better(name) != "min"] == []


def test_errors_of_a_reconstruction_fall():
    error = ReconstructionError()
    error.update(RIGHT, WRONG)
    assert [better(name) for name in flat_numbers(error.scores()) if name != "images"] == [
        "min"
    ] * 2
    assert better("loss_dice") == "min"
    assert better(lambda scores: scores.mean_hd95) == "max"


def run(metrics, score, *, epochs=3, **options):
    return train(
        net(), loader(4), loader(4), loss=bce, epochs=epochs, metrics=metrics, score=score,
        progress=False, accelerator=accelerator(), **options,
    )  # fmt: skip


class Distances(Scripted):
    def scores(self):
        return {"mean_hd95": super().scores()["quality"]}


def test_the_best_epoch_of_a_distance_is_the_nearest():
    history = run(Distances([3.0, 1.0, 2.0]), "mean_hd95")
    assert (history.best_epoch, history.best_score) == (2, 1.0)
    assert history.rows[0]["score_name"] == "mean_hd95 (min)"
    _forget()
    assert run(Distances([3.0, 1.0, 2.0]), "mean_hd95", mode="max").best_epoch == 1


def first(scores, *, name):
    return scores[name]


class Chosen:
    def __call__(self, scores):
        return scores["accuracy"]


@pytest.mark.parametrize(
    ("score", "name"),
    [(partial(first, name="accuracy"), "first (max)"), (Chosen(), "Chosen (max)")],
)
def test_any_function_of_the_scores(score, name):
    history = run(Accuracy(), score, epochs=1)
    row = history.rows[0]
    assert (row["score_name"], row["score"]) == (name, row["validation_accuracy"])


# --- names that do not exist, before anything is trained ----------------------------------------

THREE = ("background", "heart", "lung")
EXCLUSIVE = torch.tensor([1, 2, 2, 0])[:, None, None].expand(4, 8, 8)
LOGITS = torch.linspace(-1, 1, 4 * 3 * 8 * 8).reshape(4, 3, 8, 8)


def exclusive(make):
    return make(THREE, mode="multiclass"), "mask", LOGITS, EXCLUSIVE


def overlapping(make):
    return make(THREE, mode="multilabel"), "mask", LOGITS, (LOGITS > 0.1).to(torch.uint8)


CASES = {
    **{f"{kind.__name__} {make.__name__}": (make, kind)
       for make in (SegmentationCounts, SurfaceCounts, LesionCounts, CalibrationCounts)
       for kind in (exclusive, overlapping)},
    "labels": (MultilabelCounts, lambda make: (
        make(THREE), "label", LOGITS[:, :, 0, 0], (LOGITS[:, :, 0, 7] > 0).float())),
    "classes": (MulticlassCounts, lambda make: (
        make(THREE), "label", LOGITS[:, :, 0, 0], torch.eye(4)[:, :3].index_fill(
            0, torch.tensor([3]), torch.nan))),
    "images": (ReconstructionError, lambda make: (make(), "image", LOGITS, LOGITS + 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_score_of_real_images_is_known_and_no_other(case):
    make, kind = CASES[case]
    counts, target, logits, truth = kind(make)
    mode = "multiclass" if kind is exclusive or case == "classes" else "multilabel"
    model = torch.nn.Conv2d(3, 3, 1)
    model.spec = ModelSpec("unet", "none", THREE, mode, input=InputSpec(3))
    counts.update(logits, truth)
    scores = list(flat_numbers(counts.scores()))
    for name in [*scores, "loss"]:
        check_score(make_judge(counts, name, None, bce, True), model, target)
    for name in (f"{scores[0]}e", "loss_bce"):
        with pytest.raises(TrainingError, match=f"unknown score '{name}'"):
            check_score(make_judge(counts, name, None, bce, True), model, target)
    assert list(flat_numbers(counts.scores())) == scores  # it keeps what it had counted
    check_score(make_judge(counts, "loss_bce", None, TermsLoss(), True), model, target)


class OfTensors(Accuracy):
    """Scores as torchmetrics and NumPy have them."""

    def scores(self):
        value = self.right / self.all
        return {"tensor": value, "classes": {"lesion": np.float32(value), "all": value[None]}}


def test_scores_that_are_numbers_of_numpy_and_torch(tmp_path):
    judged = {"metrics": OfTensors(), "score": "classes_lesion", "accelerator": accelerator()}
    options = {"loss": bce, "epochs": 1, "folder": tmp_path, "progress": False}
    (row,) = train(net(), loader(4), loader(4), **judged, **options).rows
    assert type(row["validation_tensor"]) is type(row["validation_classes_lesion"]) is float
    assert row["score"] == row["validation_tensor"] == row["validation_classes_lesion"]
    assert "validation_classes_all" not in row  # no number


@pytest.mark.parametrize(
    ("metrics", "score", "match"),
    [
        (Accuracy(), "acuracy", "unknown score 'acuracy'.* Did you mean 'accuracy'"),
        (None, "mean_dice", "unknown score 'mean_dice': expected one of 'loss'"),
        ({"a": Accuracy()}, "accuracy", "metrics must be one metric.* got a dict"),
        (Accuracy, "accuracy", "got the class Accuracy"),
    ],
)
def test_what_cannot_be_scored_is_said_before_any_work(metrics, score, match):
    def loss(logits, target):
        pytest.fail("it has begun to train")

    class Unread(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            pytest.fail("it has begun to read")

    unread = torch.utils.data.DataLoader(Unread(), batch_size=2)
    with pytest.raises(TrainingError, match=match):
        train(net(), unread, unread, loss=loss, epochs=1, metrics=metrics, score=score)


class Demanding(Accuracy):
    """Counts nothing but images of 6 x 6."""

    def update(self, logits, target):
        if logits.shape[2:] != (6, 6):
            raise ValueError("of another size")
        super().update(logits, target)


def test_a_metric_that_wants_more_is_left_to_the_first_evaluation():
    assert len(run(Demanding(), "accuracy", epochs=1).rows) == 1
    _forget()
    with pytest.raises(TrainingError, match="unknown score 'dice'"):
        run(Demanding(), "dice", epochs=1)


# --- options that are refused leave nothing behind --------------------------------------------


def test_a_refused_average_leaves_accelerator_and_model_free():
    shared = accelerator()
    options = {"loss": bce, "epochs": 1, "progress": False, "accelerator": shared}
    with pytest.raises(TrainingError, match="decay must lie in"):
        train(net(), loader(4), ema_decay=1.5, **options)
    assert len(train(net(), loader(4), ema_decay=0.5, **options).rows) == 1


def test_best_models_of_another_run_are_not_mixed_with_new_ones(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transferseg.training.saves._begin", full)
        with pytest.raises(TrainingError, match="could not be written"):  # before the first save
            run(Accuracy(), "accuracy", folder=tmp_path, best_k=2)
    _forget()
    with pytest.raises(TrainingError, match="already holds a run"):
        run(Accuracy(), "accuracy", folder=tmp_path, best_k=2)
    _forget()
    assert len(run(Accuracy(), "accuracy", folder=tmp_path, best_k=2, resume=True).rows) == 3
