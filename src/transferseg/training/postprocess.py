"""Predicted masks made plausible: largest components, no specks, no holes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from transferseg.errors import DataError, describe
from transferseg.metrics.components import label_lesions

T = TypeVar("T", bound=np.generic)
Plane = NDArray[np.bool_]


def largest_components(
    mask: NDArray[T],
    *,
    k: int | None = 1,
    per_class: Mapping[int, int] | None = None,
    connectivity: int | None = None,
) -> NDArray[T]:
    """Keep the largest connected components of each class; all others become background.

    Args:
        mask: (H, W) class indices, 0 the background, or (H, W, K) 0 and 1, as `predict` gives it.
        k: how many components each class keeps; None keeps all. Of components of one size the
            first from above stays.
        per_class: class index, or channel -> how many, in place of `k` for these classes: such as
            {1: 2} for a class of both lungs.
        connectivity: 1 for 4 neighbours, None or 2 for 8, as in `label_lesions`.

    Returns:
        A new mask of the same shape and dtype.

    Raises:
        DataError: another shape or dtype, a number of components below 1, a class index that is
            the background's.

    Example:
        >>> largest_components(np.array([[1, 1, 0, 1, 0, 2]])).tolist()
        [[1, 1, 0, 0, 0, 2]]
    """

    def keep(plane: Plane, most: int) -> Plane:
        numbered = label_lesions(plane, connectivity=connectivity)
        sizes = np.bincount(numbered.ravel())[1:]
        largest = np.argsort(-sizes, kind="stable")[:most] + 1
        return np.isin(numbered, largest)

    return _only(mask, keep, k, per_class, "a number of components to keep")


def remove_small(
    mask: NDArray[T],
    *,
    min_size: int | None,
    per_class: Mapping[int, int] | None = None,
    connectivity: int | None = None,
) -> NDArray[T]:
    """Remove connected components of fewer pixels; they become background.

    Args:
        mask: see `largest_components`.
        min_size: pixels that a component of any class needs to stay; None: any.
        per_class: class index, or channel -> that number, in place of `min_size` for these classes.
        connectivity: see `largest_components`.

    Returns:
        A new mask of the same shape and dtype.

    Raises:
        DataError: see `largest_components`.

    Example:
        >>> remove_small(np.array([[1, 1, 0, 1, 0, 2]]), min_size=2, per_class={2: 1}).tolist()
        [[1, 1, 0, 0, 0, 2]]
    """

    def keep(plane: Plane, least: int) -> Plane:
        numbered = label_lesions(plane, connectivity=connectivity)
        enough = np.bincount(numbered.ravel()) >= least
        enough[0] = False
        kept: Plane = enough[numbered]
        return kept

    return _only(mask, keep, min_size, per_class, "a size in pixels")


def fill_holes(mask: NDArray[T], *, max_size: int | None = None) -> NDArray[T]:
    """Fill the holes of each class: background that the class surrounds on all sides.

    A hole is not joined to the image's border by a path over edges of pixels. What another class
    fills in a hole stays that class; background that several classes surround goes to the last.

    Args:
        mask: see `largest_components`.
        max_size: the largest hole, in pixels, that is filled; None fills all.

    Returns:
        A new mask of the same shape and dtype.

    Raises:
        DataError: another shape or dtype, a size below 1.

    Example:
        >>> ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
        >>> int(fill_holes(ring).sum()), int(fill_holes(2 * ring).sum())
        (9, 18)
    """
    _check_mask(mask)
    if max_size is not None:
        _check_amount(max_size, "a size in pixels")
    filled = mask.copy()
    for index, plane in _planes(mask):
        holes: Plane = ndimage.binary_fill_holes(plane) & ~plane
        if max_size is not None:
            numbered = label_lesions(holes, connectivity=1)
            small = np.bincount(numbered.ravel()) <= max_size
            small[0] = False
            holes = small[numbered]
        if mask.ndim == 3:
            filled[..., index][holes] = 1
        else:
            filled[holes & (mask == 0)] = index
    return filled


def _check_mask(mask: NDArray[Any]) -> None:
    if mask.ndim not in (2, 3) or mask.dtype.kind not in "bui":
        raise DataError(
            "a mask must be (H, W) class indices or (H, W, K) 0 and 1, in whole numbers or bool, "
            f"got {describe(mask)}."
        )


def _planes(mask: NDArray[Any]) -> Iterator[tuple[int, Plane]]:
    """Where each class is, by its index or channel."""
    if mask.ndim == 2:
        yield from ((int(index), mask == index) for index in np.unique(mask) if index != 0)
    else:
        yield from ((index, mask[..., index] != 0) for index in range(mask.shape[2]))


def _only(
    mask: NDArray[T],
    keep: Callable[[Plane, int], Plane],
    amount: int | None,
    per_class: Mapping[int, int] | None,
    what: str,
) -> NDArray[T]:
    """The mask without those pixels of each class that are not kept."""
    _check_mask(mask)
    amounts = dict(per_class or {})
    for given in (*amounts.values(), *([] if amount is None else [amount])):
        _check_amount(given, what)
    first, behind = (1, np.iinfo(np.int64).max) if mask.ndim == 2 else (0, mask.shape[-1])
    wrong = [index for index in amounts if not first <= index < behind]
    if wrong:
        raise DataError(f"per_class names {wrong}, which no class of {describe(mask)} has.")
    kept = mask.copy()
    for index, plane in _planes(mask):
        most = amounts.get(index, amount)
        if most is not None:
            lost = plane & ~keep(plane, most)
            (kept if mask.ndim == 2 else kept[..., index])[lost] = 0
    return kept


def _check_amount(amount: object, what: str) -> None:
    if not isinstance(amount, int) or isinstance(amount, bool) or amount < 1:
        raise DataError(f"{what} is a whole number from 1, got {amount!r}.")
