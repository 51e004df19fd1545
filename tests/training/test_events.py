"""Throughput and waiting, as the events tell them; progress bars over the events."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from transferseg.errors import TrainingError
from transferseg.training import EpochEvent, TrainState, event_row, fit, sgd, train, with_progress

from .tiny import TermsLoss, accelerator, bce, loader, net, rotate, samples


def prepare(**options):
    return TrainState.prepare(
        net(), optimizer=partial(sgd, lr=0.1), accelerator=accelerator(**options)
    )


class Slow(list):
    """Samples that take their time."""

    def __getitem__(self, index):
        time.sleep(0.01)
        return super().__getitem__(index)


def test_waiting_for_data_is_told_and_the_loop_around_is_not_counted():
    state = prepare()
    events = []
    for event in fit(state, DataLoader(Slow(samples(8)), batch_size=2), loss=bce, epochs=2):
        time.sleep(0.05)
        events.append(event)
    for epoch in (event for event in events if isinstance(event, EpochEvent)):
        steps = [e for e in events if not isinstance(e, EpochEvent) and e.epoch == epoch.epoch]
        assert 0.08 <= epoch.data_seconds <= epoch.seconds < 0.08 + 5 * 0.05
        assert sum(e.seconds for e in steps) <= epoch.seconds
        assert sum(e.data_seconds for e in steps) == pytest.approx(epoch.data_seconds, abs=5e-3)
        assert epoch.images_per_second == epoch.images / epoch.seconds
        assert all(e.images_per_second == 2 / e.seconds for e in steps)
    assert state.seconds == pytest.approx(sum(e.seconds for e in events if e.images == 8))
    assert state.epoch_seconds == state.epoch_data_seconds == 0.0


def test_images_are_those_of_the_update():
    state = prepare(gradient_accumulation_steps=2)
    events = list(fit(state, loader(9), loss=bce, epochs=1))
    assert [event.images for event in events] == [4, 4, 1, 9]


def test_rows_of_events():
    *steps, epoch = fit(prepare(), loader(4), loss=TermsLoss(), epochs=1)
    row = event_row(steps[1])
    assert row["loss"] == steps[1].loss
    assert (row["event"], row["epoch"], row["step"]) == ("step", 1, 2)
    assert {"bce", "square", "learning_rate", "seconds", "data_seconds"} <= set(row)
    assert event_row(epoch)["square"] == epoch.terms["square"]
    assert (event_row(epoch)["skipped"], event_row(epoch)["samples_seen"]) == (0, 4)


def test_histories_have_the_figures():
    rows = train(
        net(), loader(6), loss=bce, epochs=2, accelerator=accelerator(), progress=False
    ).rows
    for row in rows:
        assert 0 < row["data_seconds"] < row["seconds"]
        assert row["images_per_second"] == 6 / row["seconds"]
    (row,) = rotate(epochs=1).rows
    assert row["images_per_second"] == pytest.approx(24 / row["seconds"])
    assert 0 < row["data_seconds"] < row["seconds"]


# --- progress -----------------------------------------------------------------------------------


def test_every_bar_is_one_for_notebooks_too():
    import tqdm
    import tqdm.auto

    from transferseg.study import run
    from transferseg.training import evaluate, folder, progress

    assert tqdm.auto.tqdm is not tqdm.tqdm
    modules = (progress, sys.modules[evaluate.__module__], folder, run)
    assert [module.tqdm for module in modules] == [tqdm.auto.tqdm] * 4


@pytest.mark.parametrize("end", [{"epochs": 2}, {"steps": 8}])
def test_the_bar_counts_updates_and_changes_no_event(capsys, end):
    state = prepare(gradient_accumulation_steps=2)
    events = list(with_progress(fit(state, loader(16), loss=bce, **end), state, **end))
    shown = capsys.readouterr().err
    assert "8/8" in shown
    assert ("epoch 2/2" if "epochs" in end else "epoch 2:") in shown
    epochs = [event for event in events if isinstance(event, EpochEvent)]
    assert len(events) == 8 + len(epochs) == 10
    assert f"loss={epochs[-1].loss:.4g}" in shown
    again = list(with_progress(fit(state, loader(16), loss=bce, **end), state, **end))
    assert (again, capsys.readouterr().err) == ([], "")


def test_the_bar_reads_no_loss_before_the_end_of_an_epoch(monkeypatch):
    state = prepare()
    monkeypatch.setattr("transferseg.training.loop.check_first", lambda *_: None)
    with closing(
        with_progress(fit(state, loader(8), loss=bce, epochs=1), state, epochs=1)
    ) as events:
        next(events)
        monkeypatch.setattr(torch.Tensor, "item", lambda *_: pytest.fail("read"))
        monkeypatch.setattr(torch.Tensor, "tolist", lambda *_: pytest.fail("read"))
        next(events)


def test_a_loop_that_is_left_closes_both(capsys):
    state = prepare()
    inner = fit(state, loader(8), loss=bce, epochs=1)
    with closing(with_progress(inner, state, epochs=1)) as events:
        next(events)
    assert inner.gi_frame is None
    assert "1/4" in capsys.readouterr().err
    rest = list(fit(state, loader(8), loss=bce, epochs=1))
    assert [event.step for event in rest] == [2, 3, 4, 4]


def test_the_bar_is_told_the_end():
    with pytest.raises(TrainingError, match="one of epochs and steps"):
        with_progress([], prepare())
