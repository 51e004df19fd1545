"""Bar charts of a study's rows, as Figures 4 and 5 of Merand 2021."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from transferseg.errors import DataError, SpecError, unknown_name
from transferseg.plots.charts import bars
from transferseg.plots.figures import PALETTE
from transferseg.study.cells import AxisValue, axes_text, axis_text, axis_values
from transferseg.study.pivot import Key, check_axes, joined, key_of, ordered_keys
from transferseg.study.rows import TableRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def row_bars(
    rows: Sequence[TableRow],
    *,
    group: Sequence[str],
    series: Sequence[str],
    where: Mapping[str, AxisValue],
    repeats: Sequence[str],
    ylabel: str,
    factor: float,
    ax: Axes | None,
) -> Axes:
    """Draw what `StudyTable.bars` describes; the values are multiplied by `factor`."""
    axes = axis_values(row.axes for row in rows)
    chosen = _chosen(rows, where, axes)
    left = {name: tuple({row.axes.get(name): None for row in chosen}) for name in axes}
    check_axes([*group, *series, *where], left, repeats=repeats, where="group, series or where")
    # all rows give the order and the colours, so that the charts of one study agree
    groups = _names(rows, group, without=ylabel)
    names = _names(rows, series, without=ylabel)
    heights = _heights(chosen, groups, names, by=(group, series), factor=factor)
    drawn = dict.fromkeys(name for by_series in heights.values() for name in by_series)
    if not drawn:
        raise DataError(f"none of the {len(chosen)} row(s) to draw has a score yet.")
    ax = bars(heights, ylabel=ylabel, colours=_colours(list(drawn), list(names.values())), ax=ax)
    ax.set_xlabel(", ".join(group))
    ax.set_title(axes_text(where))
    return ax


def _chosen(
    rows: Sequence[TableRow], where: Mapping[str, AxisValue], axes: Mapping[str, Key]
) -> list[TableRow]:
    """The rows that are to be drawn; an axis that does not exist is told later, with the others."""
    where = {name: value for name, value in where.items() if name in axes}
    for name, value in where.items():
        if value not in axes[name]:
            known = map(axis_text, axes[name])
            raise SpecError(unknown_name(f"value of axis {name!r}", axis_text(value), known))
    chosen = [row for row in rows if all(row.axes.get(k) == v for k, v in where.items())]
    if not chosen:
        raise DataError(f"the study has no row with {axes_text(where)}.")
    return chosen


def _names(rows: Sequence[TableRow], axes: Sequence[str], *, without: str) -> dict[Key, str]:
    """A name for each combination of some axes; `without` where there is no axis to name it."""
    names = {key: joined(key) or without for key in ordered_keys(rows, axes)}
    if len(set(names.values())) != len(names):
        raise DataError(
            f"some values of {', '.join(axes)} read the same ({', '.join(map(repr, names))}), and "
            "would be drawn as one: label them apart."
        )
    return names


def _heights(
    rows: Sequence[TableRow],
    groups: Mapping[Key, str],
    names: Mapping[Key, str],
    *,
    by: tuple[Sequence[str], Sequence[str]],
    factor: float,
) -> dict[str, dict[str, list[float]]]:
    """Group -> series -> values, in the order of the names; a group without a value stays empty."""
    group, series = by
    found = {(key_of(row, group), key_of(row, series)): row.values for row in rows}
    present = {key for key, _ in found}
    return {
        groups[left]: {
            names[key]: [value * factor for value in found[left, key]]
            for key in names
            if found.get((left, key))
        }
        for left in groups
        if left in present
    }


def _colours(drawn: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    """A series keeps its colour in all charts of a study, unless the colours do not last."""
    if len(names) > len(PALETTE):
        return PALETTE
    return [PALETTE[names.index(name)] for name in drawn]
