"""Pairs of lesions against every matching, one table of all, and MONAI."""

from __future__ import annotations

import tracemalloc
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_panoptic_quality
from scipy.optimize import linear_sum_assignment

from transferseg.metrics import components, label_lesions, match_lesions

from .test_lesions import flood, masks


def most_pairs(iou, above):
    """The largest number of pairs, by trying every matching."""
    few, many = (iou, iou.T)[iou.shape[0] > iou.shape[1]], max(iou.shape)
    if not few.size:
        return 0
    return max(
        sum(few[row, column] > above for row, column in enumerate(order))
        for order in permutations(range(many), len(few))
    )


@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=st.integers(0, 9999), above=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7]))
def test_iou_pairs_are_as_many_as_any_matching_has(seed, above):
    prediction, truth = masks(seed, (6, 6), density=0.3)
    said, real = flood(prediction, 2), flood(truth, 2)
    iou = np.array([[len(a & b) / len(a | b) for b in said] for a in real])
    iou = iou.reshape(len(real), len(said))
    found = match_lesions(prediction, truth, criterion="iou", above=above)
    assert found.found.sum() == found.true.sum() == most_pairs(iou, above)


@pytest.mark.parametrize("seed", range(5))
def test_iou_above_a_half_is_the_matching_of_panoptic_quality(seed):
    """MONAI's matching is ours above 0.5; below it maximises the IoU, we the number of pairs."""
    _, truth = masks(seed, (24, 24), density=0.3)
    prediction = truth ^ (np.random.default_rng(seed).random(truth.shape) < 0.05)
    found = match_lesions(prediction, truth, criterion="iou", above=0.5, connectivity=1)
    instances = [
        torch.from_numpy(label_lesions(mask, connectivity=1)) for mask in (prediction, truth)
    ]
    tp, fp, fn, _ = compute_panoptic_quality(
        *instances, metric_name="pq", output_confusion_matrix=True, match_iou_threshold=0.5
    ).tolist()
    assert (found.found.sum(), (~found.true).sum(), (~found.found).sum()) == (tp, fp, fn)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 9999), above=st.sampled_from([0.0, 0.1, 0.3]))
def test_iou_pairs_are_those_of_one_table_of_all(seed, above):
    """As alike as any assignment over the table of all lesions."""
    prediction, truth = masks(seed, (12, 12), density=0.45)
    real, said = (label_lesions(mask, connectivity=1) for mask in (truth, prediction))
    iou = np.array(
        [
            [((real == a) & (said == b)).sum() / ((real == a) | (said == b)).sum() for b in them]
            for them in [range(1, said.max() + 1)]
            for a in range(1, real.max() + 1)
        ]
    )
    worth = np.where(iou > above, iou + len(iou), 0.0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    good = iou[rows, columns] > above
    found = match_lesions(prediction, truth, criterion="iou", above=above, connectivity=1)
    assert found.found.sum() == found.true.sum() == good.sum()
    allowed = np.nonzero(iou > above)
    taken = components._paired(*allowed, iou[allowed])
    pairs = [place[taken] for place in allowed]
    assert all(len(set(place)) == good.sum() for place in pairs)
    assert iou[tuple(pairs)].sum() == pytest.approx(iou[rows[good], columns[good]].sum())


@pytest.mark.parametrize("criterion", ["overlap", "iou"])
def test_many_lesions_need_no_table_of_all_pairs(criterion):
    """An untrained model predicts thousands: 6400 by 6400 would be 330 MB."""
    mask = np.zeros((160, 160), bool)
    mask[::2, ::2] = True
    prediction = mask.copy()
    prediction[0, :] = True  # one that meets eighty
    tracemalloc.start()
    try:
        found = match_lesions(prediction, mask, criterion=criterion, connectivity=1)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
    assert found.found.sum() == {"overlap": 6400, "iou": 6321}[criterion]
    assert found.true.all()
    assert len(found.true) == 6321


@pytest.mark.parametrize("criterion", ["overlap", "iou"])
@pytest.mark.parametrize("said", [0, 1])
@pytest.mark.parametrize("real", [0, 1])
def test_empty_and_full_masks_equal_panoptic_quality(criterion, said, real):
    prediction, truth = np.full((4, 4), said), np.full((4, 4), real)
    found = match_lesions(prediction, truth, criterion=criterion, above=0.5)
    tp, fp, fn, _ = compute_panoptic_quality(
        torch.from_numpy(prediction), torch.from_numpy(truth), output_confusion_matrix=True
    ).tolist()
    assert (found.found.sum(), (~found.true).sum(), (~found.found).sum()) == (tp, fp, fn)
    assert (len(found.sizes), len(found.predicted_sizes)) == (real, said)


def test_below_a_half_the_pairs_are_many_before_they_are_alike():
    """Disagreement: MONAI's pairs have the largest IoU together, and here one lesion less."""
    truth, prediction = np.zeros((1, 26), int), np.zeros((1, 26), int)
    truth[0, :4], truth[0, 6:26] = 1, 1
    prediction[0, 2:20], prediction[0, 21:25] = 1, 1
    found = match_lesions(prediction, truth, criterion="iou", above=0.05)
    assert (found.found.tolist(), found.true.tolist()) == ([True, True], [True, True])
    instances = [torch.from_numpy(label_lesions(mask)) for mask in (prediction, truth)]
    theirs = compute_panoptic_quality(
        *instances, output_confusion_matrix=True, match_iou_threshold=0.05
    )
    assert theirs[:3].tolist() == [1, 1, 1]
