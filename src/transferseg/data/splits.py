"""Splits that keep a patient in one part, and the checks that they did."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from transferseg.data.grouping import checked_presence, group_indices
from transferseg.data.samples import Reader
from transferseg.errors import DataError, some
from transferseg.types import Array

#: 70:15:15, as Merand 2021 splits its pretraining data.
DEFAULT_FRACTIONS: Final[Mapping[str, float]] = MappingProxyType(
    {"train": 0.7, "validation": 0.15, "test": 0.15}
)


def split_by_group(
    groups: Sequence[str],
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    *,
    seed: int,
    stratify: npt.ArrayLike | None = None,
) -> dict[str, tuple[int, ...]]:
    """Divide images into parts such that no group is in two of them.

    Groups go one by one, large ones first, to the part that is furthest below its share of images.
    With `stratify`, classes go first, from the rarest on: each group that has the class goes to
    the part furthest below its share of that class, and the last groups go to parts that would
    have none of it (iterative stratification, by group). A class of as many groups as there are
    parts is thus in each of them, unless rarer classes took its groups.

    Args:
        groups: one an image, such as `reader.groups`.
        fractions: share of the images by part name; above 0, summing to 1.
        seed: of the order in which equal groups are taken; the same seed gives the same split.
        stratify: (N, K), which image has which class: bool or 0/1.

    Returns:
        Positions by part name, ascending: disjoint, together all, none empty.

    Raises:
        DataError: fewer groups than parts, fractions or a shape that do not fit.

    Source: greedy after Sechidis et al., "On the Stratification of Multi-label Data", 2011.

    Example:
        >>> parts = split_by_group(["a", "a", "b", "c"], {"train": 0.5, "test": 0.5}, seed=0)
        >>> parts["train"], parts["test"]
        ((0, 1), (2, 3))
    """
    names, shares = _checked_fractions(fractions)
    of_image, sizes = group_indices(groups, len(groups))
    if len(sizes) < len(names):
        raise DataError(
            f"{len(sizes)} group(s) cannot fill {len(names)} parts {some(names)}; a group stays "
            "in one part."
        )
    nothing = np.zeros((len(groups), 0), dtype=bool)
    stratify = nothing if stratify is None else stratify
    presence = checked_presence(stratify, "stratify", images=len(groups))
    counts = np.zeros((len(sizes), presence.shape[1]))
    np.add.at(counts, of_image, presence)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    part_of = _Greedy(shares, sizes, counts).assign(order)
    of_images = part_of[of_image]
    return {
        name: tuple(np.flatnonzero(of_images == part).tolist()) for part, name in enumerate(names)
    }


def _checked_fractions(fractions: Mapping[str, float]) -> tuple[tuple[str, ...], Array]:
    names, values = tuple(fractions), np.array(list(fractions.values()), dtype=np.float64)
    if not names or not (values > 0).all() or abs(values.sum() - 1) > 1e-6:
        raise DataError(
            f"fractions must be above 0 and sum to 1, got {dict(fractions)} (sum {values.sum():g})."
        )
    return names, values


class _Greedy:
    """Assigns groups to parts one at a time, keeping count of what each part still lacks."""

    def __init__(self, shares: Array, sizes: Array, counts: Array) -> None:
        self.sizes, self.counts = sizes, counts
        self.lack: Any = shares * sizes.sum()  # images a part is below its share
        self.lack_of_class: Any = shares[:, None] * counts.sum(axis=0)
        self.classes_in: Any = np.zeros((len(shares), counts.shape[1]))
        self.part_of = np.full(len(sizes), -1)
        # Kept, not looked up: that made a split of 65,000 patients a matter of minutes.
        self.left = len(sizes)
        self.empty = list(range(len(shares)))

    def assign(self, order: Array) -> Array:
        while True:
            left = order[self.part_of[order] < 0]
            groups_with = (self.counts[left] > 0).sum(axis=0)
            if not groups_with.any():
                break
            rarest = int(np.argmin(np.where(groups_with > 0, groups_with, len(order) + 1)))
            having = left[self.counts[left, rarest] > 0]
            for done, group in enumerate(having):
                absent = np.flatnonzero(self.classes_in[:, rarest] == 0)
                last_chances = len(having) - done <= len(absent)
                self._put(group, self.lack_of_class[:, rarest], absent if last_chances else None)
        for group in order[self.part_of[order] < 0]:
            self._put(group, self.lack, None)
        return self.part_of

    def _put(self, group: int, lack: Array, among: Array | None) -> None:
        if self.left <= len(self.empty):  # the last groups fill parts that have none
            among = np.array(self.empty)
        options = range(len(self.lack)) if among is None else among.tolist()
        part = max(options, key=lambda p: (round(float(lack[p]), 9), self.lack[p], -p))
        self.part_of[group] = part
        self.left -= 1
        if part in self.empty:
            self.empty.remove(part)
        self.lack[part] -= self.sizes[group]
        self.lack_of_class[part] -= self.counts[group]
        self.classes_in[part] += self.counts[group]


def few(indices: Sequence[int], n: int, groups: Sequence[str], *, seed: int) -> tuple[int, ...]:
    """Choose few labelled images, patient by patient, as a small study would collect them.

    Groups are taken in a random order, each with all of its images, until there are `n` (the last
    group may be cut). With one seed, the choice for a smaller `n` is part of that for a larger one,
    so that a curve over `n` compares like with like.

    Args:
        indices: positions to choose from, such as `parts["train"]`.
        n: how many, 1 to `len(indices)`.
        groups: the group of every image of the reader (not only of `indices`).
        seed: of the order.

    Returns:
        `n` positions, ascending.

    Raises:
        DataError: `n` outside its range, a position outside `groups`.

    Example:
        >>> few([0, 1, 2, 3], 2, ["a", "a", "b", "b"], seed=0) in ((0, 1), (2, 3))
        True
    """
    if not 1 <= n <= len(indices):
        raise DataError(f"n must lie in 1..{len(indices)} (the images to choose from), got {n}.")
    _check_positions("indices", indices, len(groups))
    members: dict[str, list[int]] = {}
    for index in sorted(indices):
        members.setdefault(groups[index], []).append(index)
    names = sorted(members)
    order = np.random.default_rng(seed).permutation(len(names))
    taken = [index for position in order for index in members[names[position]]]
    return tuple(sorted(taken[:n]))


def _check_positions(name: str, indices: Sequence[int], length: int) -> None:
    outside = [str(index) for index in indices if not 0 <= index < length]
    if outside:
        raise DataError(f"{name}: positions {some(outside)} lie outside 0..{length - 1}.")


def check_no_leak(
    parts: Mapping[str, Sequence[int]],
    groups: Sequence[str],
    *,
    hashes: Sequence[str] | None = None,
) -> None:
    """Check that no image, no group and no identical picture is in two parts.

    Args:
        parts: positions by part name.
        groups: the group of every image.
        hashes: the content hash of every image (`content_hashes`), which finds one picture under
            two names.

    Raises:
        DataError: what two parts share, by name; positions or lengths that do not fit.

    Example:
        >>> check_no_leak({"train": [0, 1], "test": [2]}, ["a", "a", "b"])
    """
    for name, indices in parts.items():
        _check_positions(f"part {name!r}", indices, len(groups))
    if hashes is not None and len(hashes) != len(groups):
        raise DataError(f"{len(hashes)} hashes do not fit {len(groups)} groups; give one an image.")
    for (first, a), (second, b) in combinations(parts.items(), 2):
        both = sorted(set(a) & set(b))
        if both:
            raise DataError(f"{first!r} and {second!r} share images at {some(map(str, both))}.")
        shared = sorted({groups[i] for i in a} & {groups[i] for i in b})
        if shared:
            raise DataError(
                f"{first!r} and {second!r} share {len(shared)} group(s): {some(shared)}. Split by "
                "group: split_by_group(reader.groups, ...)."
            )
        if hashes is not None:
            twins = {hashes[i]: i for i in a}
            same = [f"{twins[hashes[i]]} = {i}" for i in b if hashes[i] in twins]
            if same:
                raise DataError(
                    f"{first!r} and {second!r} share identical images under two names, at "
                    f"positions {some(same)}; give them one group or drop one."
                )


def content_hash(image: Array) -> str:
    """A hash of an image's pixels, the same for grey stored as grey or as three equal channels.

    Only pixel-for-pixel copies agree: not another size, another JPEG quality, another bit depth.

    Args:
        image: (H, W) or (H, W, C), any dtype.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
        >>> content_hash(grey) == content_hash(np.stack([grey] * 3, axis=-1))
        True
    """
    if image.ndim == 3 and bool((image == image[..., :1]).all()):
        image = image[..., 0]
    little = image.astype(image.dtype.newbyteorder("<"), copy=False)
    digest = hashlib.blake2b(f"{little.dtype.str}{little.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(little).tobytes())
    return digest.hexdigest()


def content_hashes(reader: Reader) -> tuple[str, ...]:
    """The content hash of every image of a reader; reads them all.

    Example:
        >>> from transferseg.data.synthetic import SyntheticRadiographs
        >>> len(set(content_hashes(SyntheticRadiographs(3, size=32))))
        3
    """
    return tuple(content_hash(reader[index].image) for index in range(len(reader)))


def class_presence(reader: Reader) -> Array:
    """Which image has which class, from labels or masks, for a stratified split; reads all.

    A missing label (NaN) and an ignored pixel (255) are no presence.

    Args:
        reader: its samples have masks or labels.

    Returns:
        (N, K) bool, K = number of classes.

    Raises:
        DataError: a sample with neither mask nor label.

    Example:
        >>> from transferseg.data.synthetic import SyntheticRadiographs
        >>> bool(class_presence(SyntheticRadiographs(3, size=64))[:, :3].all())
        True
    """
    found = np.zeros((len(reader), len(reader.classes)), dtype=bool)
    for index in range(len(reader)):
        sample = reader[index]
        if sample.mask is not None:
            mask = sample.mask
            values = np.arange(len(reader.classes)) + (reader.mode == "binary")
            found[index] = (mask == 1).any(axis=(0, 1)) if mask.ndim == 3 else np.isin(values, mask)
        elif sample.label is not None:
            found[index] = sample.label == 1
        else:
            raise DataError(f"{sample.id}: has neither mask nor label, so no class is known.")
    return found
