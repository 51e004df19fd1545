"""CSV tables of data sets, checked as they are read."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferseg.errors import DataError, did_you_mean, some


@dataclass(frozen=True)
class Row:
    """One line of a table: the wanted columns, and where it stands, for messages.

    Attributes:
        place: file and line, as in "structure.csv, line 7".
        values: text by column; a line that was cut short lacks some.
    """

    place: str
    values: dict[str, str]

    def __getitem__(self, column: str) -> str:
        try:
            return self.values[column]
        except KeyError:
            raise _cut_short(self.place) from None

    def whole(self, column: str, *, least: int = 0) -> int:
        """A column's whole number.

        Raises:
            DataError: it is not a whole number from `least`; names file and line.
        """
        text = self[column]
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise DataError(
                f"{self.place}: {column} is {text!r}; expected a whole number from {least}."
            )
        return number


def read_rows(path: Path, columns: Sequence[str], *, cut: bool = False) -> tuple[Row, ...]:
    """Read the wanted columns of a CSV file with a header (UTF-8).

    Args:
        path: the file.
        columns: names that must be in its header; others are left out.
        cut: whether a line that is cut short is given too. A column that it lacks is then the error
            of whoever asks for it, so that a reader can leave out the line.

    Returns:
        One `Row` a line.

    Raises:
        DataError: the file or a column is missing, a line is cut short, or there is no line.
    """
    return tuple(iter_rows(path, columns, cut=cut))


def iter_rows(path: Path, columns: Sequence[str], *, cut: bool = False) -> Iterator[Row]:
    """As `read_rows`, a row at a time: for tables of several hundred thousand lines."""
    with _opened(path) as (table, header):
        _check_header(path, header, columns)
        places = {name: position for position, name in enumerate(header) if name in columns}
        longest = max(places.values(), default=-1)
        lines = 0
        for line in filter(None, table):
            lines += 1
            place = f"{path}, line {table.line_num}"
            if len(line) > longest:
                yield Row(place, {name: line[at].strip() for name, at in places.items()})
            elif cut:
                there = {name: at for name, at in places.items() if at < len(line)}
                yield Row(place, {name: line[at].strip() for name, at in there.items()})
            else:
                raise _cut_short(place)
    if not lines:
        raise DataError(f"{path}: the table has no lines.")


def read_header(path: Path) -> tuple[str, ...]:
    """The column names of a CSV file.

    Raises:
        DataError: the file is missing, or no table.
    """
    with _opened(path) as (_, header):
        return tuple(header)


def read_groups(path: Path, name_column: str, group_column: str) -> dict[str, str]:
    """The group (patient, video) of each name in a CSV file; "" where the file has none.

    Raises:
        DataError: as `read_rows`; a name with two groups, naming file and line.
    """
    groups: dict[str, str] = {}
    for row in read_rows(path, (name_column, group_column)):
        name, group = row[name_column], row[group_column]
        if groups.setdefault(name, group) != group:
            raise DataError(
                f"{row.place}: {name!r} has {group_column} {group!r}, before {groups[name]!r}; "
                "expected one group an image."
            )
    return groups


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, list[str]]]:
    """The lines of a CSV file (csv.reader's own, which counts them), and its header."""
    if not path.is_file():
        raise DataError(
            f"{path}: the file does not exist; expected the data set as it is published."
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file)
            yield table, next(table, [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV table in UTF-8 ({error}).") from error


def _cut_short(place: str) -> DataError:
    return DataError(f"{place}: the line is cut short; fetch the file again.")


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in header]
    if missing:
        raise DataError(
            f"{path}: column(s) {', '.join(map(repr, missing))} missing; found "
            f"{some(map(repr, header), limit=12)}.{did_you_mean(missing[0], header)}"
        )


def plain_name(row: Row, column: str) -> str:
    """A column's file name, which must not lead out of its folder.

    Raises:
        DataError: an empty name, or one with a folder in it; names file and line.
    """
    name = row[column]
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise DataError(f"{row.place}: {column} is {name!r}; expected the plain name of a file.")
    return name
