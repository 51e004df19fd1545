from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.data.covering import choose_covering
from transferseg.data.splits import check_no_leak
from transferseg.errors import DataError

NAMES = ("a", "b", "c", "d")


@st.composite
def cohorts(draw):
    """Up to nine groups of one to three images, four classes, perhaps one that is left."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=2, max_size=9))
    groups = [f"p{k}" for k, size in enumerate(sizes) for _ in range(size)]
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    presence = rng.random((len(groups), 4)) < [0.9, 0.5, 0.3, 0.3]
    n = draw(st.integers(1, max(1, len(groups) - 1)))
    leave = draw(st.sampled_from([(), ("d",), ("c", "d")]))
    return list(rng.permutation(groups)), presence, n, leave


def fits(presence, groups, chosen, leave):
    """The promise, in words of its own."""
    rest = [k for k in range(len(groups)) if k not in chosen]
    if {groups[k] for k in chosen} & {groups[k] for k in rest}:
        return False
    for column, name in enumerate(NAMES):
        inside = presence[list(chosen), column].any()
        if name in leave:
            if inside:
                return False
        elif not inside or not presence[rest, column].any():
            return False
    return True


def possible(presence, groups, n, leave):
    """Whether there is any choice: all of them, tried."""
    names = sorted(set(groups))
    for count in range(1, len(names)):
        for some in combinations(names, count):
            chosen = [k for k, name in enumerate(groups) if name in some]
            if len(chosen) == n and fits(presence, groups, chosen, leave):
                return True
    return False


@settings(deadline=None, max_examples=300, derandomize=True)
@given(cohorts(), st.integers(0, 3))
def test_every_class_is_on_both_sides_wherever_that_can_be(cohort, seed):
    groups, presence, n, leave = cohort
    options = {"classes": NAMES, "groups": groups, "leave": leave, "seed": seed}
    if not possible(presence, groups, n, leave):
        with pytest.raises(DataError):
            choose_covering(presence, n, **options)
        return
    chosen = choose_covering(presence, n, **options)
    assert len(set(chosen)) == n
    assert list(chosen) == sorted(chosen)
    assert fits(presence, groups, chosen, leave)
    rest = [k for k in range(len(groups)) if k not in chosen]
    check_no_leak({"test": chosen, "train": rest}, groups)
    assert chosen == choose_covering(presence, n, **options)


def test_the_papers_test_set():
    """Table 1 of the paper: 100 images, two with effusion, one with pneumothorax."""
    counts = {"lungs": 100, "opacities": 93, "consolidation": 32, "effusion": 2, "pneumothorax": 1,
              "tube": 13, "line": 11, "probes": 26, "nasogastric": 10, "tubing": 16}  # fmt: skip
    rng = np.random.default_rng(0)
    presence = np.zeros((100, len(counts)), bool)
    for column, count in enumerate(counts.values()):
        presence[rng.choice(100, count, replace=False), column] = True
    options = {"classes": tuple(counts), "leave": ("pneumothorax",)}
    found = [choose_covering(presence, 10, **options, seed=seed) for seed in range(20)]
    for chosen in found:
        rest = sorted(set(range(100)) - set(chosen))
        assert (len(chosen), len(rest)) == (10, 90)
        inside, outside = presence[list(chosen)].any(0), presence[rest].any(0)
        assert [name for name, there in zip(counts, inside, strict=True) if not there] == [
            "pneumothorax"
        ]
        assert outside.all()
    assert len(set(found)) == 20
    with pytest.raises(DataError, match=r"'pneumothorax' is in 1 image\(s\).*leave=\('pneumothora"):
        choose_covering(presence, 10, classes=tuple(counts), seed=0)


def test_what_is_chosen_is_random_beyond_the_rare_classes():
    presence = np.zeros((30, 1), bool)
    presence[:, 0] = True
    found = [choose_covering(presence, 3, classes=("a",), seed=seed) for seed in range(200)]
    often = np.bincount(np.concatenate(found), minlength=30)
    assert often.min() > 0  # 20 expected of each
    assert often.max() < 45


ONE = [[1, 0], [1, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("presence", "n", "options", "match"),
    [
        (ONE, 4, {}, r"n must lie in 1\.\.3.*got 4"),
        (ONE, 0, {}, r"got 0"),
        (ONE, 1, {"classes": "abc"}, r"presence must be \(N, 3\)"),
        ([[2, 0]] * 4, 1, {}, "0/1"),
        (ONE, 1, {"leave": ("bb",)}, "unknown class in leave 'bb'"),
        (ONE, 1, {"groups": "ab"}, "2 groups do not fit 4 images"),
        (ONE, 2, {"groups": "abcc"}, r"class 'b' is in 1 group\(s\)"),
        ([[1, 0]] * 4, 2, {}, r"class 'b' is in 0 image\(s\)"),
        ([[1, 1], [1, 1], [0, 1]], 1, {"leave": ("b",)}, "class 'a' is only in images that"),
        (ONE, 1, {"groups": "aabb"}, r"class 'b' is in 1 group"),
        ([[1, 1]] * 4, 1, {"groups": "aabb"}, "no choice of 1 images.*no room was left for 'a'"),
        ([[1, 1]] * 6, 3, {"groups": "aabbcc"}, r"no choice of 3 .* made 2 at most"),
        ([[1, 0], [1, 0], [0, 1], [0, 1]], 1, {}, "no room was left for 'b'"),
    ],
)
def test_choices_that_cannot_be_made(presence, n, options, match):
    with pytest.raises(DataError, match=match):
        choose_covering(presence, n, **{"classes": "ab", "seed": 0, **options})
