"""Rows to accelerate's trackers, and what `train` logs."""

from __future__ import annotations

import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker

from transferseg.errors import TrainingError
from transferseg.training import TrainState, log_to_trackers, sgd, train

from .tiny import Accuracy, TermsLoss, accelerator, loader, net


class Noted(GeneralTracker):
    """Keeps what it is told."""

    name, requires_logging_directory, tracker = "noted", False, None

    def __init__(self):
        super().__init__()
        self.rows = []

    def log(self, values, step=None, **kwargs):
        self.rows.append((step, values))


def tracked():
    tracker = Noted()
    shared = accelerator(log_with=tracker)
    shared.init_trackers("project")
    return shared, tracker


def test_numbers_go_to_the_trackers():
    shared, tracker = tracked()
    state = TrainState.prepare(net(), optimizer=sgd, accelerator=shared)
    row = {"event": "epoch", "step": 4, "loss": 0.5, "bad": math.nan, "none": None, "epoch": 2}
    log_to_trackers(state, row)
    state.step = 7
    log_to_trackers(state, {"loss": 0.25})
    assert tracker.rows == [(4, {"loss": 0.5, "epoch": 2}), (7, {"loss": 0.25})]
    tracker.rows.clear()
    log_to_trackers(state, {"step": np.int64(9), "loss": torch.tensor(0.5), "iou": np.float32(0.5)})
    assert tracker.rows == [(9, {"loss": 0.5, "iou": 0.5})]
    assert {type(value) for value in tracker.rows[0][1].values()} == {float}


def run(shared=None, **options):
    return train(
        net(), loader(9), loader(5), loss=TermsLoss(), epochs=2, metrics=Accuracy(),
        score="accuracy", accelerator=shared or accelerator(), progress=False, **options,
    )  # fmt: skip


def test_train_logs_every_nth_update_and_every_epoch(tmp_path):
    shared, tracker = tracked()
    history = run(shared, folder=tmp_path, log_every=np.int64(3))
    assert [step for step, _ in tracker.rows] == [3, 5, 6, 9, 10]
    epochs = [values for step, values in tracker.rows if step % 5 == 0]
    for values, row in zip(epochs, history.rows, strict=True):
        numbers = {k: v for k, v in row.items() if not isinstance(v, str) and k != "step"}
        assert values == numbers
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["event"], row["step"]) for row in rows] == [
        ("step", 3), ("epoch", 5), ("step", 6), ("step", 9), ("epoch", 10),
    ]  # fmt: skip
    assert {k: v for k, v in rows[1].items() if k != "event"} == history.rows[0]
    assert {"bce", "square", "images_per_second", "data_seconds"} <= set(rows[0])


def test_a_full_disk_stops_the_training_with_what_to_do(tmp_path, monkeypatch):
    from transferseg.training import logs

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(logs.JSONLLogger, "_line", full)
        with pytest.raises(TrainingError, match=r"the log could not .*log\.jsonl: .*resume=True"):
            run(folder=tmp_path, log_every=7)
    run(folder=tmp_path, log_every=7, resume=True)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["event"], row["step"]) for row in rows] == [
        ("epoch", 5), ("step", 7), ("epoch", 10),
    ]  # fmt: skip


def test_trackers_alone_get_the_epochs():
    shared, tracker = tracked()
    run(shared)
    assert [step for step, _ in tracker.rows] == [5, 10]


def test_a_log_needs_a_place():
    with pytest.raises(TrainingError, match="log_every needs a place"):
        run(log_every=1)
    with pytest.raises(TrainingError, match="log_every must be 1 or more"):
        run(tracked()[0], log_every=0)
    with pytest.raises(TrainingError, match="log_every must be a whole number, got True"):
        run(tracked()[0], log_every=True)


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="needs tensorboard")
def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shared = accelerator(log_with="tensorboard", project_dir=tmp_path)
    shared.init_trackers("run")
    history = run(shared)
    shared.end_training()
    found = EventAccumulator(str(tmp_path / "run"))
    found.Reload()
    losses = [(one.step, one.value) for one in found.Scalars("loss")]
    assert losses == [(row["step"], pytest.approx(row["loss"])) for row in history.rows]
