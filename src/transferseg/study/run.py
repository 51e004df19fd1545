"""Run a study: every stage once, failures apart, finished ones found again."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from transferseg.errors import some
from transferseg.stages import Stage
from transferseg.stages.check import check_stages
from transferseg.stages.leaks import check_whole_chain
from transferseg.stages.run import check_process, finished, run_checked
from transferseg.study.cells import CellResult, Status
from transferseg.study.grid import Cell, Study
from transferseg.study.table import StudyTable
from transferseg.training.atomic import write_text

_FAILED = "failed"


@dataclass(frozen=True)
class Failure:
    """Why a stage could not be run."""

    error: str
    traceback: str


class Future(Protocol):
    """What an executor gives for a stage that it was asked to run."""

    def done(self) -> bool:
        """Whether it has ended."""
        ...

    def result(self) -> Any:  # noqa: ANN401
        """Nothing, or the exception that ended it."""
        ...


class Executor(Protocol):
    """What runs stages: `concurrent.futures`' executors, Dask's client, submitit's executor."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future:  # noqa: ANN401
        """Begin a call somewhere."""
        ...


@dataclass(frozen=True)
class StudyResult:
    """What a study has come to.

    Attributes:
        study: what was asked for.
        folder: where its stages are.
        failures: key of a stage -> why it failed in this run.
    """

    study: Study
    folder: Path
    failures: Mapping[str, str]

    def table(self, *, percent: bool = False) -> StudyTable:
        """The table of all cells as they stand on disk, finished or not."""
        cells = [cell_result(cell, self.folder, self.failures) for cell in self.study.cells]
        return StudyTable(
            cells, score=self.study.score, repeats=self.study.repeats, mode=self.study.mode,
            percent=percent,
        )  # fmt: skip

    def raise_if_failed(self) -> None:
        """Make an error of failed stages.

        Raises:
            RuntimeError: which stages failed, and why.
        """
        if self.failures:
            names = {stage.key: stage.name for stage in self.study.stages}
            raise RuntimeError(
                f"{len(self.failures)} stage(s) failed: "
                + some(f"{names[key]} ({why})" for key, why in self.failures.items())
            )


def run_study(
    study: Study,
    folder: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    progress: bool = True,
) -> StudyResult:
    """Run every stage of a study once, and collect the scores.

    Stages that several chains share are trained once; stages that are finished in `folder`, from
    an earlier run or another study, are not trained again; a run that was interrupted, by SIGKILL
    too, goes on where it stood. A stage that fails stops only the chains that need it: the error
    is kept in `folder/failed/`, told in the table, and the stage is tried again by the next run.

    Args:
        study: what to run.
        folder: where the stages are kept.
        executor: runs stages beside each other, given as a `concurrent.futures` executor or
            anything with its `submit` (Dask's client, submitit's executor); it is left open.
            Everything in the study must pickle, and other machines must see `folder`. With a
            `ProcessPoolExecutor` give `mp_context=multiprocessing.get_context("spawn")`: torch's
            threads do not survive a fork. By default stages run one after the other, here.
        progress: show progress bars: of the study, and of each training that runs here.

    Returns:
        The results; `.table()` compares the cells.

    Raises:
        DataError: a chain is scored on images that it has seen; before anything is trained. What
            else is wrong with a stage (see `run_stage`) is its failure, found before any training.

    Example:
        >>> import tempfile
        >>> from transferseg.data import SyntheticRadiographs
        >>> from transferseg.stages import ModelRecipe, StageData, TrainingRecipe
        >>> from transferseg.stages.tasks import Segment
        >>> parts = {"train": (0, 1), "test": (2, 3)}
        >>> data = StageData(SyntheticRadiographs(4, size=64), parts, 32)
        >>> def chain(seed):
        ...     return Stage("unet", task=Segment(), data=data, seed=seed,
        ...                  model=ModelRecipe("test_resnet", in_channels=1),
        ...                  training=TrainingRecipe(epochs=1, batch_size=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = run_study(Study.grid(chain, seed=[0, 1]), folder, progress=False)
        ...     row, = result.table().rows
        >>> row.n
        2
    """
    root = Path(folder).absolute()
    for cell in study.cells:
        check_whole_chain(cell.stage)
    check_process()
    todo = _unfinished(study, root)
    failures: dict[str, str] = {}
    for key, problem in check_stages(tuple(todo.values())).items():
        failures[key] = _note(root, todo[key], _failure(problem))
    done = len(study.stages) - len(todo)
    with tqdm(
        total=len(study.stages), initial=done, desc="stages", unit="stage", disable=not progress
    ) as bar:
        ended = (
            _one_by_one(todo, root, set(failures), progress)
            if executor is None
            else _spread(todo, root, set(failures), executor)
        )
        for key, failure in ended:
            if failure is not None:
                failures[key] = _note(root, todo[key], failure)
            else:
                _note(root, todo[key], None)
            bar.update()
    return StudyResult(study, root, failures)


