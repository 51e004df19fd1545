"""Rows of a data set's tables that break the rules: an error each, or left out and counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, get_args

from transferseg.errors import DataError, unknown_name

#: What a reader does with a row that breaks the rules: an error, or left out and counted.
Invalid: TypeAlias = Literal["raise", "skip"]


class HostileRows:
    """What a reader reads its rows within, so that one keyword decides over those that are wrong.

    Args:
        invalid: "raise" or "skip".

    Attributes:
        messages: what was wrong with each row that was left out.

    Example:
        >>> rows = HostileRows("skip")
        >>> for number, text in enumerate(("7", "x", "9")):
        ...     with rows.row(f"a.csv, line {number}"):
        ...         if not text.isdigit():
        ...             raise DataError(f"{text!r} is no number.")
        >>> rows.messages
        ["a.csv, line 1: 'x' is no number."]
    """

    def __init__(self, invalid: Invalid) -> None:
        if invalid not in get_args(Invalid):
            raise DataError(unknown_name("invalid", invalid, get_args(Invalid)))
        self.invalid: Invalid = invalid
        self.messages: list[str] = []

    @contextmanager
    def row(self, place: str) -> Iterator[None]:
        """Read one row; what is wrong with it is a DataError raised inside.

        Args:
            place: file and row, put before a message that does not begin with it.

        Raises:
            DataError: as inside, where `invalid` is "raise".
        """
        try:
            yield
        except DataError as error:
            message = str(error)
            if not message.startswith(place):
                message = f"{place}: {message}"
            if self.invalid == "raise":
                raise DataError(f"{message} (invalid='skip' leaves such rows out.)") from error
            self.messages.append(message)
