"""Counting pixels: TP, FP, FN and TN of each image and class, from logits or from masks.

On the CPU this is NumPy over pieces of an image that fit the cache: torch's argmax over channels
and its comparisons with a bool result are not vectorised there, and cost many times as much. On any
other device it is torch over the whole batch, without a value read back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_VALUES = 2**19  # of a piece, of all its channels: the result of a comparison fits the cache
_LABELS = 2**18  # of a piece: calls are long, since threads wait for one another between them
_BYTE = 255
_WIDE = (torch.uint16, torch.uint32, torch.uint64)  # torch compares none of them
_TABLE = 1024  # up to so many classes, an image's (classes x classes) table is small beside it


def exclusive_counts(
    given: Tensor, target: Tensor, *, classes: int, ignore_index: int | None
) -> Tensor:
    """TP, FP, FN, TN of exclusive classes; int64 (B, classes, 4) on the device of `given`.

    Args:
        given: logits (B, K, ...), of which the largest wins (the first on ties; NaN is the largest,
            as in torch), or labels (B, ...), integers; a label outside the classes is in no FP.
        target: labels (B, ...), integers; one outside the classes is in no FN.
        classes: their number K.
        ignore_index: pixels with this target count nowhere.

    Example:
        >>> labels = torch.tensor([[0, 1, 1, 7]])
        >>> exclusive_counts(labels, torch.tensor([[0, 1, 0, 9]]), classes=2, ignore_index=9)
        tensor([[[1, 0, 1, 1],
                 [1, 1, 0, 1]]])
    """
    if _in_memory(given, target) and classes <= _TABLE:
        return _by_image(lambda: _Exclusive(classes, ignore_index), given, target)
    labels = given.argmax(dim=1) if given.is_floating_point() else given.long()
    # Cast before comparing: in uint8, an ignore_index of -100 is not a value.
    values = target.long()
    index = torch.arange(classes, device=given.device).reshape(-1, *[1] * (values.ndim - 1))
    counted = _counted(values, ignore_index).unsqueeze(1)
    true, predicted = values.unsqueeze(1) == index, labels.unsqueeze(1) == index
    return _sums(predicted & counted, true & counted, counted)


def overlapping_counts(
    given: Tensor, target: Tensor, *, above: Sequence[float], ignore_index: int | None
) -> Tensor:
    """TP, FP, FN, TN of independent classes; int64 (B, K, len(above), 4) on the device of `given`.

    Args:
        given: (B, K, ...), logits or masks of any real dtype; half precision is read as float32.
        target: (B, K, ...), any real dtype, foreground above 0.5.
        above: limits; a pixel is predicted where `given` lies above one.
        ignore_index: pixels with this target count nowhere.

    Example:
        >>> logits = torch.tensor([[[0.0, 1.0, 2.0, 3.0]]])
        >>> overlapping_counts(logits, logits > 1.5, above=[0.5, 2.5], ignore_index=None)
        tensor([[[[2, 1, 0, 1],
                  [1, 0, 1, 2]]]])
    """
    if _in_memory(given, target):
        work = partial(_overlapping, above=above, ignore_index=ignore_index)
        return _by_image(lambda: work, given, target)
    given = given.long() if given.dtype in _WIDE else _exact(given)
    values = target if target.is_floating_point() else target.long()
    counted = _counted(values, ignore_index)
    true = (values > 0.5) & counted
    rows = [_sums((given > limit) & counted, true, counted) for limit in above]
    return torch.stack(rows, dim=2)


def _in_memory(*tensors: Tensor) -> bool:
    """Whether NumPy can read them, and there is something to read."""
    return all(tensor.device.type == "cpu" and tensor.numel() for tensor in tensors)


def _counted(values: Tensor, ignore_index: int | None) -> Tensor:
    if ignore_index is None:
        return torch.ones_like(values, dtype=torch.bool)
    return values != ignore_index


def _exact(values: Tensor) -> Tensor:
    """As numbers that compare as written: in half precision a limit itself would be rounded."""
    if values.is_floating_point():
        return values.to(torch.promote_types(values.dtype, torch.float32))
    return values.to(torch.uint8) if values.dtype is torch.bool else values


def _sums(predicted: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """(B, K, 4) from (B, K, ...) bool; the first two lie within `counted`."""
    over = tuple(range(2, predicted.ndim))
    tp = (true & predicted).sum(over)
    fp, fn = predicted.sum(over) - tp, true.sum(over) - tp
    return torch.stack([tp, fp, fn, counted.sum(over) - tp - fp - fn], dim=-1)


def _by_image(work: Callable[[], Callable[..., NDArray[np.int64]]], *batch: Tensor) -> Tensor:
    """One row an image, on as many threads as torch may use; `work` makes what a thread calls."""
    images = list(zip(*(tensor.detach() for tensor in batch), strict=True))
    threads = min(torch.get_num_threads(), len(images))

    def share(first: int) -> list[NDArray[np.int64]]:
        count = work()
        return [count(*image) for image in images[first::threads]]

    if threads == 1:
        return torch.from_numpy(np.stack(share(0)))
    with ThreadPoolExecutor(threads) as pool:  # NumPy and torch work without the lock
        shares = list(pool.map(share, range(threads)))
    rows = [shares[index % threads][index // threads] for index in range(len(images))]
    return torch.from_numpy(np.stack(rows))


def _pieces(pixels: int, *planes: Tensor) -> Iterator[tuple[NDArray[Any], ...]]:
    """Tensors (..., pixels) as NumPy arrays (..., some pixels), piece by piece."""
    whole = [_readable(plane) for plane in planes]
    for start in range(0, planes[0].shape[-1], pixels):
        part = (..., slice(start, start + pixels))
        yield tuple(
            # pixels that lie apart (channels last) would be read many times over
            _exact(plane[part]).contiguous().numpy() if array is None else array[part]
            for plane, array in zip(planes, whole, strict=True)
        )


def _readable(plane: Tensor) -> NDArray[Any] | None:
    """The tensor's own memory, if NumPy can read it as it is; rows may lie apart."""
    same = plane.dtype is not torch.bool and _exact(plane[..., :0]).dtype is plane.dtype
    return plane.numpy() if same and plane.stride(-1) == 1 else None


