"""A study: a grid of stage chains, each cell named by its place on the axes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from transferseg.errors import SpecError, some
from transferseg.stages import Stage
from transferseg.study.cells import AxisValue, CellResult
from transferseg.study.table import StudyTable

_REPEATS = ("seed",)


@dataclass(frozen=True, eq=False)
class Cell:
    """One chain of a study.

    Attributes:
        axes: its place, such as {"architecture": "unet", "seed": 0}.
        stage: the last of its chain.
    """

    axes: Mapping[str, AxisValue]
    stage: Stage


@dataclass(frozen=True, eq=False)
class Study:
    """Chains of stages to be compared.

    Attributes:
        cells: one chain each, at distinct places on the same axes.
        score: what is compared: `test_` or `validation_` and a score of the last stage's task.
        mode: "max" where higher is better.
        repeats: axes over which a row of the table averages.

    Raises:
        SpecError: no cells, cells of different axes or at one place, a repeat that is no axis, a
            score of a part that the data have not.
        DataError: an axis value that is neither text nor a number, or a name that the table needs.

    Example:
        >>> from transferseg.stages import ModelRecipe, StageData, TrainingRecipe
        >>> from transferseg.stages.tasks import Segment
        >>> from transferseg.data import SyntheticRadiographs
        >>> parts = {"train": (0, 1), "test": (2, 3)}
        >>> data = StageData(SyntheticRadiographs(4, size=64), parts, 32)
        >>> def chain(encoder, seed):
        ...     model = ModelRecipe(encoder, in_channels=1)
        ...     return Stage(encoder, task=Segment(), data=data, model=model, seed=seed)
        >>> study = Study.grid(chain, encoder=["test_resnet", "vgg11"], seed=[0, 1])
        >>> len(study.cells), dict(study.cells[-1].axes)
        (4, {'encoder': 'vgg11', 'seed': 1})
    """

    cells: Sequence[Cell]
    score: str = "test_mean_iou"
    mode: Literal["max", "min"] = "max"
    repeats: Sequence[str] = _REPEATS

    def __post_init__(self) -> None:
        if not self.cells:
            raise SpecError("a study needs one cell or more.")
        cells = tuple(Cell(_plain(cell.axes), cell.stage) for cell in self.cells)
        object.__setattr__(self, "cells", cells)
        repeats = (self.repeats,) if isinstance(self.repeats, str) else tuple(self.repeats)
        if repeats == _REPEATS:  # of a study that has no seeds there is nothing to average
            repeats = tuple(name for name in repeats if name in cells[0].axes)
        object.__setattr__(self, "repeats", repeats)
        if self.mode not in ("max", "min"):
            raise SpecError(f"mode must be 'max' or 'min', got {self.mode!r}.")
        axes = tuple(self.cells[0].axes)
        places = set()
        for cell in self.cells:
            place = tuple(cell.axes.values())
            if tuple(cell.axes) != axes:
                raise SpecError(
                    f"cells must have the same axes; got {axes} and {tuple(cell.axes)}."
                )
            if place in places:
                raise SpecError(
                    f"two cells lie at {dict(cell.axes)}; give every cell its own place."
                )
            places.add(place)
        self._check_score()
        absent = [name for name in self.repeats if name not in axes]
        if absent:
            raise SpecError(f"repeats {some(absent)} are no axes of this study: {some(axes)}.")
        # What the table would refuse at the end, it refuses now.
        results = [CellResult(cell.axes, "missing") for cell in self.cells]
        StudyTable(results, score=self.score, repeats=self.repeats, mode=self.mode)

    def _check_score(self) -> None:
        part, _, name = self.score.partition("_")
        if part not in ("validation", "test") or not name:
            raise SpecError(
                f"score must be 'test_' or 'validation_' and a score of the task, such as "
                f"'test_mean_iou'; got {self.score!r}."
            )
        for cell in self.cells:
            data = cell.stage.data
            if part not in data.parts and not (part == "validation" and data.folds is not None):
                raise SpecError(
                    f"the score is {self.score!r}, but stage {cell.stage.name!r} at "
                    f"{dict(cell.axes)} has no part {part!r} in its data."
                )

    @classmethod
    def grid(
        cls,
        build: Callable[..., Stage | None],
        *,
        score: str = "test_mean_iou",
        mode: Literal["max", "min"] = "max",
        repeats: Sequence[str] = _REPEATS,
        **axes: Sequence[AxisValue],
    ) -> Study:
        """All combinations of the axes, as far as `build` makes a chain of them.

        Args:
            build: called with one value of each axis by name; gives the last stage of the chain,
                or None where the combination does not exist. Any field of a stage or a recipe can
                be an axis.
            score: see `Study`.
            mode: see `Study`.
            repeats: see `Study`.
            **axes: name -> values; the first varies slowest.
        """
        empty = [name for name, values in axes.items() if not len(values)]
        if empty:
            raise SpecError(f"axes without values: {some(empty)}.")
        places = [
            dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
        ]
        built = [(place, build(**place)) for place in places]
        cells = [Cell(place, stage) for place, stage in built if stage is not None]
        return cls(cells, score=score, mode=mode, repeats=repeats)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage once, parents before children; what several chains share stands once."""
        found: dict[str, Stage] = {}
        for cell in self.cells:
            for stage in cell.stage.chain:
                found.setdefault(stage.key, stage)
        return tuple(found.values())


def _plain(axes: Mapping[str, AxisValue]) -> dict[str, AxisValue]:
    """NumPy's numbers as Python's, so that places compare and go to JSON."""
    return {name: v.item() if isinstance(v, np.generic) else v for name, v in axes.items()}
