"""What every picture needs: colours, an Axes to draw in, a file to end in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from transferseg.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Fourteen colours that stay apart with red- and green-blind eyes: the seven of Okabe and Ito
#: (2008), then seven that are far from these and from each other as such eyes see them.
PALETTE: tuple[str, ...] = (
    "#56B4E9", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442",
    "#0000FF", "#F0FFB4", "#781E0F", "#6969FF", "#5A2D4B", "#B4FFF0", "#3C1EA5",
)  # fmt: skip


def axes_or_new(ax: Axes | None) -> Axes:
    """The Axes that was given, or the one of a new figure."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    # a Figure made without pyplot belongs to nobody else, is freed with its Axes, needs no display
    new: Axes = Figure(layout="constrained").subplots()
    return new


def save(figure_or_axes: Figure | Axes, path: str | os.PathLike[str], *, dpi: int = 150) -> Path:
    """Write a picture as PNG, whole or not at all; missing folders are made.

    Args:
        figure_or_axes: a figure, or any Axes of it (the whole figure is written).
        path: ends in ".png"; a file that is there is replaced.
        dpi: dots an inch.

    Returns:
        The path.

    Raises:
        DataError: another ending than ".png".

    Example:
        >>> import tempfile
        >>> from matplotlib.figure import Figure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Figure(), f"{folder}/empty.png").name
        'empty.png'
    """
    from matplotlib.figure import SubFigure

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise DataError(f"a picture is written as PNG: the path must end in '.png', got {path}.")
    figure = figure_or_axes if hasattr(figure_or_axes, "savefig") else figure_or_axes.figure
    while isinstance(figure, SubFigure):
        figure = figure.figure
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(unfinished, format="png", dpi=dpi, bbox_inches="tight")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
