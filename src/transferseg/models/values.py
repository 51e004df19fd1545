"""What a number may be that somebody gives as an option."""

from __future__ import annotations


def is_whole(value: object, least: int = 1) -> bool:
    """Whether it is a whole number from `least` up.

    Example:
        >>> is_whole(1), is_whole(0), is_whole(1.5), is_whole(True)
        (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_share(value: object) -> bool:
    """Whether it is a number from 0 to below 1, as a dropout is.

    Example:
        >>> is_share(0), is_share(0.5), is_share(1.0), is_share("0.5")
        (True, True, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def are_whole(values: object) -> bool:
    """Whether it is a list of whole numbers from 1 up, not empty.

    Example:
        >>> are_whole([1, 2]), are_whole([]), are_whole(6), are_whole([1.5])
        (True, False, False, False)
    """
    return isinstance(values, (list, tuple)) and bool(values) and all(map(is_whole, values))
