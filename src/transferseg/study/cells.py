"""One cell of a study's grid: whether it is done, what it scored, what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from transferseg.errors import DataError, unknown_name
from transferseg.metrics.tables import json_number

#: Where a cell stands: its last stage is done; a stage of its chain failed (its own last one, or
#: an earlier one that blocks it); it has not been run.
Status: TypeAlias = Literal["done", "failed", "blocked", "missing"]

#: What an axis of a study may take: a label, or a number.
AxisValue: TypeAlias = str | int | float

_AMOUNTS = ("seconds", "chain_seconds", "samples_seen", "chain_samples")


@dataclass(frozen=True)
class CellResult:
    """One cell of a study's grid: one chain of stages at one seed.

    Attributes:
        axes: where the cell stands in the grid: axis -> label or finite number.
        status: "done", "failed", "blocked" (an earlier stage of its chain failed), "missing".
        scores: by name, flat; None where undefined (what is not finite becomes None).
        coverage: part -> fraction of its values that the last transfer loaded, 0 to 1; empty when
            the chain starts at random.
        chain: names of the stages, from the first ancestor to the last.
        seconds: that the last stage took.
        chain_seconds: of all stages of the chain.
        samples_seen: by the last stage.
        chain_samples: by all stages of the chain.
        error: of a failed stage, or which stage blocks this one.

    Raises:
        DataError: an axis, status, coverage or amount that cannot be.

    Example:
        >>> cell = CellResult({"backbone": "vgg11", "seed": 0}, "done", {"test_mean_iou": 0.31})
        >>> CellResult.from_dict(cell.to_dict()) == cell
        True
    """

    axes: Mapping[str, AxisValue]
    status: Status
    scores: Mapping[str, float | None] = field(default_factory=dict)
    coverage: Mapping[str, float] = field(default_factory=dict)
    chain: tuple[str, ...] = ()
    seconds: float = 0.0
    chain_seconds: float = 0.0
    samples_seen: int = 0
    chain_samples: int = 0
    error: str = ""

    def __post_init__(self) -> None:
        given: object = self.chain  # from JSON it may be anything
        if isinstance(given, str):
            raise DataError(f"the chain of a cell is a list of stage names, got {given!r}.")
        # copies that no caller can change; tuples and None, so that a cell read back is equal
        scores = {
            name: None if value is None else json_number(float(value))
            for name, value in self.scores.items()
        }
        object.__setattr__(self, "axes", dict(self.axes))
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "coverage", {k: float(v) for k, v in self.coverage.items()})
        object.__setattr__(self, "chain", tuple(self.chain))
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """The cell as JSON-ready values."""
        return {**asdict(self), "chain": list(self.chain)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CellResult:
        """The cell of `to_dict`'s values.

        Raises:
            DataError: a field that does not exist or does not fit (it names it), or a missing one.
        """
        if not isinstance(values, Mapping):
            raise DataError(f"a cell of a study is a dict of fields, got {type(values).__name__}.")
        known = tuple(cls.__dataclass_fields__)
        for name in values:
            if name not in known:
                raise DataError(unknown_name("field of a study's cell", str(name), known))
        try:
            return cls(**values)
        except DataError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the cell of a study does not fit: {error}.") from error


def _check(cell: CellResult) -> None:
    """Raise `DataError` for values that no cell can have."""
    if cell.status not in get_args(Status):
        raise DataError(unknown_name("status", str(cell.status), get_args(Status)))
    for name, value in cell.axes.items():
        number = isinstance(value, (int, float)) and math.isfinite(value)
        if not number and not isinstance(value, str):
            raise DataError(
                f"axis {name!r} is {value!r}; expected a label or a finite number: name the value."
            )
    for part, fraction in cell.coverage.items():
        if not 0.0 <= fraction <= 1.0:
            raise DataError(f"the coverage of {part!r} must lie in 0..1, got {fraction}.")
    for name in _AMOUNTS:
        amount = getattr(cell, name)
        if not isinstance(amount, (int, float)) or not 0 <= amount < math.inf:
            raise DataError(f"{name} must be a finite number from 0, got {amount!r}.")


def axis_text(value: AxisValue | None) -> str:
    """A value of an axis as it stands in a table, on one line; a dash for a cell without the axis.

    Example:
        >>> axis_text("2-step"), axis_text(1e-5), axis_text(None)
        ('2-step', '1e-05', '-')
    """
    return "-" if value is None else " ".join(str(value).split())


def axes_text(axes: Mapping[str, AxisValue]) -> str:
    """Axes with their values, for a heading or a message.

    Example:
        >>> axes_text({"backbone": "vgg11", "seed": 0})
        'backbone = vgg11, seed = 0'
    """
    return ", ".join(f"{name} = {axis_text(value)}" for name, value in axes.items())


def axis_values(
    places: Iterable[Mapping[str, AxisValue]],
) -> dict[str, tuple[AxisValue | None, ...]]:
    """The values of every axis, in the order in which they first appear.

    Args:
        places: the axes of each cell or row.

    Returns:
        Axis -> distinct values; None is among them if some cell or row lacks the axis.

    Example:
        >>> axis_values([{"backbone": "vgg11", "seed": 0}, {"backbone": "vgg11", "seed": 1}])
        {'backbone': ('vgg11',), 'seed': (0, 1)}
    """
    places = list(places)
    names = dict.fromkeys(name for axes in places for name in axes)
    return {name: tuple(dict.fromkeys(axes.get(name) for axes in places)) for name in names}
