"""An image with its masks drawn over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transferseg.errors import DataError, some
from transferseg.plots.figures import PALETTE, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IGNORED = 255

#: Where each class is, by its position among the classes that have a colour.
Planes: TypeAlias = dict[int, NDArray[np.bool_]]


def overlay(
    image: ArrayLike,
    mask: ArrayLike,
    *,
    truth: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    colours: Sequence[str] = PALETTE,
    alpha: float = 0.45,
    ax: Axes | None = None,
) -> Axes:
    """An image with its predicted mask as translucent areas and the truth as outlines.

    Each class has one colour, whichever classes are present; the legend lists those that are, with
    an area if predicted and an outline if true. Pixels of value 255 (ignored) stay bare.

    Args:
        image: (H, W) or (H, W, C), any real dtype. uint8 is shown on 0..255 and floats within 0..1
            on 0..1; anything else from its smallest to its largest value. Three channels are RGB;
            any other number is shown as its mean in grey.
        mask: the prediction, bool or whole numbers. (H, W): class indices, 0 the background, which
            is not drawn. (H, W, K): 0 or 1 for each of K classes that may overlap.
        truth: in the same form as `mask`.
        classes: names in the order of the model's outputs: for indices all of them with the
            background first, or the one foreground class of a binary mask; for (H, W, K) all K.
        colours: one a drawn class, in the order of `classes` without the background.
        alpha: opacity of the areas, 0 to 1.
        ax: where to draw; a new figure by default.

    Returns:
        The Axes, in pixel coordinates.

    Raises:
        DataError: a shape, dtype, class index or number of names or colours that does not fit.

    Example:
        >>> image, mask = np.zeros((8, 8), np.uint8), np.eye(8, dtype=np.uint8)
        >>> ax = overlay(image, mask, classes=["lesion"])
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['lesion']
    """
    picture = _displayable(image)
    height, width = picture.shape[:2]
    pair = {"mask": np.asarray(mask)} | ({} if truth is None else {"truth": np.asarray(truth)})
    for what, drawn in pair.items():
        _check_mask(drawn, what, like=(height, width, *np.shape(mask)[2:]))
    names = _drawn_classes(pair, classes)
    if len(names) > len(colours):
        raise DataError(f"{len(names)} classes need as many colours, got {len(colours)}.")
    predicted = _planes(pair["mask"])
    true = {} if truth is None else _planes(pair["truth"])
    ax = axes_or_new(ax)
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
    for position, plane in predicted.items():
        ax.imshow(_tint(plane, colours[position], alpha), interpolation="nearest")
    for position, plane in true.items():
        _outline(ax, plane, colours[position])
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    ax.set_axis_off()
    _class_legend(ax, predicted, true, names=names, colours=colours, alpha=alpha)
    return ax


def _displayable(image: ArrayLike) -> NDArray[np.float32]:
    raw = np.asarray(image)
    if raw.ndim not in (2, 3) or raw.size == 0 or raw.dtype.kind not in "buif":
        raise DataError(
            "an image must have the shape (H, W) or (H, W, C) and a real dtype, "
            f"got shape {raw.shape}, dtype {raw.dtype}."
        )
    values = raw.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError("the image holds values that are not finite; replace them before drawing.")
    low, high = float(values.min()), float(values.max())
    if raw.dtype == np.uint8:
        low, high = 0.0, 255.0
    elif raw.dtype.kind in "bf" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    values = (values - low) / ((high - low) or 1.0)
    return values if values.ndim == 2 or values.shape[2] == 3 else values.mean(axis=2)


def _check_mask(mask: NDArray[Any], what: str, *, like: tuple[int, ...]) -> None:
    if mask.dtype.kind not in "bui":
        raise DataError(
            f"{what} must be bool or whole numbers, got {mask.dtype}; threshold probabilities."
        )
    if mask.ndim not in (2, 3) or mask.shape != like:
        raise DataError(
            f"{what} must be (H, W) or (H, W, K), as large as the image and both of one form: "
            f"expected {like}, got {mask.shape}."
        )


def _drawn_classes(
    masks: Mapping[str, NDArray[Any]], classes: Sequence[str] | None
) -> tuple[str, ...]:
    """Names of the classes that have a colour: all but the background of an index mask."""
    found = {what: set(np.unique(mask).tolist()) - {IGNORED} for what, mask in masks.items()}
    largest = max([1, *(value for values in found.values() for value in values)])
    channels = masks["mask"].shape[2:]
    first = 0 if channels else 1
    if classes is None:
        names = tuple(f"class_{k}" for k in range(first, *(channels or [largest + 1])))
    else:
        names = tuple(classes[1:] if first and len(classes) > 1 else classes)
    if channels and channels[0] != len(names):
        raise DataError(f"the masks have {channels[0]} classes, got {len(names)} names.")
    allowed = {0, 1} if channels else {*range(len(names) + 1)}
    for what, values in found.items():
        if values - allowed:
            wrong = some(map(str, sorted(values - allowed)))
            raise DataError(f"{what} must hold 0 to {max(allowed)} (255: ignored), got {wrong}.")
    return names


def _planes(mask: NDArray[Any]) -> Planes:
    """Where each class is, by its position among the drawn classes; absent ones are left out."""
    if mask.ndim == 2:
        present = (int(value) for value in np.unique(mask) if value not in (0, IGNORED))
        return {value - 1: mask == value for value in present}
    planes = {position: mask[..., position] == 1 for position in range(mask.shape[2])}
    return {position: plane for position, plane in planes.items() if plane.any()}


def _tint(plane: NDArray[np.bool_], colour: str, alpha: float) -> NDArray[np.float32]:
    from matplotlib.colors import to_rgba

    picture = np.zeros((*plane.shape, 4), np.float32)
    picture[plane] = to_rgba(colour, alpha)
    return picture


def _outline(ax: Axes, plane: NDArray[np.bool_], colour: str) -> None:
    # one empty pixel around, so that an area at the border of the image gets a closed line
    height, width = plane.shape
    padded = np.pad(plane.astype(np.float32), 1)
    across, down = np.arange(-1, width + 1), np.arange(-1, height + 1)
    ax.contour(across, down, padded, levels=[0.5], colors=[colour], linewidths=1.5)


def _class_legend(
    ax: Axes,
    predicted: Planes,
    true: Planes,
    *,
    names: Sequence[str],
    colours: Sequence[str],
    alpha: float,
) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor=to_rgba(colours[position], alpha) if position in predicted else "none",
            edgecolor=colours[position] if position in true else "none",
            label=names[position],
        )
        for position in sorted({*predicted, *true})
    ]
    if handles:
        title = "area: predicted\noutline: true" if true else None
        ax.legend(
            handles=handles, title=title, alignment="left", borderaxespad=0.0,
            loc="upper left", bbox_to_anchor=(1.01, 1.0),
        )  # fmt: skip
