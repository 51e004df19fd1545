"""The table of a study, in the form of Table 3 of Merand 2021: text, Markdown, CSV, bars."""

from __future__ import annotations

import html
import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transferseg.errors import DataError, SpecError, unknown_name
from transferseg.metrics.tables import markdown_table, text_table
from transferseg.study.cells import AxisValue, CellResult, axes_text, axis_values
from transferseg.study.charts import row_bars
from transferseg.study.pivot import Grid, Key, check_axes, long_form, notes, pivot
from transferseg.study.rows import TableRow, table_rows
from transferseg.training.atomic import write_text
from transferseg.training.history import rows_to_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CellResult", "StudyTable", "TableRow"]

# the axes of the paper's table; a study that lacks some of them has a table all the same
_REPEATS = ("seed",)
_ROWS = ("backbone", "pretraining")
_COLUMNS = ("architecture", "parts", "initialisation")

_COSTS = ("seconds", "chain_seconds", "samples_seen", "chain_samples")
_LEGEND = (
    "Coverage: of the last transfer, the least of the repeats. Seconds and samples: of the last "
    "stage and of its whole chain, means over the cells that are done."
)


@dataclass(frozen=True)
class StudyTable:
    """What the cells of a study scored, side by side; a table in a terminal and in a notebook.

    Attributes:
        cells: one result a cell of the grid, whatever its status.
        score: which of the cells' scores is compared.
        repeats: axes along which runs repeat each other, such as the seed or the fold: cells that
            differ only in these are one row. The default counts only if the study has the axis.
        percent: print and draw the score times 100, with one decimal.
        mode: "max" if a higher score is better, "min" if a lower one is.

    Raises:
        DataError: no cells, two of the same place in the grid, a score that no cell has (unless
            none has any yet), or an axis with the name of another column of the CSV.
        SpecError: an unknown mode, or repeats that are no axes.

    Source: Merand 2021, Table 3.

    Example:
        >>> cells = [
        ...     CellResult({"pretraining": name, "seed": seed}, "done", {"dice": value})
        ...     for name, values in {"none": (0.5, 0.6), "lungs": (0.7, 0.72)}.items()
        ...     for seed, value in enumerate(values)
        ... ]
        >>> table = StudyTable(cells, score="dice", percent=True)
        >>> print(table.to_markdown(rows=["pretraining"], columns=[]))
        dice in %, higher is better: mean ± best minus worst over seed (not a standard deviation),
        n: cells with a score.
        <BLANKLINE>
        | pretraining | dice |
        | :-- | --: |
        | none | 55.0 ± 10.0 (n=2) |
        | lungs | 71.0 ± 2.0 (n=2) |
        <BLANKLINE>
    """

    cells: Sequence[CellResult] = field(repr=False)
    score: str = field(kw_only=True)
    repeats: Sequence[str] = field(default=_REPEATS, kw_only=True)
    percent: bool = field(default=False, kw_only=True)
    mode: Literal["max", "min"] = field(default="max", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", tuple(self.cells))
        if self.mode not in ("max", "min"):
            raise SpecError(unknown_name("mode", str(self.mode), ("max", "min")))
        if not self.cells:
            raise DataError("a study's table needs at least one cell, got none.")
        object.__setattr__(self, "repeats", _those(self.repeats, _REPEATS, self._axes))
        for name in self.repeats:
            if name not in self._axes:
                raise SpecError(unknown_name("axis", name, self._axes))
        scores = {name for cell in self.cells for name in cell.scores}
        if scores and self.score not in scores:
            raise DataError(unknown_name("score", str(self.score), scores))
        self._check_cells()

    def _check_cells(self) -> None:
        places = Counter(frozenset(cell.axes.items()) for cell in self.cells)
        for cell in self.cells:
            if (count := places[frozenset(cell.axes.items())]) > 1:
                raise DataError(
                    f"{count} cells stand at {axes_text(cell.axes) or 'no axes'}; each place of "
                    "the grid has one result: add the axis in which they differ."
                )
        for name, count in Counter(self._columns).items():
            if count > 1:
                raise DataError(
                    f"{count} columns of the CSV are named {name!r}; rename the axis or the score."
                )

    @cached_property
    def rows(self) -> tuple[TableRow, ...]:
        """One row a combination of axes without the repeats, by first appearance in the cells."""
        return table_rows(self.cells, score=self.score, repeats=self.repeats, mode=self.mode)

    def to_markdown(self, rows: Sequence[str] = _ROWS, columns: Sequence[str] = _COLUMNS) -> str:
        """The table in Markdown, under a line that says what the numbers are.

        A pivot has one line a combination of the axes in `rows` and one column a combination of
        those in `columns`. A cell of it reads "29.2 ± 3.8 (n=2)": mean, best minus worst (which is
        not a standard deviation, and not given for one run), and how many cells have a score; or
        why there is none: "failed", "blocked", "missing", "undefined"; or "-" where the grid has
        no such cell. Lines and columns stand in the order in which each axis' values first appear.
        Axes with one value in the whole study are named above the table unless they are asked for.
        Cells without a score follow below, each with its error.

        Args:
            rows: axes of the row headers. Those of the default that do not vary are left out.
            columns: axes of the column headers, likewise. With neither rows nor columns it is the
                long form: one line a row, with coverage, time and samples.

        Raises:
            SpecError: an axis that is unknown, named twice or averaged over; or one that varies and
                is not named.
        """
        left = _those(rows, _ROWS, self._varying)
        top = _those(columns, _COLUMNS, self._varying)
        form = self._pivot_markdown(left, top) if left or top else self._long_markdown()
        return "\n\n".join([form, *self._notes_markdown()]) + "\n"

    def to_csv(self) -> str:
        """One line a cell, not averaged: axes, status, every score, coverage, chain and costs.

        Columns: the axes and the scores by their names in order of first appearance,
        `coverage_<part>` (0 to 1), the chain's stages joined by " > ". What is undefined or was not
        measured is empty.
        """
        lines = []
        for cell in self.cells:
            values: dict[str, Any] = {**cell.axes, "status": cell.status, **cell.scores}
            values |= {f"coverage_{part}": value for part, value in cell.coverage.items()}
            values |= {"chain": " > ".join(cell.chain), "error": cell.error}
            values |= {name: getattr(cell, name) for name in _COSTS}
            lines.append({name: values.get(name, "") for name in self._columns})
        return rows_to_csv(lines)

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write `table.md`, `cells.csv` and `cells.json`, each in one step.

        `table.md` holds the pivot in the form of the paper's Table 3, with the axes that the paper
        does not have among the row headers, and the long form below; `cells.json` a list of what
        `CellResult.from_dict` reads.

        Args:
            folder: is made if it is missing; former files are replaced.

        Returns:
            The folder.
        """
        folder = Path(folder)
        top = _those(_COLUMNS, _COLUMNS, self._varying)
        left = list(_those(_ROWS, _ROWS, self._varying))
        left += [name for name in self._varying if name not in (*left, *top)]
        forms = [self._pivot_markdown(left, top)] if left or top else []
        forms += [self._long_markdown(), *self._notes_markdown()]
        cells = [cell.to_dict() for cell in self.cells]
        write_text(folder / "table.md", "\n\n".join(forms) + "\n")
        write_text(folder / "cells.csv", self.to_csv())
        write_text(folder / "cells.json", json.dumps(cells, indent=1, allow_nan=False) + "\n")
        return folder

    def bars(
        self,
        group: str | Sequence[str] = "backbone",
        series: str | Sequence[str] = "pretraining",
        *,
        where: Mapping[str, AxisValue] | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Grouped bars of the mean scores, with a line from the worst run to the best.

        A series has the same colour in every chart of one study (up to 14 series). Rows without a
        score leave their place empty.

        Args:
            group: axis, or several joined, that stand side by side.
            series: axis, or several joined, that get a colour each; may be empty.
            where: draw only the rows with these values, such as `{"architecture": "unet"}`.
            ax: where to draw; a new figure by default.

        Returns:
            The Axes.

        Raises:
            SpecError: an axis that is unknown, named twice or averaged over, or one that varies
                among the chosen rows and is not named; a value that its axis does not have.
            DataError: no row, or none with a score.

        Source: Merand 2021, Figures 4 and 5.
        """
        return row_bars(
            self.rows,
            group=_names(group),
            series=_names(series),
            where=where or {},
            repeats=self.repeats,
            ylabel=f"{self.score} (%)" if self.percent else self.score,
            factor=100.0 if self.percent else 1.0,
            ax=ax,
        )

    def __str__(self) -> str:
        table = "\n".join(line.rstrip() for line in text_table(*self._long).splitlines())
        about = [*self._about(self._varying), _LEGEND]
        return "\n".join([*about, table, *self._notes_text()])

    def _repr_html_(self) -> str:
        header, lines = self._long
        about = html.escape(" ".join([*self._about(self._varying), _LEGEND]))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
            for line in lines
        )
        items = "".join(f"<li>{html.escape(line)}</li>" for line in self._notes_text())
        listed = f"<ul>{items}</ul>" if items else ""
        return f"<p>{about}</p><table><tr>{head}</tr>{body}</table>{listed}"

    @cached_property
    def _axes(self) -> dict[str, Key]:
        return axis_values(cell.axes for cell in self.cells)

    @cached_property
    def _varying(self) -> list[str]:
        """The axes that tell the rows apart."""
        return [n for n, values in self._axes.items() if len(values) > 1 and n not in self.repeats]

    @cached_property
    def _long(self) -> Grid:
        return long_form(self.rows, self._varying, percent=self.percent)

    @cached_property
    def _columns(self) -> list[str]:
        scores = dict.fromkeys(name for cell in self.cells for name in cell.scores)
        parts = dict.fromkeys(part for cell in self.cells for part in cell.coverage)
        coverage = [f"coverage_{part}" for part in parts]
        return [*self._axes, "status", *scores, *coverage, "chain", *_COSTS, "error"]

    def _about(self, shown: Sequence[str]) -> list[str]:
        """What the numbers are, and the axes that are not shown because they never vary."""
        better = "higher" if self.mode == "max" else "lower"
        what = f"{self.score}{' in %' * self.percent}, {better} is better"
        if self.repeats:
            what += (
                f": mean ± best minus worst over {' and '.join(self.repeats)} (not a standard "
                "deviation), n: cells with a score"
            )
        same: dict[str, AxisValue] = {
            name: values[0]
            for name, values in self._axes.items()
            if len(values) == 1 and name not in shown and values[0] is not None
        }
        return [f"{what}.", *([f"The same everywhere: {axes_text(same)}."] if same else [])]

    def _pivot_markdown(self, left: Sequence[str], top: Sequence[str]) -> str:
        check_axes([*left, *top], self._axes, repeats=self.repeats, where="rows or columns")
        grid = pivot(self.rows, left, top, score=self.score, percent=self.percent)
        columns = [f"Columns: {', '.join(top)}."] if top else []
        return _markdown([*self._about([*left, *top]), *columns], grid)

    def _long_markdown(self) -> str:
        return _markdown([*self._about(self._varying), _LEGEND], self._long)

    def _notes_markdown(self) -> list[str]:
        """One list, or nothing; an error as code, so that its signs stay as they are."""
        lines = []
        for what, error in notes(self.cells, self.score):
            code = error.replace("`", "'")
            lines.append(f"- {what}: `{code}`" if code else f"- {what}")
        return ["\n".join(lines)] if lines else []

    def _notes_text(self) -> list[str]:
        found = notes(self.cells, self.score)
        return [f"{what}: {error}" if error else what for what, error in found]


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _those(
    names: str | Sequence[str], default: tuple[str, ...], among: Collection[str]
) -> tuple[str, ...]:
    """The names as they are given; of the default only those that the study has a use for."""
    names = _names(names)
    return tuple(name for name in names if name in among) if names == default else names


def _markdown(about: Sequence[str], grid: Grid) -> str:
    header, lines = grid
    # the header as it is given; the cells are escaped there
    table = markdown_table([name.replace("|", "\\|") for name in header], lines)
    return f"{' '.join(about)}\n\n{table}"