def _unfinished(study: Study, root: Path) -> dict[str, Stage]:
    """Stages to run, parents first: those of cells that are not done."""
    todo: dict[str, Stage] = {}
    for cell in study.cells:
        if finished(cell.stage, root) is None:
            todo |= {s.key: todo.get(s.key, s) for s in cell.stage.chain if not finished(s, root)}
    return todo


def _one_by_one(
    todo: Mapping[str, Stage], root: Path, failed: set[str], progress: bool
) -> Iterator[tuple[str, Failure | None]]:
    for key, stage in todo.items():  # parents come first
        if key in failed:
            continue
        if isinstance(stage.parent, Stage) and stage.parent.key in failed:
            failed.add(key)
            continue
        failure = _attempt(stage, root, progress)
        if failure is not None:
            failed.add(key)
        yield key, failure


def _spread(
    todo: Mapping[str, Stage], root: Path, failed: set[str], executor: Executor
) -> Iterator[tuple[str, Failure | None]]:
    """Submit stages as their parents end; waits by looking, which every kind of future allows."""
    waiting = {key: stage for key, stage in todo.items() if key not in failed}
    running: dict[str, Future] = {}
    try:
        while waiting or running:
            ended = [key for key, future in running.items() if _ended(future)]
            for key in ended:
                failure = _outcome(running.pop(key))
                if failure is None and finished(todo[key], root) is None:
                    failure = Failure(f"it ran, but nothing is in {root}: another machine?", "")
                if failure is not None:
                    failed.add(key)
                yield key, failure
            for key, stage in list(waiting.items()):
                parent = stage.parent.key if isinstance(stage.parent, Stage) else None
                if parent in failed:
                    failed.add(key)
                elif parent in waiting or parent in running:
                    continue
                else:
                    try:
                        running[key] = executor.submit(_attempt, stage, root, False)
                    except Exception as lost:  # a pool that has broken takes nothing more
                        failed.add(key)
                        yield key, _failure(lost)
                del waiting[key]
            if running and not ended:
                time.sleep(0.05)
    finally:
        for future in running.values():  # interrupted: what has not begun need not
            getattr(future, "cancel", bool)()


def _ended(future: Future) -> bool:
    try:
        return future.done()
    except Exception:  # lost; its result tells why
        return True


def _outcome(future: Future) -> Failure | None:
    try:
        failure: Failure | None = future.result()
    except BaseException as lost:  # the worker died, was cancelled, or never got the stage
        if isinstance(lost, KeyboardInterrupt):
            raise
        return _failure(lost)
    return failure


def _attempt(stage: Stage, root: Path, progress: bool) -> Failure | None:
    """Run one stage; what stops it comes back as text, which every executor can carry."""
    try:
        run_checked(stage, root, check_whole_chain(stage), progress=progress)
    except Exception as error:
        return _failure(error)
    return None


def _failure(error: BaseException) -> Failure:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return Failure(f"{type(error).__name__}: {error}".strip(), text)


def _note(root: Path, stage: Stage, failure: Failure | None) -> str:
    """Keep a failure in a file of its own, and forget it when the stage has run."""
    path = root / _FAILED / f"{stage.key[:12]}.json"
    if failure is None:
        path.unlink(missing_ok=True)
        return ""
    values = {"stage": stage.name, "key": stage.key, **asdict(failure)}
    write_text(path, json.dumps(values, indent=1))
    return failure.error


def cell_result(cell: Cell, root: Path, failures: Mapping[str, str]) -> CellResult:
    """A cell as it stands on disk."""
    names = tuple(stage.name for stage in cell.stage.chain)
    last = finished(cell.stage, root)
    if last is None:
        status, why = _standing(cell.stage, failures)
        return CellResult(axes=cell.axes, status=status, chain=names, error=why)
    records = last.lineage.stages  # ancestors that are checkpoints on disk count too
    return CellResult(
        axes=cell.axes,
        status="done",
        scores={
            f"{part}_{name}": value
            for part, scores in last.scores.items()
            for name, value in scores.items()
        },
        coverage=last.record.coverage,
        chain=names,
        seconds=last.record.seconds,
        chain_seconds=sum(record.seconds for record in records),
        samples_seen=last.record.samples_seen,
        chain_samples=sum(record.samples_seen for record in records),
    )


def _standing(stage: Stage, failures: Mapping[str, str]) -> tuple[Status, str]:
    for earlier in stage.chain:
        if earlier.key in failures:
            if earlier is stage:
                return "failed", failures[earlier.key]
            return "blocked", f"stage {earlier.name!r} failed: {failures[earlier.key]}"
    return "missing", "not run yet"
