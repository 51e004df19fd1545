"""What splits, folds and covering sets are told: groups and classes, one entry an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from transferseg.errors import DataError


def group_indices(
    groups: Sequence[str] | None, images: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the groups from 0 in the order of their names.

    Args:
        groups: one an image; None makes each image its own group.
        images: how many there are.

    Returns:
        (images,) the group of each image; (G,) how many images each group has.

    Raises:
        DataError: another number of groups than of images.

    Example:
        >>> of_image, sizes = group_indices(["b", "a", "b"], 3)
        >>> of_image.tolist(), sizes.tolist()
        ([1, 0, 1], [1, 2])
    """
    names = np.arange(images) if groups is None else np.asarray(list(groups), dtype=str)
    if len(names) != images:
        raise DataError(f"{len(names)} groups do not fit {images} images; give one an image.")
    of_image = np.unique(names, return_inverse=True)[1].astype(np.int64)
    return of_image, np.bincount(of_image).astype(np.int64)


def checked_presence(
    given: npt.ArrayLike, name: str, *, images: int | None = None, classes: int | None = None
) -> NDArray[np.bool_]:
    """Which image has which class, once its shape and values are known to be right.

    Args:
        given: (N, K), bool or 0/1.
        name: of the argument, for messages.
        images: what N must be; None takes any.
        classes: what K must be; None takes any.

    Returns:
        (N, K) bool.

    Raises:
        DataError: another shape, another value.

    Example:
        >>> checked_presence([[1, 0]], "stratify", images=1).tolist()
        [[True, False]]
    """
    found = np.asarray(given)
    fits = found.ndim == 2 and images in (None, len(found)) and classes in (None, found.shape[1])
    if not fits or not np.isin(found, (0, 1)).all():
        rows, columns = "N" if images is None else images, "K" if classes is None else classes
        raise DataError(
            f"{name} must be ({rows}, {columns}) of bool or 0/1, one row an image, one column a "
            f"class, got {found.dtype} {found.shape}."
        )
    return found.astype(bool)
