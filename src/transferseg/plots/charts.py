"""Charts of scores: learning curves and grouped bars."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from transferseg.errors import DataError, unknown_name
from transferseg.plots.figures import PALETTE, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE_STYLES = ("-", "--", ":", "-.")

#: One run: a mapping a row, such as `{"epoch": 1, "loss": 0.7}`. A row may lack some values.
Rows: TypeAlias = Sequence[Mapping[str, Any]]


def curves(
    histories: Mapping[str, Rows],
    value: str,
    *,
    x: str = "epoch",
    colours: Sequence[str] = PALETTE[:7],
    ax: Axes | None = None,
) -> Axes:
    """One line a run: how a value changed while training.

    Args:
        histories: the rows of each run by its name, in order. A row without `value` (an epoch that
            was not validated) has no point; a value that is not finite leaves a gap.
        value: which value to draw, such as "loss".
        x: what runs along the horizontal axis; every row that has `value` must have it.
        colours: in turn; when they are used up, they come again with another line style.
        ax: where to draw; a new figure by default.

    Returns:
        The Axes, its labels set to `x` and `value`.

    Raises:
        DataError: no runs, no row of a run has `value`, or a row that has it lacks `x`.

    Example:
        >>> rows = [{"epoch": 1, "loss": 0.7}, {"epoch": 2, "loss": 0.4}]
        >>> ax = curves({"from scratch": rows}, "loss")
        >>> ax.lines[0].get_ydata().tolist()
        [0.7, 0.4]
    """
    if not histories:
        raise DataError("histories must hold at least one run, got none.")
    lines = {name: _points(rows, name, value=value, x=x) for name, rows in histories.items()}
    ax = axes_or_new(ax)
    # style outermost: all colours once with solid lines before any comes back dashed
    styles = itertools.cycle(itertools.product(_LINE_STYLES, colours))
    for (name, (across, up)), (style, colour) in zip(lines.items(), styles, strict=False):
        ax.plot(across, up, color=colour, linestyle=style, marker="o", markersize=3, label=name)
    ax.set(xlabel=x, ylabel=value)
    ax.grid(visible=True, alpha=0.3)
    ax.legend()
    return ax


def bars(
    scores: Mapping[str, Mapping[str, float | Sequence[float]]],
    *,
    ylabel: str = "score",
    colours: Sequence[str] = PALETTE,
    ax: Axes | None = None,
) -> Axes:
    """Grouped bars: the mean over runs, with a line from the worst run to the best.

    Args:
        scores: group -> series -> the runs' values (folds, seeds), or one value. Groups stand side
            by side along the axis, a series has one colour in all of them; a group may lack a
            series, whose place then stays empty. One value has no error line.
        ylabel: what the values are, with their unit.
        colours: one a series.
        ax: where to draw; a new figure by default.

    Returns:
        The Axes.

    Raises:
        DataError: nothing to draw, too few colours, or a value that is missing or not finite.

    Example:
        >>> ax = bars({"lungs": {"scratch": [0.5, 0.7], "transfer": [0.8, 0.9]}}, ylabel="Dice")
        >>> [round(float(bar.get_height()), 2) for bar in ax.patches]
        [0.6, 0.85]
    """
    series = list(dict.fromkeys(name for group in scores.values() for name in group))
    if not 0 < len(series) <= len(colours):
        raise DataError(f"expected 1 to {len(colours)} series (a colour each), got {len(series)}.")
    runs = {
        (group, name): _runs(values, f"{group!r}, {name!r}")
        for group, by_series in scores.items()
        for name, values in by_series.items()
    }
    ax = axes_or_new(ax)
    width = 0.8 / len(series)
    for index, name in enumerate(series):
        offset = (index - (len(series) - 1) / 2) * width
        present = {
            place + offset: runs[group, name]
            for place, group in enumerate(scores)
            if name in scores[group]
        }
        _draw_series(ax, present, name, width=width, colour=colours[index])
    crowded = sum(map(len, scores)) > 60
    ax.set_xticks(
        range(len(scores)), list(scores), rotation=30 * crowded, ha="right" if crowded else "center"
    )
    ax.set_ylabel(ylabel)
    ax.grid(visible=True, axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    return ax


def _points(rows: Rows, name: str, *, value: str, x: str) -> tuple[list[float], list[float]]:
    chosen = [row for row in rows if row.get(value) is not None]
    if not chosen:
        known = dict.fromkeys(key for row in rows for key in row)
        raise DataError(f"no row of {name!r} has it: {unknown_name('value', value, known)}")
    for row in chosen:
        if x not in row:
            raise DataError(f"a row of {name!r} lacks it: {unknown_name('x', x, row)}")
    up = np.array([float(row[value]) for row in chosen])
    return [float(row[x]) for row in chosen], np.where(np.isfinite(up), up, np.nan).tolist()


def _runs(values: float | Sequence[float], what: str) -> NDArray[np.float64]:
    runs = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if runs.ndim != 1 or runs.size == 0 or not np.isfinite(runs).all():
        raise DataError(f"{what} must hold one finite value or more, got {values!r}; leave it out.")
    return runs


def _draw_series(
    ax: Axes, runs: Mapping[float, NDArray[np.float64]], name: str, *, width: float, colour: str
) -> None:
    means = [float(values.mean()) for values in runs.values()]
    ax.bar(list(runs), means, width, color=colour, label=name)
    several = {place: values for place, values in runs.items() if values.size > 1}
    if several:
        middle = [float(values.mean()) for values in several.values()]
        below = [mean - values.min() for mean, values in zip(middle, several.values(), strict=True)]
        above = [values.max() - mean for mean, values in zip(middle, several.values(), strict=True)]
        ax.errorbar(
            list(several), middle, yerr=[below, above], fmt="none", ecolor="black", capsize=3
        )
