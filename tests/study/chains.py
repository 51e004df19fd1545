"""A small study that other processes can build, with every training batch written to a file."""

from __future__ import annotations

from pathlib import Path

from tests.stages import world
from transferseg.study import Study, StudyTable, run_study


def study(log: Path, *, seeds: tuple[int, ...] = (0, 1)) -> Study:
    """Two ways to begin, two seeds: five stages, the first of two chains shared.

    While a file "stop" lies beside the log, the shared stage fails.
    """

    def watched(title: str) -> world.WatchedSegment:
        return world.WatchedSegment(log=log, title=title)

    def build(start: str, seed: int):
        parent = None
        if start == "pretrained":
            parent = world.unet(name="middle", task=watched("middle"), data=world.data(2), seed=7)
        return world.unet(task=watched(f"{start}-{seed}"), parent=parent, seed=seed)

    return Study.grid(build, start=["random", "pretrained"], seed=seeds)


def scores(table: StudyTable) -> list:
    return [(dict(cell.axes), cell.status, dict(cell.scores)) for cell in table.cells]


def main(log: Path, stages: Path) -> None:
    run_study(study(log), stages, progress=False)
