"""A split by content: a few images in which every class is present."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from numpy.typing import NDArray

from transferseg.data.grouping import checked_presence, group_indices
from transferseg.errors import DataError, some, unknown_name

_TRIES: Final = 200


def choose_covering(
    presence: npt.ArrayLike,
    n: int,
    *,
    classes: Sequence[str],
    groups: Sequence[str] | None = None,
    leave: Sequence[str] = (),
    seed: int,
) -> tuple[int, ...]:
    """Choose a test set of `n` images in which every class is present, and keep each to train on.

    Every class is in at least one chosen image and in at least one that is not chosen; classes in
    `leave` are in no chosen image. With `groups`, whole groups are chosen and together have exactly
    `n` images, so that no group is on both sides; what is not chosen may train.

    The choice is random: while classes are missing, a group that has the one with the fewest groups
    left; then any groups. Where it gets stuck it begins anew, up to 200 times.

    Args:
        presence: (N, K), which image has which class: bool or 0/1 (`class_presence`, or
            `CCXS.presence`).
        n: how many images, 1 to N - 1.
        classes: the K names of the columns.
        groups: one an image, such as `reader.groups`; None makes each image its own group.
        leave: classes that stay wholly in the rest, such as those of a single image.
        seed: of the choice; the same seed gives the same choice.

    Returns:
        `n` positions, ascending.

    Raises:
        DataError: a class that cannot be on both sides, by name; no choice found, with the reason;
            sizes or names that do not fit.

    Source: Merand 2021, section 3.1: ten images of CCXS such that every category but pneumothorax,
    which one image has, is present.

    Example:
        >>> presence = [[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 1]]
        >>> chosen = choose_covering(presence, 1, classes=("a", "b", "c"), leave=("c",), seed=0)
        >>> chosen in ((0,), (2,))
        True
    """
    has_image = _checked(presence, n, classes, leave)
    of_image, sizes = group_indices(groups, len(has_image))
    has = np.zeros((len(sizes), len(classes)), dtype=bool)
    np.logical_or.at(has, of_image, has_image)
    left_out = np.array([name in leave for name in classes], dtype=bool)
    search = _Search(
        has=has[:, ~left_out],
        sizes=sizes,
        free=np.logical_not(has[:, left_out].any(axis=1)),
        classes=[name for name in classes if name not in leave],
    )
    search.check(grouped=groups is not None)
    chosen = search.run(n, np.random.default_rng(seed))
    return tuple(np.flatnonzero(np.isin(of_image, chosen)).tolist())


def _checked(
    presence: npt.ArrayLike,
    n: int,
    classes: Sequence[str],
    leave: Sequence[str],
) -> NDArray[np.bool_]:
    given = checked_presence(presence, "presence", classes=len(classes))
    for name in leave:
        if name not in classes:
            raise DataError(unknown_name("class in leave", name, classes))
    if not 1 <= n < len(given):
        raise DataError(
            f"n must lie in 1..{len(given) - 1}, so that one of {len(given)} images stays; got {n}."
        )
    return given


class _Search:
    """Looks for groups that make up a number of images and leave each class on both sides.

    Args:
        has: (G, K), which group has which class, without the classes that are left out.
        sizes: (G,) images of each group.
        free: (G,) whether a group may be chosen at all.
        classes: the K names.
    """

    def __init__(
        self,
        *,
        has: NDArray[np.bool_],
        sizes: NDArray[np.int64],
        free: NDArray[np.bool_],
        classes: Sequence[str],
    ) -> None:
        self.has, self.sizes, self.free, self.classes = has, sizes, free, classes

    def check(self, *, grouped: bool) -> None:
        """Refuse what no choice can meet, by name."""
        kind = "group" if grouped else "image"
        for column, name in enumerate(self.classes):
            owners = int(self.has[:, column].sum())
            if owners < 2:
                raise DataError(
                    f"class {name!r} is in {owners} {kind}(s), so it cannot be both chosen and "
                    f"left to train on; name it in leave=({name!r},), where it stays in the rest."
                )
            if not (self.free & self.has[:, column]).any():
                raise DataError(
                    f"class {name!r} is only in {kind}s that also have a class of leave, and so "
                    "could not be chosen; name it in leave too."
                )

    def run(self, n: int, rng: Generator) -> NDArray[np.int64]:
        """The chosen groups."""
        missing: Counter[str] = Counter()
        nearest = 0
        for attempt in range(_TRIES):
            # Every second try takes groups with many missing classes: for an `n` that is tight.
            chosen, absent = self._cover(n, rng, greedy=attempt % 2 == 1)
            if absent is not None:
                missing[absent] += 1
                continue
            self._fill(chosen, n, rng)
            images = int(self.sizes[chosen].sum())
            if images == n:
                return np.flatnonzero(chosen)
            nearest = max(nearest, images)
        if nearest:
            reason = f"whole groups that leave each class on both sides made {nearest} at most"
        else:
            often = [name for name, _ in missing.most_common()]
            reason = f"no room was left for {some(map(repr, often))}"
        raise DataError(
            f"no choice of {n} images found in {_TRIES} tries: {reason}; give another n, or name "
            "classes in leave."
        )

    def _open(self, chosen: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
        """Which groups may still be chosen: they fit, and no class is in them alone."""
        room = n - int(self.sizes[chosen].sum())
        last = self.has[~chosen].sum(axis=0) < 2
        wanted: NDArray[np.bool_] = (
            self.free & ~chosen & (self.sizes <= room) & ~self.has[:, last].any(axis=1)
        )
        return wanted

    def _cover(
        self, n: int, rng: Generator, *, greedy: bool
    ) -> tuple[NDArray[np.bool_], str | None]:
        """Groups that have every class between them, or a class for which there was no room."""
        chosen = np.zeros(len(self.has), dtype=bool)
        while True:
            missing = ~self.has[chosen].any(axis=0)
            if not missing.any():
                return chosen, None
            open_ = self._open(chosen, n)
            owners = np.where(missing, self.has[open_].sum(axis=0), len(self.has) + 1)
            rarest = int(np.argmin(owners))
            pool = np.flatnonzero(open_ & self.has[:, rarest])
            if not len(pool):
                return chosen, self.classes[rarest]
            if greedy:
                gain = self.has[pool][:, missing].sum(axis=1) / self.sizes[pool]
                pool = pool[gain == gain.max()]
            chosen[rng.choice(pool)] = True

    def _fill(self, chosen: NDArray[np.bool_], n: int, rng: Generator) -> None:
        """Add groups in random order while they fit; one pass, since room only shrinks."""
        room = n - int(self.sizes[chosen].sum())
        left = self.has[~chosen].sum(axis=0)
        for group in rng.permutation(np.flatnonzero(self._open(chosen, n))).tolist():
            if room == 0:
                return
            if self.sizes[group] <= room and (left[self.has[group]] > 1).all():
                chosen[group] = True
                room -= int(self.sizes[group])
                left -= self.has[group]
