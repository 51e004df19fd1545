"""The k best models on disk: which they are, and that nothing loses them."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.errors import TrainingError
from transferseg.training import BestCheckpoints, TrainState, sgd, train
from transferseg.training.atomic import write_text

from .conftest import _forget
from .tiny import Net, Scripted, accelerator, bce, loader, net

SCORES = st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 1.0, math.nan, math.inf, -2.0])


class Noted(Net):
    """A model that is saved as the step that it is at."""

    def save_pretrained(self, folder):
        (Path(folder) / "step.txt").write_text(str(self.state.step))


def noted():
    model = Noted()
    model.state = TrainState.prepare(model, optimizer=sgd, accelerator=accelerator())
    return model.state


def on_disk(folder):
    """The index, with what really stands in each folder that it names."""
    index = json.loads((folder / "index.json").read_text())
    found = [(one["step"], one["score"]) for one in index["checkpoints"]]
    for one in index["checkpoints"]:
        assert (folder / one["name"] / "step.txt").read_text() == str(one["step"])
    return found


def folders(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "index.json")


@settings(max_examples=20, deadline=None)
@given(
    st.lists(SCORES, max_size=6),
    st.integers(1, 3),
    st.sampled_from(["max", "min"]),
    st.integers(0, 6),
    st.integers(0, 3),
)
def test_they_are_the_k_best_whenever_a_run_is_resumed(scores, k, mode, cut, repeated):
    _forget()
    state = noted()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "best"
        best = BestCheckpoints(folder, k, mode=mode)

        def follow(best, first, last):
            for step, score in list(enumerate(scores, start=1))[first:last]:
                state.step = step
                done = [(s, x) for s, x in enumerate(scores[:step], start=1) if not math.isnan(x)]
                done.sort(key=lambda pair: (-pair[1] if mode == "max" else pair[1], pair[0]))
                kept = best.update(state, score)
                if step > reached[0]:
                    assert kept == ((step, score) in done[:k])
                    assert [(one.step, one.score) for one in best.checkpoints] == done[:k]
                    reached[0] = step

        reached = [0]
        follow(best, 0, cut)
        follow(BestCheckpoints(folder, k, mode=mode), max(0, cut - repeated), None)
        wanted = [(s, x) for s, x in enumerate(scores, start=1) if not math.isnan(x)]
        wanted.sort(key=lambda pair: (-pair[1] if mode == "max" else pair[1], pair[0]))
        if wanted:
            assert on_disk(folder) == wanted[:k]
            assert folders(folder) == sorted(f"step-{step:08d}" for step, _ in wanted[:k])


class Cut(BaseException):
    """A killed process."""


@pytest.mark.parametrize("broken", [OSError("disk full"), Cut()])
@pytest.mark.parametrize("call", range(6))
def test_nothing_is_lost_wherever_it_fails(tmp_path, monkeypatch, broken, call):
    """An update that fails at its n-th write leaves the former two; the next one clears up."""
    state = noted()
    best = BestCheckpoints(tmp_path, 2)
    for state.step, score in ((1, 0.1), (2, 0.2)):
        best.update(state, score)
    calls = []

    def failing(function):
        def call_it(*given, **options):
            calls.append(1)
            if len(calls) == call + 1:
                raise broken
            return function(*given, **options)

        return call_it

    state.step = 3
    with monkeypatch.context() as patch:
        patch.setattr("transferseg.training.best.write_text", failing(write_text))
        patch.setattr(Noted, "save_pretrained", failing(Noted.save_pretrained))
        patch.setattr("transferseg.training.best.shutil.rmtree", failing(shutil.rmtree))
        with pytest.raises((TrainingError, OSError, Cut)):
            best.update(state, 0.3)
    former = [(2, 0.2), (1, 0.1)]
    assert on_disk(tmp_path) == (former if call < 5 else [(3, 0.3), (2, 0.2)])
    again = BestCheckpoints(tmp_path, 2)
    for state.step, score in ((3, 0.3), (4, 0.4)):
        again.update(state, score)
    assert on_disk(tmp_path) == [(4, 0.4), (3, 0.3)]
    assert folders(tmp_path) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("again", [False, True])
def test_a_kill_while_a_model_is_written_leaves_nothing_behind(tmp_path, monkeypatch, again):
    """The next start clears up: of a new model, and of one that is written over."""
    state = noted()
    best = BestCheckpoints(tmp_path, 2)
    state.step = 1
    best.update(state, 0.1)
    state.step = 1 if again else 2

    def killed(self, folder):
        (Path(folder) / "half.txt").write_text("half")
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(Noted, "save_pretrained", killed)
        patch.setattr("transferseg.training.atomic.discard_folder", lambda folder: None)
        with pytest.raises(Cut):
            best.update(state, 0.2)
    assert f".step-0000000{state.step}.partial" in folders(tmp_path)
    BestCheckpoints(tmp_path, 2).settle(state.accelerator)
    assert folders(tmp_path) == ["step-00000001"]
    assert on_disk(tmp_path) == [(1, 0.1)]


def test_a_resumed_training_clears_up(tmp_path, monkeypatch):
    options = {
        "loss": bce, "epochs": 3, "progress": False, "best_k": 1, "folder": tmp_path,
        "mode": "max",
    }  # fmt: skip
    save = Net.save_pretrained

    def killed(self, folder):
        save(self, folder)
        if ".step-00000004" in str(folder):
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(Net, "save_pretrained", killed)
        patch.setattr("transferseg.training.atomic.discard_folder", lambda folder: None)
        with pytest.raises(Cut):
            train(net(), loader(4), loader(4), metrics=Scripted([1, 2]), score="quality",
                  accelerator=accelerator(), **options)  # fmt: skip
    assert folders(tmp_path / "checkpoints") == [".step-00000004.partial", "step-00000002"]
    _forget()
    # scores from here on are worse: no update of the best models clears up
    train(net(), loader(4), loader(4), metrics=Scripted([0.5, 0.5]), score="quality", resume=True,
          accelerator=accelerator(), **options)  # fmt: skip
    assert folders(tmp_path / "checkpoints") == ["step-00000002"]


def test_a_step_that_comes_again_keeps_its_better_score(tmp_path):
    state = noted()
    best = BestCheckpoints(tmp_path, 2)
    state.step = 5
    assert [best.update(state, score) for score in (0.4, 0.3, 0.4, 0.6)] == [
        True, False, True, True,
    ]  # fmt: skip
    assert on_disk(tmp_path) == [(5, 0.6)]


def test_what_does_not_fit(tmp_path):
    state = noted()
    BestCheckpoints(tmp_path, 1).update(state, 1.0)
    with pytest.raises(TrainingError, match="kept with mode 'max', not 'min'"):
        BestCheckpoints(tmp_path, 1, mode="min")
    with pytest.raises(TrainingError, match="k must be a whole number, 1 or more"):
        BestCheckpoints(tmp_path, 0)
    with pytest.raises(TrainingError, match=r"a whole number, 1 or more, got 2\.5"):
        BestCheckpoints(tmp_path, 2.5)
    with pytest.raises(TrainingError, match="Did you mean 'max'"):
        BestCheckpoints(tmp_path, 1, mode="maxx")
    whole = json.loads((tmp_path / "index.json").read_text())
    for text in ("{", "[]", json.dumps({**whole, "leaving": ["../../home"]})):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(TrainingError, match="is damaged"):
            BestCheckpoints(tmp_path, 1)
    (tmp_path / "index.json").write_text(json.dumps({**whole, "format": 2}))
    with pytest.raises(TrainingError, match="has format 2"):
        BestCheckpoints(tmp_path, 1)


def test_a_model_must_be_one_that_can_be_saved(tmp_path):
    model = net()
    state = TrainState.prepare(model, optimizer=sgd, accelerator=accelerator())
    model.save_pretrained = None
    with pytest.raises(TrainingError, match="has no save_pretrained"):
        BestCheckpoints(tmp_path).update(state, 1.0)


def test_train_keeps_them(tmp_path):
    options = {"loss": bce, "epochs": 4, "progress": False, "best_k": 2}
    train(
        net(), loader(4), loader(4), metrics=Scripted([3, 1, 4, 2]), score="quality", mode="max",
        folder=tmp_path / "run", accelerator=accelerator(), **options,
    )  # fmt: skip
    best = BestCheckpoints(tmp_path / "run" / "checkpoints")
    assert [(one.epoch, one.score, one.step) for one in best.checkpoints] == [(3, 4, 6), (1, 3, 2)]
    assert all((path / "model.safetensors").exists() for path in best.paths)
    _forget()
    with pytest.raises(TrainingError, match="best_k needs the folder"):
        train(net(), loader(4), loader(4), accelerator=accelerator(), **options)
