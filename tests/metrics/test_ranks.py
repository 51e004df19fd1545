"""Rank correlation: the numbers of Zhou 2022, enumeration, scipy; the arithmetic of its scores."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from transferseg.errors import DataError
from transferseg.metrics import rank_correlation, ranks, spread

# Zhou 2022: IoU, "OA" and Dice in % of Tables 1 to 4
TABLES = {
    "FCN": (74.78, 84.37, 85.57),
    "PSP": (76.81, 83.94, 86.88),
    "DeepLabV3": (79.15, 85.87, 88.36),
    "UPerNet": (79.88, 86.21, 88.82),
    "UPerNet R50": (80.11, 86.71, 88.96),
    "UPerNet ViT-B": (82.88, 88.44, 90.64),
    "UPerNet Swin-B": (84.88, 90.34, 91.82),
    "FCN HRNet-48 ImageNet": (77.79, 85.17, 87.51),
    "FCN HRNet-48 Cityscapes": (81.76, 87.4, 89.96),
    "FCN HRNet-48 Pascal VOC 2012": (82.95, 88.37, 90.68),
    "FCN HRNet-48 ADE20k": (83.76, 89.06, 91.16),
    "FCN R50": (70.85, 82.3, 82.94),
    "FCN R101": (79.3, 85.93, 88.46),
}
CITYSCAPES = (71.11, 74.84, 76.70, 76.02)
IMAGENET = (76.1, 77.9, 84.5)
FOUR = ("FCN", "PSP", "DeepLabV3", "UPerNet")
THREE = ("UPerNet R50", "UPerNet ViT-B", "UPerNet Swin-B")


@pytest.mark.parametrize("column", [0, 2])
def test_table_1_of_zhou(column):
    found = rank_correlation(CITYSCAPES, [TABLES[name][column] for name in FOUR])
    assert (round(found.spearman, 3), round(found.spearman_p, 3)) == (0.8, 0.2)
    # of the 24 orders, 8 are as far from chance
    assert found.spearman_exact_p == pytest.approx(8 / 24)
    assert found.kendall == pytest.approx(2 / 3)
    assert found.kendall_p == pytest.approx(8 / 24)


@pytest.mark.parametrize("column", [0, 1, 2])
def test_table_2_of_zhou(column):
    """rho 1 at p 0 says the paper; of three models, two orders in six are perfect."""
    found = rank_correlation(IMAGENET, [TABLES[name][column] for name in THREE])
    assert (found.spearman, found.spearman_p) == (pytest.approx(1), pytest.approx(0, abs=1e-6))
    assert found.spearman_exact_p == pytest.approx(1 / 3)
    assert found.kendall_p == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", TABLES)
def test_the_dice_of_zhou_is_that_of_the_pooled_foreground(name):
    """Dice = 2 IoU / (1 + IoU) holds for one pair of masks, not for means over images."""
    iou, _, dice = (value / 100 for value in TABLES[name])
    assert 2 * iou / (1 + iou) == pytest.approx(dice, abs=1.01e-4)  # both rounded to 0.01 %


@pytest.mark.parametrize("name", TABLES)
def test_the_oa_of_zhou_is_no_overall_accuracy(name):
    """It fits a recall; as an overall accuracy it needs polyps on about half of every image.

    The wrong pixels FP + FN are (1 - IoU) U with the union U; since TP = IoU U <= T, they are at
    most T (1 / IoU - 1) for T polyp pixels, and 2 T (1 - Dice) for a prediction of the right size.
    An accuracy a over N pixels has (1 - a) N wrong ones, which gives the part T / N.
    """
    iou, oa, dice = (value / 100 for value in TABLES[name])
    precision = 1 / (2 / dice - 1 / oa)
    assert oa < precision < 1  # as a recall, a precision goes with it
    least, usual = (1 - oa) / (1 / iou - 1), (1 - oa) / (2 * (1 - dice))
    assert 0.40 < least < usual
    assert 0.48 < usual < 0.65


def test_enumeration_and_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=6), rng.integers(0, 4, size=6).astype(float)  # with ties
    found = rank_correlation(x, y)
    theirs, tau = stats.spearmanr(x, y), stats.kendalltau(x, y)
    assert (found.spearman, found.spearman_p) == pytest.approx(tuple(theirs))
    assert (found.kendall, found.kendall_p) == pytest.approx(tuple(tau))
    every = [abs(stats.spearmanr(x, order)[0]) for order in permutations(y)]
    expected = np.mean(np.array(every) >= abs(found.spearman) - 1e-9)
    assert found.spearman_exact_p == pytest.approx(expected)


def test_undefined_and_refused():
    flat = rank_correlation([1, 2, 3], [5, 5, 5])
    assert math.isnan(flat.spearman)
    assert math.isnan(flat.kendall)
    with pytest.raises(DataError, match="three or more"):
        rank_correlation([1, 2], [1, 2])
    with pytest.raises(DataError, match="three or more"):
        rank_correlation([1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(DataError, match="finite score on both sides"):
        rank_correlation([1, 2, math.nan], [1, 2, 3])


def test_mean_and_best_minus_worst():
    runs = spread([0.31, math.nan, 0.25, 0.4])
    assert (runs.mean, runs.best_minus_worst, runs.n) == (
        pytest.approx(0.32),
        pytest.approx(0.15),
        3,
    )
    assert math.isnan(spread([]).mean)
    assert math.isnan(spread([0.3]).best_minus_worst)


@pytest.mark.parametrize("falls", [False, True])
@pytest.mark.parametrize("x", [[1, 2, 3, 4, 5], [1, 1, 3, 4, 5], [1, 1, 3, 4, 4], [1, 2, 2, 2, 5]])
def test_a_perfect_order_of_many_has_an_exact_p_value_above_0(x, falls, monkeypatch):
    """The formula of long lists, on lists short enough to enumerate: with ties, up and down."""
    y = [-value for value in x] if falls else x
    every = rank_correlation(x, y)
    monkeypatch.setattr(ranks, "_EXACT", 3)
    found = rank_correlation(x, y)
    assert found.spearman_exact_p == pytest.approx(every.spearman_exact_p)
    assert rank_correlation(x, [*y[:3], y[4], y[3]]).spearman_exact_p in (
        None,
        every.spearman_exact_p,
    )


def test_the_p_value_of_nine_in_order():
    found = rank_correlation(range(9), range(9))
    assert found.spearman_p == pytest.approx(0, abs=1e-12)  # as scipy and papers print it
    assert found.spearman_exact_p == found.kendall_p == pytest.approx(2 / math.factorial(9))
    assert rank_correlation(range(9), [*range(7), 8, 7]).spearman_exact_p is None
