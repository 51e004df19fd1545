import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.data.samples import Sample
from transferseg.data.splits import (
    check_no_leak,
    class_presence,
    content_hash,
    content_hashes,
    few,
    split_by_group,
)
from transferseg.data.synthetic import SyntheticRadiographs
from transferseg.errors import DataError

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)
HALVES = {"train": 0.5, "test": 0.5}


@st.composite
def cohorts(draw):
    """Groups of one to six images, at least three of them, and the presence of four classes."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=3, max_size=30))
    groups = [f"p{k}" for k, size in enumerate(sizes) for _ in range(size)]
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    order = rng.permutation(len(groups))
    presence = rng.random((len(groups), 4)) < [0.9, 0.3, 0.1, 0.03]
    return [groups[k] for k in order], presence


@PROPERTY
@given(cohorts(), st.integers(0, 5), st.booleans())
def test_parts_are_disjoint_by_group_and_cover_all(cohort, seed, stratified):
    groups, presence = cohort
    parts = split_by_group(groups, seed=seed, stratify=presence if stratified else None)
    assert list(parts) == ["train", "validation", "test"]
    assert sorted(index for part in parts.values() for index in part) == list(range(len(groups)))
    assert all(part and list(part) == sorted(part) for part in parts.values())
    check_no_leak(parts, groups)
    assert parts == split_by_group(groups, seed=seed, stratify=presence if stratified else None)


@PROPERTY
@given(cohorts(), st.integers(0, 5))
def test_sizes_are_within_two_groups_of_the_fractions(cohort, seed):
    groups, _ = cohort
    largest = max(groups.count(name) for name in set(groups))
    parts = split_by_group(groups, seed=seed)
    for share, part in zip((0.7, 0.15, 0.15), parts.values(), strict=True):
        assert abs(len(part) - share * len(groups)) <= 2 * largest


@PROPERTY
@given(cohorts(), st.integers(0, 5))
def test_the_rarest_class_is_in_every_part_when_it_can_be(cohort, seed):
    groups, presence = cohort
    owners = [{groups[i] for i in np.flatnonzero(column)} for column in presence.T]
    counts = [len(owner) or 10**6 for owner in owners]
    rarest = int(np.argmin(counts))
    parts = split_by_group(groups, seed=seed, stratify=presence)
    found = sum(bool(presence[list(part), rarest].any()) for part in parts.values())
    assert found == min(3, len(owners[rarest]))


def test_stratified_shares_are_close_for_every_class():
    rng = np.random.default_rng(0)
    groups = [f"p{k // 2}" for k in range(400)]
    presence = rng.random((400, 3)) < [0.5, 0.2, 0.05]
    parts = split_by_group(groups, seed=1, stratify=presence)
    for name, share in (("train", 0.7), ("validation", 0.15), ("test", 0.15)):
        part = list(parts[name])
        assert len(part) == pytest.approx(share * 400, abs=6)
        np.testing.assert_allclose(presence[part].sum(0), share * presence.sum(0), atol=3)


def test_seeds_differ():
    groups = [f"p{k}" for k in range(40)]
    assert split_by_group(groups, seed=0) != split_by_group(groups, seed=1)


@pytest.mark.parametrize(
    ("groups", "options", "match"),
    [
        (["a", "a"], {"fractions": HALVES}, r"1 group\(s\) cannot fill 2 parts train, test"),
        (["a", "b"], {"fractions": {"train": 0.5, "test": 0.4}}, r"sum 0\.9"),
        (["a", "b"], {"fractions": {"train": 1.0, "test": 0.0}}, "above 0"),
        (["a", "b"], {"fractions": {}}, "sum to 1"),
        (["a", "b"], {"fractions": HALVES, "stratify": [[1], [0], [1]]}, r"must be \(2, K\)"),
        (["a", "b"], {"fractions": HALVES, "stratify": [[2], [0]]}, "0/1"),
    ],
)
def test_splits_that_cannot_be_made(groups, options, match):
    with pytest.raises(DataError, match=match):
        split_by_group(groups, seed=0, **options)


@PROPERTY
@given(cohorts(), st.integers(0, 3), st.data())
def test_few_is_nested_and_takes_whole_groups(cohort, seed, data):
    groups, _ = cohort
    indices = split_by_group(groups, seed=0)["train"]
    n = data.draw(st.integers(1, len(indices)))
    chosen = few(indices, n, groups, seed=seed)
    assert len(set(chosen)) == n
    assert set(chosen) <= set(indices)
    assert set(few(indices, 1, groups, seed=seed)) <= set(chosen)
    cut = [
        name
        for name in {groups[i] for i in chosen}
        if {i for i in indices if groups[i] == name} - set(chosen)
    ]
    assert len(cut) <= 1


def test_few_names_what_is_wrong():
    with pytest.raises(DataError, match=r"n must lie in 1\.\.2 .*got 3"):
        few([0, 1], 3, ["a", "b"], seed=0)
    with pytest.raises(DataError, match="positions 5 lie outside"):
        few([0, 5], 1, ["a", "b"], seed=0)


def test_leaks_are_named():
    groups = ["a", "a", "b", "c"]
    with pytest.raises(DataError, match=r"'train' and 'test' share 1 group\(s\): a\."):
        check_no_leak({"train": [0, 2], "test": [1]}, groups)
    with pytest.raises(DataError, match="share images at 2"):
        check_no_leak({"train": [0, 2], "test": [2]}, groups)
    with pytest.raises(DataError, match=r"identical images .* positions 0 = 3"):
        check_no_leak({"train": [0, 1], "test": [2, 3]}, groups, hashes=["x", "y", "z", "x"])
    with pytest.raises(DataError, match="part 'test': positions 9"):
        check_no_leak({"train": [0], "test": [9]}, groups)
    with pytest.raises(DataError, match="1 hashes do not fit 4 groups"):
        check_no_leak({"train": [0]}, groups, hashes=["x"])


def test_content_hashes_see_pixels_only():
    image = np.random.default_rng(0).integers(0, 255, (8, 6), dtype=np.uint8)
    assert content_hash(image) == content_hash(np.repeat(image[..., None], 3, axis=-1))
    assert content_hash(image) == content_hash(np.asfortranarray(image))
    changed = image.copy()
    changed[0, 0] += 1
    others = (changed, image.T, image.reshape(6, 8), image.astype(np.uint16))
    assert len({content_hash(other) for other in (image, *others)}) == 5
    world = SyntheticRadiographs(4, size=32)
    assert len(set(content_hashes(world))) == 4


def test_presence_reads_masks_and_labels():
    class One:
        ids = groups = ("x",)

        def __init__(self, mask, label, classes, mode):
            self.sample = Sample(np.zeros((1, 4), np.uint8), mask, label, "x", "x")
            self.classes, self.mode = classes, mode

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return self.sample

    abc = ("a", "b", "c")
    mask = np.array([[0, 2, 255, 0]], np.uint8)
    assert class_presence(One(mask, None, abc, "multiclass")).tolist() == [[True, False, True]]
    assert class_presence(One(mask, None, ("a",), "binary")).tolist() == [[False]]
    label = np.array([1, 0, np.nan], np.float32)
    assert class_presence(One(None, label, abc, "multilabel")).tolist() == [[True, False, False]]
    layers = np.array([[[1, 0, 255]] * 4], np.uint8)
    assert class_presence(One(layers, None, abc, "multilabel")).tolist() == [[True, False, False]]
    with pytest.raises(DataError, match="x: has neither mask nor label"):
        class_presence(One(None, None, abc, "multilabel"))
