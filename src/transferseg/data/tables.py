"""CSV tables of data sets, checked as they are read."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transferseg.errors import DataError, did_you_mean, some


@dataclass(frozen=True)
class Row:
    """One line of a table: the wanted columns, and where it stands, for messages.

    Attributes:
        place: file and line, as in "structure.csv, line 7".
        values: text by column.
    """

    place: str
    values: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def whole(self, column: str, *, least: int = 0) -> int:
        """A column's whole number.

        Raises:
            DataError: it is not a whole number from `least`; names file and line.
        """
        text = self.values[column]
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise DataError(
                f"{self.place}: {column} is {text!r}; expected a whole number from {least}."
            )
        return number


def read_rows(path: Path, columns: Sequence[str]) -> tuple[Row, ...]:
    """Read the wanted columns of a CSV file with a header (UTF-8).

    Args:
        path: the file.
        columns: names that must be in its header; others are left out.

    Returns:
        One `Row` a line.

    Raises:
        DataError: the file or a column is missing, a line is cut short, or there is no line.
    """
    return tuple(iter_rows(path, columns))


def iter_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """As `read_rows`, a row at a time: for tables of several hundred thousand lines."""
    if not path.is_file():
        raise DataError(
            f"{path}: the file does not exist; expected the data set as it is published."
        )
    lines = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file)
            header = next(table, [])
            _check_header(path, header, columns)
            places = {name: position for position, name in enumerate(header) if name in columns}
            longest = max(places.values(), default=-1)
            for line in filter(None, table):
                lines += 1
                place = f"{path}, line {table.line_num}"
                if len(line) <= longest:
                    raise DataError(f"{place}: the line is cut short; fetch the file again.")
                yield Row(place, {name: line[at].strip() for name, at in places.items()})
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV table in UTF-8 ({error}).") from error
    if not lines:
        raise DataError(f"{path}: the table has no lines.")


def _check_header(path: Path, header: Iterable[str], columns: Sequence[str]) -> None:
    header = list(header)
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