class _Exclusive:
    """Counts image by image, in memory of its own: new one would cost more than the arithmetic."""

    def __init__(self, classes: int, ignore_index: int | None) -> None:
        self.classes, self.ignore_index = classes, ignore_index
        self.rows, self.columns = np.empty((2, _LABELS), np.int64)
        self.most = max(_VALUES // classes // 1024, 1) * 1024
        self.largest = np.empty((classes, self.most), np.uint8)

    def __call__(self, given: Tensor, target: Tensor) -> NDArray[np.int64]:
        """(K, 4) of one image, from its table of true by predicted classes."""
        logits, classes = given.is_floating_point(), self.classes
        given, target = given.flatten(1) if logits else given.flatten(), target.flatten()
        table = np.zeros((classes + 2) * (classes + 1), np.int64)
        # Two runs over the pixels: long calls, since threads wait for each other between calls.
        winners = torch.from_numpy(self._winners(given)) if logits else given
        for found, labels in _pieces(_LABELS, winners, target):
            cells = _rows_of(labels, classes, self.ignore_index, self.rows[: labels.size])
            columns = found if logits else _codes(found, classes, self.columns[: found.size])
            np.add(cells, columns, out=cells, dtype=np.int64)
            # torch's, since NumPy's lets no other thread work meanwhile
            table += torch.bincount(torch.from_numpy(cells), minlength=table.size).numpy()
        # the last row are ignored pixels, the last but one labels outside; so is the last column
        counted = table.reshape(classes + 2, classes + 1)[:-1]
        tp = counted.diagonal()[:classes]
        fp, fn = counted.sum(0)[:classes] - tp, counted.sum(1)[:classes] - tp
        return np.stack([tp, fp, fn, counted.sum() - tp - fp - fn], axis=-1)

    def _winners(self, logits: Tensor) -> NDArray[Any]:
        """Place of the largest of each column of (K, pixels)."""
        places = np.empty(logits.shape[1], np.uint8 if self.classes <= _BYTE else np.int64)
        start = 0
        for (piece,) in _pieces(self.most, logits):
            places[start : start + piece.shape[1]] = _largest(piece, self.largest)
            start += piece.shape[1]
        return places


def _largest(logits: NDArray[Any], room: NDArray[np.uint8]) -> NDArray[Any]:
    """Place of the largest of each column of (K, n); the first on ties, or the first NaN."""
    classes, pixels = logits.shape
    if classes > _BYTE:
        return _by_torch(logits)
    found = room[:, :pixels]
    np.equal(logits, np.maximum.reduce(logits, axis=0), out=found.view(bool))
    # where a row holds the largest value stands a number that falls with the row
    np.multiply(found, np.arange(classes, 0, -1, dtype=np.uint8)[:, None], out=found)
    first = np.maximum.reduce(found, axis=0)
    if not first.all():  # NaN is not equal to itself
        return _by_torch(logits)
    places: NDArray[Any] = classes - first
    return places


def _by_torch(logits: NDArray[Any]) -> NDArray[Any]:
    index: NDArray[Any] = torch.from_numpy(logits).argmax(0).numpy()
    return index


def _rows_of(
    labels: NDArray[Any], classes: int, ignore_index: int | None, room: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Where the row of each label begins in the table, in `room`."""
    codes = _codes(labels, classes, room)
    ignored = None
    # no label is outside the classes unless the codes were written into the room
    if ignore_index is not None and (codes is room or 0 <= ignore_index < classes):
        ignored = _equal(labels, ignore_index)
    np.multiply(codes, classes + 1, out=room, dtype=np.int64)
    if ignored is not None and ignored.any():
        np.putmask(room, ignored, (classes + 1) * (classes + 1))
    return room


def _codes(labels: NDArray[Any], classes: int, room: NDArray[np.int64]) -> NDArray[Any]:
    """The labels, if all are classes; else, in `room`, those that are none as their number."""
    # as unsigned numbers, the negative ones are the largest: of int8, 128 and more
    limit = min(classes, int(np.iinfo(labels.dtype).max) + 1)
    if labels.view(f"u{labels.itemsize}").max() < limit:
        return labels
    np.copyto(room, labels, casting="unsafe")
    np.minimum(room.view(np.uint64), np.uint64(classes), out=room.view(np.uint64))
    return room


def _equal(values: NDArray[Any], number: int) -> NDArray[np.bool_]:
    """Where a value is that number; a dtype that does not have it never is."""
    if values.dtype.kind != "f":
        limits = np.iinfo(values.dtype)
        if not limits.min <= number <= limits.max:
            return np.zeros(values.shape, bool)
    same: NDArray[np.bool_] = np.equal(values, values.dtype.type(number))
    return same


def _overlapping(
    given: Tensor, target: Tensor, above: Sequence[float], ignore_index: int | None
) -> NDArray[np.int64]:
    """(K, limits, 4) of one image."""
    given, target = given.flatten(1), target.flatten(1)
    rows = np.zeros((len(given), len(above), 4), np.int64)
    for row, plane, mask in zip(rows, given, target, strict=True):
        for values, labels in _pieces(_VALUES, plane, mask):
            row += _piece_rows(values, labels, above, ignore_index)
    return rows


def _piece_rows(
    values: NDArray[Any], labels: NDArray[Any], above: Sequence[float], ignore_index: int | None
) -> NDArray[np.int64]:
    """(limits, 4) of some pixels of one class."""
    true = np.greater(labels, 0.5 if labels.dtype.kind == "f" else 0)
    ignored = None if ignore_index is None else _equal(labels, ignore_index)
    if ignored is not None and not ignored.any():
        ignored = None
    if ignored is not None:
        true &= ~ignored
    pixels = labels.size - (0 if ignored is None else np.count_nonzero(ignored))
    truth = np.count_nonzero(true)
    rows = np.empty((len(above), 4), np.int64)
    for row, limit in zip(rows, above, strict=True):
        # a limit above the values' own precision is rounded as torch rounds it
        predicted = np.greater(values, values.dtype.type(limit))
        if ignored is not None:
            predicted &= ~ignored
        tp, said = np.count_nonzero(predicted & true), np.count_nonzero(predicted)
        row[:] = tp, said - tp, truth - tp, pixels - said - truth + tp
    return rows
