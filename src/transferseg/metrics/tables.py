"""Scores as text, Markdown and JSON values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence


def mean(values: Iterable[float]) -> float:
    """The mean of the values that are defined, NaN without one; the same in every order.

    Example:
        >>> mean([1.0, float("nan"), 2.0])
        1.5
    """
    # fsum is exact, so that neither the order of the images nor a split of the data shows
    defined = [float(value) for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def json_number(value: float) -> float | None:
    """The number, None for NaN and infinity, which JSON does not have.

    Example:
        >>> json_number(0.5), json_number(float("nan"))
        (0.5, None)
    """
    return value if math.isfinite(value) else None


def json_numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers by name, each as `json_number` gives it."""
    return {name: json_number(value) for name, value in values.items()}


def cell(value: float | int | str) -> str:
    """A value as it stands in a table: four digits for a float, a dash where it is undefined.

    Example:
        >>> cell(0.5), cell(3), cell(float("nan"))
        ('0.5000', '3', '-')
    """
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4f}"
    return str(value)


def text_table(header: Sequence[str], lines: Iterable[Sequence[float | int | str]]) -> str:
    """Aligned columns, the first to the left and the others to the right.

    Example:
        >>> print(text_table(["class", "IoU"], [["polyp", 0.5], ["mean", 0.5]]))
        class     IoU
        polyp  0.5000
        mean   0.5000
    """
    cells = [list(header), *([cell(value) for value in line] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if place else text.ljust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[float | int | str]]) -> str:
    """The table in Markdown, numbers to the right.

    Example:
        >>> print(markdown_table(["class", "IoU"], [["polyp", 0.5]]))
        | class | IoU |
        | :-- | --: |
        | polyp | 0.5000 |
    """
    cells = [[cell(value).replace("|", "\\|") for value in line] for line in lines]
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(header), rule, *cells])
