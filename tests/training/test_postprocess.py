"""Masks after the fact, beside a flood fill in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from transferseg.errors import DataError
from transferseg.training import fill_holes, largest_components, remove_small

FOUR = [(0, 1), (1, 0), (0, -1), (-1, 0)]
EIGHT = [*FOUR, (1, 1), (1, -1), (-1, 1), (-1, -1)]
MASKS = arrays(
    np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 2)
)


def components(plane, steps):
    """Sets of pixels, in the order of their first pixel."""
    left = {(int(y), int(x)) for y, x in np.argwhere(plane)}
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        left.discard(start)
        grown, todo = {start}, [start]
        while todo:
            y, x = todo.pop()
            near = {(y + dy, x + dx) for dy, dx in steps} & left
            left -= near
            grown |= near
            todo += near
        found.append(grown)
    return found


def drawn(shape, kept):
    """{class: components} as a mask."""
    mask = np.zeros(shape, np.uint8)
    for index, parts in kept.items():
        for y, x in set().union(*parts):
            mask[y, x] = index
    return mask


@settings(max_examples=40, deadline=None)
@given(MASKS, st.integers(1, 3), st.sampled_from([(None, EIGHT), (2, EIGHT), (1, FOUR)]))
def test_the_largest_components_of_each_class_stay(mask, k, connected):
    connectivity, steps = connected
    kept = {
        index: sorted(components(mask == index, steps), key=len, reverse=True)[:k]
        for index in (1, 2)
    }
    found = largest_components(mask, k=k, connectivity=connectivity)
    np.testing.assert_array_equal(found, drawn(mask.shape, kept))
    assert found.dtype == mask.dtype


@settings(max_examples=40, deadline=None)
@given(MASKS, st.integers(1, 5), st.integers(1, 5))
def test_small_components_go(mask, first, second):
    kept = {
        index: [part for part in components(mask == index, EIGHT) if len(part) >= least]
        for index, least in ((1, first), (2, second))
    }
    found = remove_small(mask, min_size=first, per_class={2: second})
    np.testing.assert_array_equal(found, drawn(mask.shape, kept))


@settings(max_examples=40, deadline=None)
@given(MASKS, st.sampled_from([None, 1, 2]))
def test_holes_are_filled_with_what_surrounds_them(mask, most):
    expected = mask.copy()
    for index in (1, 2):
        padded = np.pad(mask != index, 1, constant_values=True)
        _, *holes = components(padded, FOUR)  # the first one is outside
        for hole in holes:
            if most is None or len(hole) <= most:
                for y, x in hole:
                    if mask[y - 1, x - 1] == 0:
                        expected[y - 1, x - 1] = index
    np.testing.assert_array_equal(fill_holes(mask, max_size=most), expected)


def test_channels_are_classes_of_their_own():
    rng = np.random.default_rng(0)
    mask = (rng.random((20, 30, 3)) > 0.6).astype(np.uint8)
    before = mask.copy()
    for change in (
        lambda given: largest_components(given, k=2),
        lambda given: remove_small(given, min_size=4),
        fill_holes,
    ):
        found = change(mask)
        for channel in range(3):
            np.testing.assert_array_equal(found[..., channel], change(mask[..., channel]))
        assert (found != mask).any()
    np.testing.assert_array_equal(mask, before)


def test_numbers_by_class():
    mask = np.array([[1, 0, 1, 0, 2, 0, 2, 2, 0, 3, 0, 3]])
    assert largest_components(mask, k=None, per_class={2: 1}).tolist() == [
        [1, 0, 1, 0, 0, 0, 2, 2, 0, 3, 0, 3]
    ]
    assert largest_components(mask, k=1, per_class={1: 2}).tolist() == [
        [1, 0, 1, 0, 0, 0, 2, 2, 0, 3, 0, 0]
    ]
    channels = np.stack([mask[0] == 1, mask[0] == 3], axis=-1)[None]
    found = largest_components(channels, k=None, per_class={1: 1})
    assert found.dtype == bool
    assert found.sum((0, 1)).tolist() == [2, 1]
    assert largest_components(np.zeros((3, 4), np.uint8)).sum() == 0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: largest_components(np.zeros((4, 4))), "float64"),
        (lambda: largest_components(np.zeros(4, int)), r"\(4,\)"),
        (lambda: fill_holes(np.zeros((1, 2, 3, 4), int)), r"\(1, 2, 3, 4\)"),
        (lambda: largest_components(np.zeros((4, 4), int), k=0), "from 1, got 0"),
        (lambda: remove_small(np.zeros((4, 4), int), min_size=0), "from 1, got 0"),
        (lambda: fill_holes(np.zeros((4, 4), int), max_size=0), "from 1, got 0"),
        (lambda: largest_components(np.zeros((4, 4), int), per_class={0: 1}), "names"),
        (lambda: largest_components(np.zeros((4, 4, 2), int), per_class={2: 1}), "names"),
        (lambda: remove_small(np.zeros((4, 4), int), min_size=1, per_class={1: 0}), "got 0"),
    ],
)
def test_what_cannot_be(call, match):
    with pytest.raises(DataError, match=match):
        call()
