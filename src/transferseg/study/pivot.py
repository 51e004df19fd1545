"""Rows of a study as text: a pivot over some axes, and the long form with a line a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from transferseg.errors import SpecError, some, unknown_name
from transferseg.study.cells import AxisValue, CellResult, axes_text, axis_text, axis_values
from transferseg.study.rows import TableRow

#: Values of some axes, in the order of the axes; None where a row lacks one.
Key: TypeAlias = tuple[AxisValue | None, ...]

#: The header of a table, and its lines.
Grid: TypeAlias = tuple[list[str], list[list[str]]]

_AMOUNTS = ("coverage", "seconds", "chain seconds", "samples seen", "chain samples")

# in a note; the files of the table hold it whole
_LONGEST_ERROR = 300


def check_axes(
    named: Sequence[str], axes: Mapping[str, Key], *, repeats: Sequence[str], where: str
) -> None:
    """Refuse axes that would not tell the rows apart.

    Args:
        named: the axes that were asked for.
        axes: those that there are.
        repeats: those that the rows average over.
        where: in which arguments axes are named, for the message.

    Raises:
        SpecError: an axis that does not exist, is named twice or is averaged over; or one that
            varies and is not named.
    """
    for name in named:
        if name in repeats:
            raise SpecError(
                f"axis {name!r} is averaged over: leave it out of {where}, or out of the table's "
                "repeats."
            )
        if name not in axes:
            raise SpecError(unknown_name("axis", str(name), axes))
    if len(set(named)) != len(named):
        raise SpecError(f"an axis can be named once in {where}, got {', '.join(named)}.")
    for name, values in axes.items():
        if len(values) > 1 and name not in named and name not in repeats:
            raise SpecError(
                f"axis {name!r} varies ({some(map(axis_text, values))}) and is not named: put it "
                f"into {where}, or into the table's repeats to average over it."
            )


def key_of(row: TableRow, names: Iterable[str]) -> Key:
    """A row's values of some axes."""
    return tuple(row.axes.get(name) for name in names)


def ordered_keys(rows: Sequence[TableRow], names: Sequence[str]) -> list[Key]:
    """The combinations of some axes that exist, each axis in order of first appearance.

    The first axis changes slowest, so that what shares its value stands together.

    Example:
        >>> from transferseg.study.rows import table_rows
        >>> cells = [CellResult({"a": a, "b": b}, "missing") for a, b in ("xz", "yw", "xw")]
        >>> ordered_keys(table_rows(cells, score="dice", repeats=(), mode="max"), ["a", "b"])
        [('x', 'z'), ('x', 'w'), ('y', 'w')]
    """
    values = axis_values(row.axes for row in rows)
    keys = {key_of(row, names) for row in rows}
    return sorted(
        keys,
        key=lambda key: [values[name].index(value) for name, value in zip(names, key, strict=True)],
    )


def joined(key: Key) -> str:
    """A combination of values as one name.

    Example:
        >>> joined(("unet", "both", None))
        'unet, both, -'
    """
    return ", ".join(map(axis_text, key))


def score_text(value: float | None, *, percent: bool) -> str:
    """A score with one decimal in percent, or three; a dash where there is none.

    Example:
        >>> score_text(0.2924, percent=True), score_text(0.2924, percent=False)
        ('29.2', '0.292')
    """
    if value is None:
        return "-"
    return f"{value * 100:.1f}" if percent else f"{value:.3f}"


def cell_text(row: TableRow, *, percent: bool) -> str:
    """A row as a cell of the pivot: mean ± spread and n, or why there is no score."""
    if row.mean is None:
        return ", ".join(row.without)
    spread = "" if row.spread is None else f" ± {score_text(row.spread, percent=percent)}"
    without = "".join(f", {count} {reason}" for reason, count in row.without.items())
    return f"{score_text(row.mean, percent=percent)}{spread} (n={row.n}{without})"


def pivot(
    rows: Sequence[TableRow], left: Sequence[str], top: Sequence[str], *, score: str, percent: bool
) -> Grid:
    """One line a combination of the axes on the left, one column a combination of those on top.

    Args:
        rows: told apart by these axes (`check_axes`).
        left: axes of the row headers.
        top: axes of the column headers; without one, the column is named after the score.
        score: its name.
        percent: whether scores are printed times 100.
    """
    found = {(key_of(row, left), key_of(row, top)): cell_text(row, percent=percent) for row in rows}
    columns = ordered_keys(rows, top)
    lines = [
        [*map(axis_text, line), *(found.get((line, column), "-") for column in columns)]
        for line in ordered_keys(rows, left)
    ]
    return [*left, *(joined(column) or score for column in columns)], lines


def long_form(rows: Sequence[TableRow], names: Sequence[str], *, percent: bool) -> Grid:
    """One line a row: its axes, the scores, the coverage, time and samples.

    Args:
        rows: in the order of the lines.
        names: axes that have a column.
        percent: whether scores are printed times 100.
    """
    header = [*names, "mean", "best - worst", "n", "without a score", *_AMOUNTS]
    return header, [
        [
            *map(axis_text, key_of(row, names)),
            score_text(row.mean, percent=percent),
            score_text(row.spread, percent=percent),
            str(row.n),
            ", ".join(f"{count} {reason}" for reason, count in row.without.items()) or "-",
            _coverage_text(row.coverage),
            *(
                "-" if value is None else f"{value:.1f}"
                for value in (row.seconds, row.chain_seconds)
            ),
            *(
                "-" if value is None else f"{value:,.0f}"
                for value in (row.samples_seen, row.chain_samples)
            ),
        ]
        for row in rows
    ]


def _coverage_text(coverage: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {_fraction_text(value)}" for part, value in coverage.items()) or "-"


def _fraction_text(fraction: float) -> str:
    """In percent; what is not whole never reads 100.0%, what is not nothing never 0.0%."""
    text = f"{fraction:.1%}"
    if text == "100.0%" and fraction < 1.0:
        return ">99.9%"
    return "<0.1%" if text == "0.0%" and fraction > 0.0 else text


def notes(cells: Sequence[CellResult], score: str) -> list[tuple[str, str]]:
    """The cells without a score: which and why not, and the error on one line.

    Example:
        >>> cells = [CellResult({"seed": s}, "failed", error=f"{s} is no seed") for s in (7, 8)]
        >>> notes(cells, "dice")[0]
        ('failed (seed = 7)', '7 is no seed')
    """
    varying = [n for n, values in axis_values(c.axes for c in cells).items() if len(values) > 1]
    found = []
    for cell in cells:
        done = cell.status == "done"
        if done and cell.scores.get(score) is not None:
            continue
        where = axes_text({name: cell.axes[name] for name in varying if name in cell.axes})
        what = "undefined" if done else cell.status
        error = " ".join(cell.error.split())
        error = error if len(error) <= _LONGEST_ERROR else f"{error[:_LONGEST_ERROR].rstrip()} ..."
        found.append((f"{what} ({where})" if where else what, error))
    return found
