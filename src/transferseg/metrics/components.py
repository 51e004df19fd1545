"""Lesions of a mask: its connected components, and which of them a prediction has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from transferseg.errors import SpecError, unknown_name

#: What counts as found: see `match_lesions`.
Criterion: TypeAlias = Literal["overlap", "iou"]


@dataclass(frozen=True)
class LesionMatch:
    """The lesions of one mask and of its prediction, and which belong together.

    Attributes:
        sizes: pixels of each true lesion, (lesions,).
        found: which of them the prediction has found, (lesions,).
        predicted_sizes: pixels of each predicted lesion, (predicted,).
        true: which of those are no false positives, (predicted,).

    Example:
        >>> truth = np.array([[1, 1, 0, 0, 1]])
        >>> match_lesions(np.array([[0, 1, 0, 1, 0]]), truth).found.tolist()
        [True, False]
    """

    sizes: NDArray[np.int64]
    found: NDArray[np.bool_]
    predicted_sizes: NDArray[np.int64]
    true: NDArray[np.bool_]


def label_lesions(mask: NDArray[Any], *, connectivity: int | None = None) -> NDArray[np.int64]:
    """Connected components, numbered from 1; 0 is background.

    Args:
        mask: (H, W) or (D, H, W), foreground other than 0.
        connectivity: in how many directions at once two pixels may differ and still touch: 1 is
            4 neighbours in two and 6 in three dimensions, the number of dimensions 8 and 26. None
            is the latter.

    Raises:
        SpecError: a connectivity outside 1 .. dimensions.

    Example:
        >>> mask = np.array([[1, 0], [0, 1]])
        >>> label_lesions(mask).max().item(), label_lesions(mask, connectivity=1).max().item()
        (1, 2)
    """
    steps = mask.ndim if connectivity is None else connectivity
    if not 1 <= steps <= mask.ndim:
        raise SpecError(
            f"connectivity must be 1..{mask.ndim} for a mask of {mask.ndim} dimensions, got "
            f"{connectivity!r}."
        )
    structure = ndimage.generate_binary_structure(mask.ndim, steps)
    numbered: NDArray[np.int64] = ndimage.label(mask, structure)[0].astype(np.int64)
    return numbered


def check_criterion(criterion: str, above: float) -> None:
    """Raise `SpecError` for an unknown criterion, or a part of a lesion that is none.

    Example:
        >>> check_criterion("iou", 0.5)
    """
    if criterion not in get_args(Criterion):
        raise SpecError(unknown_name("criterion", str(criterion), get_args(Criterion)))
    if not 0 <= above < 1:
        raise SpecError(f"above must lie in 0..1, 1 excluded, got {above!r}.")


def match_lesions(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    *,
    criterion: Criterion = "overlap",
    above: float = 0.0,
    connectivity: int | None = None,
    min_size: int = 1,
) -> LesionMatch:
    """Which true lesions a prediction has found, and which predicted ones are true.

    "overlap": a true lesion is found if more than `above` of its pixels are predicted, by
    whichever predicted lesions; a predicted one is true if more than `above` of its pixels are
    true. At 0, one common pixel is enough. One predicted lesion may find several true ones.

    "iou": pairs of one true and one predicted lesion whose intersection over union is above
    `above`; each lesion is in one pair at most, and the pairs are chosen to be as many as
    possible, then as alike as possible (above 0.5 there is no choice).

    Args:
        prediction: (H, W) or (D, H, W), foreground other than 0.
        truth: of the same shape.
        criterion: "overlap" or "iou".
        above: part of a lesion, or IoU, that must be exceeded; 0..1, 1 excluded.
        connectivity: see `label_lesions`.
        min_size: lesions of fewer pixels are no lesions: they are removed from both first.

    Raises:
        SpecError: shapes that differ, an unknown criterion, a part outside 0..1.

    Example:
        >>> truth, prediction = np.array([[1, 1, 1, 0]]), np.array([[0, 0, 1, 1]])
        >>> match_lesions(prediction, truth).found, match_lesions(
        ...     prediction, truth, criterion="iou", above=0.5
        ... ).found
        (array([ True]), array([False]))
    """
    check_criterion(criterion, above)
    if prediction.shape != truth.shape:
        raise SpecError(f"masks must have one shape, got {prediction.shape} and {truth.shape}.")
    said, sizes_said = _lesions(prediction, connectivity, min_size)
    real, sizes = _lesions(truth, connectivity, min_size)
    common = np.bincount(
        (real * (len(sizes_said) + 1) + said).ravel(),
        minlength=(len(sizes) + 1) * (len(sizes_said) + 1),
    ).reshape(len(sizes) + 1, -1)[1:, 1:]
    if criterion == "overlap":
        found = common.sum(1) > above * sizes
        true = common.sum(0) > above * sizes_said
    else:
        found, true = _pairs(common, sizes, sizes_said, above)
    return LesionMatch(sizes=sizes, found=found, predicted_sizes=sizes_said, true=true)


def _lesions(
    mask: NDArray[Any], connectivity: int | None, min_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbered lesions that are large enough, and their sizes."""
    numbered = label_lesions(mask, connectivity=connectivity)
    sizes = np.bincount(numbered.ravel())[1:]
    keep = sizes >= min_size
    numbers = np.concatenate([[0], np.where(keep, keep.cumsum(), 0)])
    return numbers[numbered], sizes[keep]


def _pairs(
    common: NDArray[np.int64], sizes: NDArray[np.int64], said: NDArray[np.int64], above: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows and columns of the table of common pixels are in a pair."""
    found, true = np.zeros(len(sizes), bool), np.zeros(len(said), bool)
    iou = common / np.maximum(sizes[:, None] + said - common, 1)
    allowed = iou > above
    # a pair is worth more than all the likeness of the others: as many pairs as possible first
    worth = np.where(allowed, iou + min(common.shape, default=0), 0.0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    paired = allowed[rows, columns]
    found[rows[paired]], true[columns[paired]] = True, True
    return found, true
