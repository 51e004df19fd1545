import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.data.folds import RotatingKFold, k_fold
from transferseg.errors import DataError

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)


@st.composite
def cohorts(draw):
    """Images of groups of one to six, in any order, and folds that the groups can fill."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=30))
    groups = [f"p{k}" for k, size in enumerate(sizes) for _ in range(size)]
    return draw(st.permutations(groups)), draw(st.integers(2, len(sizes)))


@PROPERTY
@given(cohorts(), st.integers(0, 5), st.integers(0, 3), st.booleans())
def test_every_image_is_validated_once_and_trains_in_all_other_runs(cohort, seed, epoch, by_group):
    groups, count = cohort
    rotation = RotatingKFold(count, seed=seed, by_group=by_group)
    folds = rotation.epoch(groups, epoch)
    everything = list(range(len(groups)))
    assert len(folds) == count
    assert sorted(i for fold in folds for i in fold.validation) == everything
    for fold in folds:
        assert sorted(fold.train + fold.validation) == everything
        assert list(fold.train) == sorted(fold.train)
        assert list(fold.validation) == sorted(fold.validation)
        assert fold.train
        assert fold.validation
        if by_group:
            assert not {groups[i] for i in fold.train} & {groups[i] for i in fold.validation}
    assert tuple(fold.validation for fold in folds) == rotation.partitions(groups, epoch)
    assert folds == RotatingKFold(count, seed=seed, by_group=by_group).epoch(groups, epoch)


@PROPERTY
@given(cohorts(), st.integers(0, 5))
def test_sizes_are_as_equal_as_whole_groups_allow(cohort, seed):
    groups, count = cohort
    largest = max(groups.count(name) for name in set(groups))
    sizes = [len(part) for part in RotatingKFold(count, seed=seed).partitions(groups, 0)]
    assert max(sizes) - min(sizes) <= largest
    rotation = RotatingKFold(count, seed=seed, by_group=False)
    sizes = [len(part) for part in rotation.partitions(groups, 0)]
    assert max(sizes) - min(sizes) <= 1


def test_the_papers_scheme():
    """Nine partitions of ten of 90 images, others in every epoch and for every seed."""
    rotation = RotatingKFold(by_group=False)
    assert rotation.folds == 9
    groups = [f"p{k // 3}" for k in range(90)]
    epochs = [rotation.partitions(groups, epoch) for epoch in range(3)]
    assert {len(part) for epoch in epochs for part in epoch} == {10}
    assert len({frozenset(map(frozenset, epoch)) for epoch in epochs}) == 3
    other = RotatingKFold(by_group=False, seed=1).partitions(groups, 0)
    assert set(map(frozenset, other)) != set(map(frozenset, epochs[0]))
    by_group = [RotatingKFold().partitions(groups, epoch) for epoch in range(2)]
    assert set(map(frozenset, by_group[0])) != set(map(frozenset, by_group[1]))


def test_partitions_do_not_follow_from_the_order_of_the_images():
    groups = [f"p{k % 7}" for k in range(21)]
    backwards = groups[::-1]
    parts = RotatingKFold(3).partitions(groups, 4)
    others = RotatingKFold(3).partitions(backwards, 4)
    named = [{groups[i] for i in part} for part in parts]
    assert named == [{backwards[i] for i in part} for part in others]


def test_the_largest_group_is_not_always_validated_first():
    groups = ["large"] * 5 + [f"p{k}" for k in range(10)]
    first = [0 in RotatingKFold(3).partitions(groups, epoch)[0] for epoch in range(20)]
    assert 0 < sum(first) < 20


def test_without_reshuffling_one_partition_stays():
    rotation = RotatingKFold(3, seed=2, reshuffle=False)
    groups = [f"p{k}" for k in range(12)]
    assert rotation.epoch(groups, 0) == rotation.epoch(groups, 7)
    assert rotation.epoch(groups, 0) == RotatingKFold(3, seed=2).epoch(groups, 0)


def test_it_is_plain_values():
    rotation = RotatingKFold(5, seed=3, by_group=False)
    values = {"folds": 5, "seed": 3, "by_group": False, "reshuffle": True}
    assert asdict(rotation) == json.loads(json.dumps(values))
    assert RotatingKFold(**values) == rotation
    assert len({rotation, RotatingKFold(**values)}) == 1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: RotatingKFold(1), "folds must be 2 or more, got 1"),
        (lambda: RotatingKFold(seed=-1), "seed must be 0 or more"),
        (lambda: RotatingKFold(2).partitions(["a", "b"], -1), "counts from 0, got -1"),
        (
            lambda: RotatingKFold(3).partitions(["a", "a", "b"], 0),
            r"2 group\(s\) cannot fill 3 folds; give fewer folds, or by_group=False",
        ),
        (lambda: RotatingKFold(3).epoch(["a"], 0), r"1 group\(s\) .* give fewer folds\."),
        (
            lambda: RotatingKFold(3, by_group=False).partitions(["a", "a"], 0),
            r"2 image\(s\) cannot fill 3 folds; give fewer folds\.",
        ),
    ],
)
def test_folds_that_cannot_be_made(make, match):
    with pytest.raises(DataError, match=match):
        make()


@PROPERTY
@given(cohorts(), st.integers(0, 5))
def test_k_folds_hold_every_image_out_once(cohort, seed):
    groups, count = cohort
    folds = k_fold(groups, count, seed=seed)
    everything = list(range(len(groups)))
    assert len(folds) == count
    assert sorted(i for fold in folds for i in fold.validation) == everything
    for fold in folds:
        assert fold.validation
        assert sorted(fold.train + fold.validation) == everything
        assert not {groups[i] for i in fold.train} & {groups[i] for i in fold.validation}
    assert folds == k_fold(groups, count, seed=seed)


def test_k_folds_are_of_a_size_and_share_rare_classes():
    groups = [f"p{k}" for k in range(40)]
    rare = np.zeros((40, 1), bool)
    rare[:5] = True
    for seed in range(5):
        folds = k_fold(groups, 5, seed=seed, stratify=rare)
        assert [len(fold.validation) for fold in folds] == [8] * 5
        assert [sum(rare[list(fold.validation), 0]) for fold in folds] == [1] * 5
    assert k_fold(groups, 5, seed=0) != k_fold(groups, 5, seed=1)


def test_k_folds_need_groups():
    with pytest.raises(DataError, match="folds must be 2 or more, got 1"):
        k_fold(["a", "b"], 1, seed=0)
    with pytest.raises(DataError, match=r"2 group\(s\) cannot fill 3"):
        k_fold(["a", "a", "b"], 3, seed=0)
