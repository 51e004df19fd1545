"""Cross-validation folds that keep a patient in one part: k of them, or drawn anew every epoch."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import numpy.typing as npt

from transferseg.data.grouping import group_indices
from transferseg.data.splits import split_by_group
from transferseg.errors import DataError


@dataclass(frozen=True)
class Fold:
    """One run of a cross-validation.

    Attributes:
        train: positions that train, ascending.
        validation: positions that are held out, ascending.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]


@dataclass(frozen=True)
class RotatingKFold:
    """K folds that are drawn anew for every epoch.

    The images are divided into `folds` partitions; in each of an epoch's runs another partition is
    held out and all others train. The next epoch divides them in another way. Over one epoch every
    image is validated once, and trains in all runs but that one.

    Where one model goes through all runs (`training.train_rotating`), an image that validates in
    one run has trained in others: such a score tells when to stop and which epoch is best, and is
    no score on held-out data. With a fresh model for every fold and `reshuffle=False` it is the
    usual cross-validation, whose scores are.

    Args:
        folds: partitions, and runs in an epoch; 2 or more.
        seed: of the partitions, 0 or more.
        by_group: a group (a patient) stays in one partition; otherwise images are dealt one by one
            and sizes differ by one at most, as in the paper.
        reshuffle: other partitions in every epoch; otherwise those of epoch 0 in all.

    Raises:
        DataError: fewer than 2 folds, a negative seed.

    Source: Merand 2021, section 3.3: nine partitions of ten images, shuffled between the epochs.

    Example:
        >>> groups = ["a", "a", "b", "c"]
        >>> for fold in RotatingKFold(2, seed=0).epoch(groups, 0):
        ...     print(sorted({groups[i] for i in fold.validation}), len(fold.train))
        ['b', 'c'] 2
        ['a'] 2
    """

    folds: int = 9
    _: KW_ONLY
    seed: int = 0
    by_group: bool = True
    reshuffle: bool = True

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise DataError(f"folds must be 2 or more, got {self.folds}.")
        if self.seed < 0:
            raise DataError(f"seed must be 0 or more, got {self.seed}.")

    def partitions(self, groups: Sequence[str], epoch: int) -> tuple[tuple[int, ...], ...]:
        """Divide the images of an epoch.

        Whole groups go, large ones first and equal ones in random order, to the smallest
        partition: sizes differ by the largest group at most.

        Args:
            groups: one an image, such as `reader.groups`.
            epoch: counted from 0.

        Returns:
            `folds` tuples of positions, ascending: disjoint, together all, none empty.

        Raises:
            DataError: fewer groups (images, if not by group) than folds, a negative epoch.

        Example:
            >>> [len(part) for part in RotatingKFold(3, by_group=False).partitions(["a"] * 9, 0)]
            [3, 3, 3]
        """
        if epoch < 0:
            raise DataError(f"an epoch counts from 0, got {epoch}.")
        of_image, sizes = group_indices(groups if self.by_group else None, len(groups))
        if len(sizes) < self.folds:
            raise DataError(
                f"{len(sizes)} {'group(s)' if self.by_group else 'image(s)'} cannot fill "
                f"{self.folds} folds; give fewer folds"
                f"{', or by_group=False' if self.by_group and len(groups) >= self.folds else ''}."
            )
        rng = np.random.default_rng((self.seed, epoch if self.reshuffle else 0))
        order = rng.permutation(len(sizes))
        order = order[np.argsort(-sizes[order], kind="stable")]
        # Numbered at random, or the largest group would always be validated in the first run.
        fold_of = rng.permutation(self.folds)[_smallest_first(sizes[order].tolist(), self.folds)]
        of_group = np.empty(len(sizes), dtype=np.int64)
        of_group[order] = fold_of
        of_images = of_group[of_image]
        return tuple(
            tuple(np.flatnonzero(of_images == fold).tolist()) for fold in range(self.folds)
        )

    def epoch(self, groups: Sequence[str], epoch: int) -> tuple[Fold, ...]:
        """The runs of an epoch: each partition held out once, all others trained on.

        Args:
            groups: one an image.
            epoch: counted from 0.

        Returns:
            `folds` runs in order.

        Raises:
            DataError: as `partitions`.

        Example:
            >>> [fold.validation for fold in RotatingKFold(2, by_group=False).epoch(["a"] * 3, 0)]
            [(0,), (1, 2)]
        """
        return _each_held_out(self.partitions(groups, epoch), len(groups))


def _each_held_out(parts: Iterable[tuple[int, ...]], images: int) -> tuple[Fold, ...]:
    everything = np.arange(images)
    return tuple(
        Fold(tuple(np.delete(everything, list(held_out)).tolist()), held_out) for held_out in parts
    )


def _smallest_first(sizes: Sequence[int], parts: int) -> list[int]:
    """The part of each group, taken in order: the one that has the fewest images so far."""
    heap = [(0, part) for part in range(parts)]
    found = []
    for size in sizes:
        images, part = heap[0]
        heapq.heapreplace(heap, (images + size, part))
        found.append(part)
    return found


def k_fold(
    groups: Sequence[str],
    folds: int = 5,
    *,
    seed: int,
    stratify: npt.ArrayLike | None = None,
) -> tuple[Fold, ...]:
    """K folds by group, for models that are trained from the beginning for each.

    Args:
        groups: one an image, such as `PreparedDataset.groups`; `ids` deal image by image.
        folds: how many, 2 or more.
        seed: of the order in which equal groups are dealt.
        stratify: (N, K), which image has which class; see `split_by_group`.

    Returns:
        `folds` folds: each position is validated in one of them and trains in all others.

    Raises:
        DataError: fewer than 2 folds, fewer groups than folds, a shape that does not fit.

    Example:
        >>> for fold in k_fold(["a", "a", "b", "c"], 2, seed=0):
        ...     print(fold)
        Fold(train=(2, 3), validation=(0, 1))
        Fold(train=(0, 1), validation=(2, 3))
    """
    if folds < 2:
        raise DataError(f"folds must be 2 or more, got {folds}.")
    shares = {str(number): 1 / folds for number in range(folds)}
    parts = split_by_group(groups, shares, seed=seed, stratify=stratify)
    return _each_held_out(parts.values(), len(groups))
