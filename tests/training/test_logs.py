"""Logs that grow line by line: parsed back, torn, resumed, on a full disk."""

from __future__ import annotations

import io
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from transferseg.errors import TrainingError
from transferseg.training import (
    CSVLogger,
    EpochEvent,
    JSONLLogger,
    TrainState,
    adamw,
    event_row,
    fit,
    sgd,
)

from .conftest import _forget
from .tiny import TIMES, TermsLoss, accelerator, loader, net

LOGGERS = pytest.mark.parametrize("logger", [CSVLogger, JSONLLogger])
ROWS = [
    {"event": "step", "epoch": 1, "step": 1, "loss": 0.1 + 0.2, "note": 'a, "b"'},
    {"event": "step", "epoch": 1, "step": 2, "loss": 1e-300, "note": ""},
    {"event": "epoch", "epoch": 1, "step": 2, "loss": 3.0, "note": "two"},
]


def prepared(step=0, epoch=0):
    _forget()
    state = TrainState.prepare(net(), optimizer=partial(sgd, lr=0.1), accelerator=accelerator())
    state.step, state.epoch = step, epoch
    return state


def read(log):
    """Rows with their numbers, whatever the format."""
    if isinstance(log, JSONLLogger):
        return log.rows()
    numbers = {"epoch": int, "step": int, "loss": float}
    return [{k: numbers.get(k, str)(v) for k, v in row.items()} for row in log.rows()]


@LOGGERS
def test_rows_come_back_to_the_last_digit(logger, tmp_path):
    log = logger(tmp_path / "a" / "log", prepared())
    for row in ROWS:
        log.write(row)
    assert read(log) == ROWS
    with pytest.raises(TrainingError, match="already holds a log; give resume=True"):
        logger(tmp_path / "a" / "log", prepared())
    assert read(log) == ROWS


@LOGGERS
def test_a_torn_line_is_taken_off_wherever_it_was_cut(logger, tmp_path):
    path = tmp_path / "log"
    log = logger(path, prepared())
    for row in ROWS:
        log.write(row)
    whole = path.read_bytes()
    state = prepared(9, 9)
    ends = [at for at, byte in enumerate(whole, start=1) if byte == ord("\n")]
    for length in (0, 5, *(at + more for at in ends for more in (-8, -1, 0, 1, 9)[: len(whole)])):
        path.write_bytes(whole[:length])
        log = logger(path, state, resume=True)
        complete = whole[:length].count(b"\n") - (logger is CSVLogger)
        assert read(log) == ROWS[: max(0, complete)]
        log.write(ROWS[2])
        assert read(log)[-1] == ROWS[2]


@LOGGERS
@pytest.mark.parametrize(("step", "epoch", "left"), [(0, 0, 0), (1, 0, 1), (2, 0, 2), (2, 1, 3)])
def test_rows_that_come_again_are_taken_off(logger, tmp_path, step, epoch, left):
    """A save between the last update of an epoch and its end has the update, not the epoch."""
    log = logger(tmp_path / "log", prepared())
    for row in ROWS:
        log.write(row)
    log = logger(tmp_path / "log", prepared(step, epoch), resume=True)
    assert read(log) == ROWS[:left]


@LOGGERS
def test_rows_of_epochs_need_no_step(logger, tmp_path):
    log = logger(tmp_path / "log", prepared())
    for epoch in (1, 2, 3):
        log.write({"epoch": epoch, "dice": 0.1 * epoch})
    log = logger(tmp_path / "log", prepared(20, 2), resume=True)
    assert [int(row["epoch"]) for row in log.rows()] == [1, 2]


def test_new_columns_are_added_at_the_end(tmp_path):
    log = CSVLogger(tmp_path / "log.csv", prepared())
    log.write({"step": 1, "loss": 0.5})
    log.write({"dice": 0.25, "step": 2})
    log.write({"loss": None, "step": 3})
    log = CSVLogger(tmp_path / "log.csv", prepared(2), resume=True)
    log.write({"step": 4, "new": "x"})
    assert log.path.read_text() == "step,loss,dice,new\n1,0.5,,\n2,,0.25,\n4,,,x\n"


