"""Lesions of a mask: its connected components, and which of them a prediction has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

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


def check_matching(
    criterion: str, above: float, *, connectivity: int | None = None, min_size: int = 1
) -> None:
    """Raise `SpecError` for options of `match_lesions` that no mask can have.

    Example:
        >>> check_matching("iou", 0.5)
    """
    if criterion not in get_args(Criterion):
        raise SpecError(unknown_name("criterion", str(criterion), get_args(Criterion)))
    if not 0 <= above < 1:
        raise SpecError(f"above must lie in 0..1, 1 excluded, got {above!r}.")
    if connectivity not in (None, 1, 2, 3):
        raise SpecError(f"connectivity must be None, 1, 2 or 3, got {connectivity!r}.")
    if min_size < 1:
        raise SpecError(f"min_size must be 1 pixel or more, got {min_size!r}.")


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
        SpecError: shapes that differ, an unknown criterion, a part outside 0..1, a connectivity
            that the masks do not have, a size below 1.

    Example:
        >>> truth, prediction = np.array([[1, 1, 1, 0]]), np.array([[0, 0, 1, 1]])
        >>> match_lesions(prediction, truth).found, match_lesions(
        ...     prediction, truth, criterion="iou", above=0.5
        ... ).found
        (array([ True]), array([False]))
    """
    check_matching(criterion, above, connectivity=connectivity, min_size=min_size)
    if prediction.shape != truth.shape:
        raise SpecError(f"masks must have one shape, got {prediction.shape} and {truth.shape}.")
    said, sizes_said = _lesions(prediction, connectivity, min_size)
    real, sizes = _lesions(truth, connectivity, min_size)
    rows, columns, common = _overlaps(real, said)
    if criterion == "overlap":
        # the quotient, not the product: 0.29 * 100 is less than 29
        found = np.bincount(rows, common, minlength=len(sizes)) / sizes > above
        true = np.bincount(columns, common, minlength=len(sizes_said)) / sizes_said > above
    else:
        iou = common / (sizes[rows] + sizes_said[columns] - common)
        some = iou > above
        pairs = _paired(rows[some], columns[some], iou[some])
        found = np.isin(np.arange(len(sizes)), rows[some][pairs])
        true = np.isin(np.arange(len(sizes_said)), columns[some][pairs])
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


def _overlaps(real: NDArray[np.int64], said: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """The pairs of true and predicted lesions that meet, from 0 on, and their common pixels.

    A list and no table: an untrained model predicts so many that a table would not fit.
    """
    both = (real > 0) & (said > 0)
    true, predicted = real[both] - 1, said[both] - 1
    width = said.max(initial=0) + 1
    codes, common = np.unique(true * width + predicted, return_counts=True)
    return codes // width, codes % width, common


def _paired(
    rows: NDArray[np.int64], columns: NDArray[np.int64], iou: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Which of the allowed pairs are taken: as many as possible, then as alike as possible."""
    if not len(rows):
        return np.arange(0)
    _, row = np.unique(rows, return_inverse=True)
    _, column = np.unique(columns, return_inverse=True)
    lesions, others = row.max() + 1, column.max() + 1
    # every lesion may stay alone, in a column of its own, for more than all likeness can save
    places = np.arange(lesions)
    costs = np.concatenate([2 - iou, np.full(lesions, lesions + 3.0)])
    at = (np.concatenate([row, places]), np.concatenate([column, others + places]))
    where = tuple(place.astype(np.int32) for place in at)  # of older scipy the only kind
    table = coo_array((costs, where), shape=(lesions, others + lesions)).tocsr()
    first, second = min_weight_full_bipartite_matching(table)
    partner = np.empty(lesions, np.int64)
    partner[first] = second
    return np.flatnonzero(partner[row] == column)
