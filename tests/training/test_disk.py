"""A disk that is full, a place that cannot be written: what was there stays, training can go on."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from transferseg.errors import TrainingError
from transferseg.training import TrainState, save_every

from .conftest import _forget
from .resuming import everything, prepare, run, same
from .test_train import run as train
from .tiny import Stop, loader, net, rotate, timeless, weights


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def largest_file(size):
    """The system refuses to write beyond that many bytes in a file, whoever writes."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.parametrize("size", [300, 2000])  # less than the weights, less than the optimizer
def test_a_full_disk_costs_nothing_that_was_there(tmp_path, size):
    straight = prepare()
    expected = run(straight, loader())
    wanted = everything(straight)
    _forget()
    state, data = prepare(), loader()
    events = run(state, data, stop=2, folder=tmp_path / "s")
    before = files(tmp_path / "s")
    events += run(state, data, stop=2)
    with (
        largest_file(size),
        pytest.raises(TrainingError, match=r"the state could not be written to .*s: .*MB free"),
    ):
        state.save(tmp_path / "s")
    assert files(tmp_path / "s") == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]  # the half of it is gone
    events += run(state, data, stop=2, folder=tmp_path / "s")  # there is room again
    _forget()
    state = prepare(model_seed=5)
    state.load(tmp_path / "s")
    events += run(state, loader())
    assert events == expected
    same(wanted, everything(state))


@pytest.mark.parametrize("name", ["best", "last", "history.csv"])
def test_train_says_what_could_not_be_written_and_goes_on_from_the_last_save(
    tmp_path, monkeypatch, name
):
    expected = train(net(), folder=tmp_path / "a")
    _forget()
    replace, rename = Path.replace, Path.rename

    def full(real):
        def move(self, target):
            if self.name == f".{name}.partial" and len(names(tmp_path / "b")) > 3:
                raise OSError(28, "No space left on device")
            return real(self, target)

        return move

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full(replace))
        patch.setattr(Path, "rename", full(rename))
        with pytest.raises(TrainingError, match=rf"to .*{name}: .*No space.*resume=True"):
            train(net(), folder=tmp_path / "b")
    _forget()
    model = net(3)
    history = train(model, folder=tmp_path / "b", resume=True)
    assert timeless(history) == timeless(expected)
    assert files(tmp_path / "b" / "best") == files(tmp_path / "a" / "best")
    assert names(tmp_path / "b") == names(tmp_path / "a")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    state = prepare()
    before = weights(state.unwrapped)
    for save in (state.save, state.save_pretrained):
        with pytest.raises(
            TrainingError, match=r"could not be written to .*make the place writable"
        ):
            save(tmp_path / "file" / "last")
    assert (tmp_path / "file").read_text() == "mine"
    assert all((before[name] == value).all() for name, value in weights(state.unwrapped).items())


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder(tmp_path):
    state = prepare()
    run(state, loader(), stop=1, folder=tmp_path / "run" / "s")
    before = files(tmp_path / "run" / "s")
    (tmp_path / "run").chmod(0o500)
    try:
        with pytest.raises(TrainingError, match="Permission denied"):
            state.save(tmp_path / "run" / "s")
    finally:
        (tmp_path / "run").chmod(0o700)
    assert files(tmp_path / "run" / "s") == before


def test_a_history_that_a_kill_has_left_behind_is_written_anew(tmp_path, monkeypatch):
    expected = train(net(), folder=tmp_path / "a")
    _forget()
    save, saves = TrainState.save, []

    def killed_after_the_last(self, folder):
        save(self, folder)
        saves.append(folder)
        if len(saves) == 3:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "save", killed_after_the_last)
        with pytest.raises(Stop):
            train(net(), folder=tmp_path / "b")
    (tmp_path / "b" / ".best.partial").mkdir()
    (tmp_path / "b" / "last").rename(tmp_path / "b" / ".last.former")
    _forget()
    history = train(net(), folder=tmp_path / "b", resume=True)
    assert timeless(history) == timeless(expected)
    assert len((tmp_path / "b" / "history.csv").read_text().splitlines()) == 4
    assert names(tmp_path / "b") == ["best", "history.csv", "last"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (0, "1 or more, got 0"),
        (-1, "1 or more, got -1"),
        (1.5, r"a whole number, got 1\.5"),
        (True, "a whole number, got True"),
    ],
)
def test_a_number_of_updates_is_a_number(tmp_path, steps, said):
    with pytest.raises(TrainingError, match=f"^steps must be {said}"):
        save_every(iter([]), prepare(), tmp_path, steps=steps)
    with pytest.raises(TrainingError, match=f"^save_every must be {said}"):
        train(net(), folder=tmp_path, save_every=steps)


def test_saving_every_so_often_needs_a_folder():
    for training in (train, rotate):
        with pytest.raises(TrainingError, match="save_every needs a place"):
            training(net(), save_every=2)