def test_what_json_and_lines_do_not_know(tmp_path):
    row = {"step": 1, "loss": math.nan, "norm": math.inf, "text": "two\nlines\u2028three"}
    log = JSONLLogger(tmp_path / "log.jsonl", prepared())
    log.write(row)
    assert log.rows() == [{"step": 1, "loss": None, "norm": None, "text": "two lines three"}]
    log = CSVLogger(tmp_path / "log.csv", prepared())
    log.write(row)
    assert log.rows() == [{"step": "1", "loss": "", "norm": "", "text": "two lines three"}]


@LOGGERS
def test_numbers_of_numpy_and_torch_are_numbers(logger, tmp_path):
    log = logger(tmp_path / "log", prepared())
    row = {"step": np.int64(1), "loss": torch.tensor(0.25), "epoch": np.array(2, np.uint8)}
    log.write({**row, "note": np.str_("a"), "dice": np.float32("nan"), "iou": torch.tensor(0.5)})
    text = (tmp_path / "log").read_text()
    if logger is CSVLogger:
        assert text == "step,loss,epoch,note,dice,iou\n1,0.25,2,a,,0.5\n"
    else:
        wanted = {"step": 1, "loss": 0.25, "epoch": 2, "note": "a", "dice": None, "iou": 0.5}
        assert text == f"{json.dumps(wanted)}\n"


class Full(io.FileIO):
    """A disk that takes half of a line."""

    def write(self, text):
        super().write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")


@LOGGERS
def test_a_full_disk_leaves_whole_rows(logger, tmp_path, monkeypatch):
    log = logger(tmp_path / "log", prepared())
    log.write(ROWS[0])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode="r", **options: Full(self, "a"))
        if logger is CSVLogger:
            patch.setattr(CSVLogger, "_columns", lambda self: list(ROWS[0]))
        with pytest.raises(OSError, match="No space left"):
            log.write(ROWS[1])
    assert read(log) == ROWS[:1]
    log.write(ROWS[2])
    assert read(log) == [ROWS[0], ROWS[2]]


@pytest.mark.parametrize(
    ("logger", "text"),
    [(JSONLLogger, "a,b\n"), (JSONLLogger, "[1]\n"), (JSONLLogger, '{"step": "x"}\n'),
     (CSVLogger, "a,b\n1\n"), (CSVLogger, "step,loss\nx,1\n")],
)  # fmt: skip
def test_files_of_another_kind_are_left_as_they_are(logger, text, tmp_path):
    (tmp_path / "log").write_text(text)
    with pytest.raises(TrainingError, match="is no"):
        logger(tmp_path / "log", prepared(), resume=True)
    assert (tmp_path / "log").read_text() == text


def follow(state, folder, *, stop=None, resume=False):
    """A hand-written loop that logs every second update and saves every third event."""
    logs = [
        logger(folder / name, state, resume=resume)
        for logger, name in ((CSVLogger, "log.csv"), (JSONLLogger, "log.jsonl"))
    ]
    for count, event in enumerate(fit(state, loader(), loss=TermsLoss(), epochs=3), start=1):
        if isinstance(event, EpochEvent) or event.step % 2 == 0:
            for log in logs:
                log.write({k: v for k, v in event_row(event).items() if k not in TIMES})
        if count == stop:
            return
        if count % 3 == 0:
            state.save(folder / "last")


def training(seed=0):
    _forget()
    return TrainState.prepare(
        net(seed), optimizer=partial(adamw, lr=0.05), accelerator=accelerator(), seed=7
    )


@pytest.mark.parametrize("stop", [4, 5, 8, 13])
def test_the_logs_of_a_resumed_run_are_those_of_the_straight_one(tmp_path, stop):
    (tmp_path / "a").mkdir()
    follow(training(), tmp_path / "a")
    (tmp_path / "b").mkdir()
    follow(training(), tmp_path / "b", stop=stop)
    with (tmp_path / "b" / "log.jsonl").open("a") as file:
        file.write('{"event": "st')
    state = training(4)
    state.load(tmp_path / "b" / "last")
    follow(state, tmp_path / "b", resume=True)
    for name in ("log.csv", "log.jsonl"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    lines = (tmp_path / "a" / "log.jsonl").read_text().splitlines()
    steps = [(row["event"], row["step"]) for row in map(json.loads, lines)]
    assert steps == [
        ("step", 2), ("step", 4), ("epoch", 5), ("step", 6), ("step", 8), ("step", 10),
        ("epoch", 10), ("step", 12), ("step", 14), ("epoch", 15),
    ]  # fmt: skip
