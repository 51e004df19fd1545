from __future__ import annotations

import json
import signal
import time
from collections import Counter
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.forked import server, start
from tests.stages import world
from tests.study.chains import main, scores, study
from transferseg.errors import DataError
from transferseg.stages.run import finished
from transferseg.study import Cell, Study, run_study


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The study, run once in one process: its folder, table and log of training batches."""
    folder = tmp_path_factory.mktemp("reference")
    result = run_study(study(folder / "log.txt"), folder / "stages", progress=False)
    return folder, result.table(), Counter((folder / "log.txt").read_text().splitlines())


def test_shared_stages_train_once(reference):
    _folder, table, batches = reference
    assert set(batches) == {"middle", "random-0", "random-1", "pretrained-0", "pretrained-1"}
    assert len(set(batches.values())) == 1, "every stage the same number of batches, once"
    assert [cell.status for cell in table.cells] == ["done"] * 4
    assert [row.n for row in table.rows] == [2, 2]
    chains = [cell.chain for cell in table.cells]
    assert chains == [("unet",), ("unet",), ("middle", "unet"), ("middle", "unet")]
    pretrained = table.cells[2]
    assert pretrained.coverage == {"encoder": 1.0}
    assert pretrained.chain_samples == 2 * pretrained.samples_seen
    assert pretrained.chain_seconds > pretrained.seconds


def test_a_finished_study_trains_nothing(reference):
    folder, table, batches = reference
    again = run_study(study(folder / "log.txt"), folder / "stages", progress=False)
    assert scores(again.table()) == scores(table)
    assert Counter((folder / "log.txt").read_text().splitlines()) == batches


def test_killed_twice_it_trains_no_stage_twice(reference, tmp_path):
    """SIGKILL in the middle of whatever it does; what is repeated is at most an epoch, twice."""
    _, table, batches = reference
    log, stages = tmp_path / "log.txt", tmp_path / "stages"
    per_stage = batches["middle"]
    finished_then: list[Counter] = []
    for lines in (1, 3 * per_stage):  # in two different stages
        child = start(main, log, stages, said=tmp_path / "said")
        while child.is_alive() and not (log.exists() and len(log.read_text().split()) >= lines):
            time.sleep(0.005)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, "the study ended before it was killed"
        finished_then.append(finished_batches(study(log), stages, log))
    result = run_study(study(log), stages, progress=False)
    after = Counter(log.read_text().split())
    assert scores(result.table()) == scores(table)
    assert finished_then[-1], "no stage had been finished before the last kill"
    for then in finished_then:
        assert {name: after[name] for name in then} == then, "a finished stage was trained again"
    epoch = per_stage // 2  # each kill costs at most the epoch that it cut
    assert sum(after.values()) <= sum(batches.values()) + len(finished_then) * epoch


def finished_batches(whole: Study, stages: Path, log: Path) -> Counter:
    """Batches so far of the stages that are finished, by title."""
    counted = Counter(log.read_text().split())
    titles = [stage.task.title for stage in whole.stages if finished(stage, stages)]
    return Counter({title: counted[title] for title in titles})


def test_two_processes_give_the_table_of_one(reference, tmp_path):
    _, table, batches = reference
    log = tmp_path / "log.txt"
    with ProcessPoolExecutor(2, mp_context=server()) as executor:
        result = run_study(study(log), tmp_path / "stages", executor=executor, progress=False)
    assert result.failures == {}
    assert scores(result.table()) == scores(table)
    assert Counter(log.read_text().split()) == batches


def test_a_failed_stage_stops_only_its_own_chains_and_is_tried_again(reference, tmp_path):
    log, stages = tmp_path / "log.txt", tmp_path / "stages"
    (tmp_path / "stop").touch()
    result = run_study(study(log), stages, progress=False)
    assert [cell.status for cell in result.table().cells] == ["done", "done", "blocked", "blocked"]
    assert "stage 'middle' failed: Stopped" in result.table().cells[3].error
    (tmp_path / "stop").unlink()
    again = run_study(study(log), stages, progress=False)
    assert scores(again.table()) == scores(reference[1])
    counted = Counter(log.read_text().split())
    assert counted["random-0"] == counted["random-1"] == reference[2]["random-0"]


class Inline:
    """An executor that runs at once, and loses the stages that it is told to lose."""

    def __init__(self, lose: str = "") -> None:
        self.lose, self.ran = lose, []

    def submit(self, function, *arguments):
        future: Future = Future()
        stage = arguments[0]
        self.ran.append(stage.name)
        if stage.name == self.lose:
            future.set_exception(OSError("the worker died"))
        else:
            future.set_result(function(*arguments))
        return future


def test_a_lost_worker_is_a_failed_stage(reference, tmp_path):
    log = tmp_path / "log.txt"
    lossy = Inline(lose="middle")
    result = run_study(study(log), tmp_path / "stages", executor=lossy, progress=False)
    states = [cell.status for cell in result.table().cells]
    assert states == ["done", "done", "blocked", "blocked"]
    assert result.table().cells[2].error == "stage 'middle' failed: OSError: the worker died"
    kept = list((tmp_path / "stages" / "failed").glob("*.json"))
    assert len(kept) == 1
    told = json.loads(kept[0].read_text())
    assert told["stage"] == "middle"
    assert "the worker died" in told["traceback"]
    with pytest.raises(RuntimeError, match=r"1 stage\(s\) failed: middle \(OSError"):
        result.raise_if_failed()
    better = run_study(study(log), tmp_path / "stages", executor=Inline(), progress=False)
    assert scores(better.table()) == scores(reference[1])
    assert not list((tmp_path / "stages" / "failed").glob("*.json"))
    better.raise_if_failed()


def test_a_leak_anywhere_stops_the_study_before_it_begins(tmp_path):
    first = world.data(0)
    swapped = {"train": first.parts["test"], "test": first.parts["train"]}

    def build(start, seed):
        data = world.data(0, parts=swapped) if start == "leaky" else world.data(3)
        return world.unet(data=data, parent=world.autoencoder(data=first), seed=seed)

    with pytest.raises(DataError, match="before it has seen"):
        run_study(Study.grid(build, start=["fine", "leaky"], seed=[0]), tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_an_unfinished_study_has_a_table(tmp_path):
    from transferseg.study import StudyResult

    result = StudyResult(study(tmp_path / "log.txt"), tmp_path, {})
    assert [cell.status for cell in result.table().cells] == ["missing"] * 4


class Broken(Inline):
    """A pool whose worker was killed: it takes nothing more."""

    def submit(self, function, *arguments):
        if self.ran:
            raise BrokenExecutor("a child process terminated abruptly")
        return super().submit(function, *arguments)


def test_a_broken_pool_still_gives_a_result(reference, tmp_path):
    log = tmp_path / "log.txt"
    result = run_study(study(log), tmp_path / "stages", executor=Broken(), progress=False)
    states = [cell.status for cell in result.table().cells]
    assert states.count("done") == 1
    assert "terminated abruptly" in " ".join(cell.error for cell in result.table().cells)
    again = run_study(study(log), tmp_path / "stages", progress=False)
    assert scores(again.table()) == scores(reference[1])


def test_a_stage_that_cannot_work_fails_before_others_are_trained(tmp_path):
    def build(encoder, seed):
        return world.unet(model=world.MODEL.replace(encoder=encoder), seed=seed)

    whole = Study.grid(build, encoder=["no_such_net"], seed=[0])
    result = run_study(whole, tmp_path, executor=Inline(lose=""), progress=False)
    cell = result.table().cells[0]
    assert cell.status == "failed"
    assert "unknown encoder" in cell.error
    assert not (tmp_path / ".training").exists()


def test_stages_of_equal_keys_are_one_whatever_their_names(tmp_path):
    def build(name, seed):
        return world.unet(name=name, training=world.RECIPE.replace(epochs=1), seed=seed)

    result = run_study(Study.grid(build, name=["a", "b"], seed=[0]), tmp_path, progress=False)
    first, second = result.table().cells
    assert first.status == second.status == "done"
    assert first.scores == second.scores
    assert len(list(tmp_path.glob("*/lineage.json"))) == 1


def test_costs_count_ancestors_on_disk(reference, tmp_path):
    folder = reference[0] / "stages"
    stages = {stage.task.title: stage for stage in study(tmp_path / "log.txt").stages}
    middle = finished(stages["middle"], folder)
    child = world.unet(parent=middle.folder, training=world.RECIPE.replace(epochs=1))
    result = run_study(Study([Cell({"seed": 0}, child)]), tmp_path, progress=False)
    cell = result.table().cells[0]
    assert cell.chain_samples == cell.samples_seen + middle.record.samples_seen
