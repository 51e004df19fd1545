"""Rows of a study's table: cells that differ only in what is repeated, as one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from transferseg.metrics.ranks import spread
from transferseg.metrics.tables import json_number, mean
from transferseg.study.cells import AxisValue, CellResult


@dataclass(frozen=True)
class TableRow:
    """What the repeats of one combination of axes gave.

    Attributes:
        axes: what the cells share, without the repeated axes.
        values: the scores of the cells that have one, in their order.
        best: the best of them, None without one.
        worst: the worst of them, None without one.
        undefined: cells that are done but have no score (it is None, or was not measured).
        failed: cells that failed.
        blocked: cells whose chain failed before them.
        missing: cells that have not been run.
        coverage: part -> fraction of the last transfer, 0 to 1; where it differs between the done
            cells, the least (0 for a cell whose transfer did not have the part).
        seconds: of the last stage, the mean over the done cells; None without one, as below.
        chain_seconds: of all stages of the chain, likewise.
        samples_seen: by the last stage, likewise.
        chain_samples: by all stages of the chain, likewise.

    Example:
        >>> cells = [CellResult({"seed": s}, "done", {"dice": v}) for s, v in enumerate([0.5, 0.8])]
        >>> row, = table_rows(cells, score="dice", repeats=["seed"], mode="max")
        >>> round(row.mean, 3), round(row.spread, 3), row.n
        (0.65, 0.3, 2)
    """

    axes: Mapping[str, AxisValue]
    values: tuple[float, ...]
    best: float | None
    worst: float | None
    undefined: int
    failed: int
    blocked: int
    missing: int
    coverage: Mapping[str, float]
    seconds: float | None
    chain_seconds: float | None
    samples_seen: float | None
    chain_samples: float | None

    @property
    def n(self) -> int:
        """How many cells have a score."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Mean of the scores, None without one."""
        return json_number(mean(self.values))

    @property
    def spread(self) -> float | None:
        """Best minus worst, never below 0: the ± value of the paper, not a standard deviation.

        None below two scores: one run says nothing about how runs differ.

        Source: Merand 2021, Table 3.
        """
        return json_number(spread(self.values).best_minus_worst)

    @property
    def without(self) -> dict[str, int]:
        """How many cells have no score, by reason; reasons that do not occur are left out."""
        reasons = ("undefined", "failed", "blocked", "missing")
        return {reason: getattr(self, reason) for reason in reasons if getattr(self, reason)}


def table_rows(
    cells: Sequence[CellResult],
    *,
    score: str,
    repeats: Sequence[str],
    mode: Literal["max", "min"],
) -> tuple[TableRow, ...]:
    """Cells with equal axes, apart from the repeated ones, as one row each, by first appearance."""
    groups: dict[frozenset[tuple[str, AxisValue]], list[CellResult]] = {}
    for cell in cells:
        shared = frozenset(item for item in cell.axes.items() if item[0] not in repeats)
        groups.setdefault(shared, []).append(cell)
    return tuple(_row(group, score=score, repeats=repeats, mode=mode) for group in groups.values())


def _row(
    cells: Sequence[CellResult], *, score: str, repeats: Sequence[str], mode: Literal["max", "min"]
) -> TableRow:
    done = [cell for cell in cells if cell.status == "done"]
    scores = [cell.scores.get(score) for cell in done]
    values = tuple(value for value in scores if value is not None)
    low, high = min(values, default=None), max(values, default=None)
    best, worst = (high, low) if mode == "max" else (low, high)
    count = Counter(cell.status for cell in cells)
    return TableRow(
        axes={name: value for name, value in cells[0].axes.items() if name not in repeats},
        values=values,
        best=best,
        worst=worst,
        undefined=len(done) - len(values),
        failed=count["failed"],
        blocked=count["blocked"],
        missing=count["missing"],
        coverage=_least([cell.coverage for cell in done]),
        seconds=json_number(mean(cell.seconds for cell in done)),
        chain_seconds=json_number(mean(cell.chain_seconds for cell in done)),
        samples_seen=json_number(mean(cell.samples_seen for cell in done)),
        chain_samples=json_number(mean(cell.chain_samples for cell in done)),
    )


def _least(coverages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    parts = dict.fromkeys(part for coverage in coverages for part in coverage)
    return {part: min(coverage.get(part, 0.0) for coverage in coverages) for part in parts}
