"""Rank correlation of source and target scores, and the spread of repeated runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from transferseg.errors import DataError
from transferseg.metrics.tables import mean

#: up to so many pairs, the exact p-value is that of every order
_EXACT = 8


@dataclass(frozen=True)
class RankCorrelation:
    """Whether models that are better at the source are better at the target.

    Attributes:
        spearman: rho, -1..1; NaN where one side does not vary.
        spearman_p: two-sided, from the t distribution, as papers and scipy print it. It is 0 for a
            perfect order however few pairs there are.
        spearman_exact_p: two-sided, from every order of the target; above 8 pairs None, but for a
            perfect order.
        kendall: tau-b, -1..1.
        kendall_p: two-sided, as scipy gives it (exact for few pairs without ties).
        n: pairs.

    Example:
        >>> print(rank_correlation([76.1, 77.9, 84.5], [80.11, 82.88, 84.88]))
        Spearman 1.000 (p = 0.000, exact p = 0.333), Kendall 1.000 (p = 0.333), n=3
    """

    spearman: float
    spearman_p: float
    spearman_exact_p: float | None
    kendall: float
    kendall_p: float
    n: int

    def __str__(self) -> str:
        exact = "" if self.spearman_exact_p is None else f", exact p = {self.spearman_exact_p:.3f}"
        first = f"Spearman {self.spearman:.3f} (p = {self.spearman_p:.3f}{exact})"
        return f"{first}, Kendall {self.kendall:.3f} (p = {self.kendall_p:.3f}), n={self.n}"


def rank_correlation(source: Sequence[float], target: Sequence[float]) -> RankCorrelation:
    """Spearman's and Kendall's rank correlation of source and target scores.

    Args:
        source: one score a model, such as its mIoU on the source data.
        target: of the same models, such as IoU after fine-tuning.

    Raises:
        DataError: lengths that differ, fewer than three models, or a score that is not finite.

    Source: Zhou 2022 (Spearman); scipy.stats.spearmanr and scipy.stats.kendalltau.

    Example:
        >>> found = rank_correlation([71.11, 74.84, 76.70, 76.02], [74.78, 76.81, 79.15, 79.88])
        >>> round(found.spearman, 3), round(found.spearman_p, 3)
        (0.8, 0.2)
    """
    x, y = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3:
        raise DataError(
            f"scores of the same three or more models are needed, got {x.shape} and {y.shape}."
        )
    if not (np.isfinite(x) & np.isfinite(y)).all():
        raise DataError("every model needs a finite score on both sides; leave the others out.")
    if (x == x[0]).all() or (y == y[0]).all():
        nan = math.nan
        return RankCorrelation(nan, nan, None, nan, nan, len(x))
    rho, tau = stats.spearmanr(x, y), stats.kendalltau(x, y)
    return RankCorrelation(
        spearman=float(rho.statistic),
        spearman_p=float(rho.pvalue),
        spearman_exact_p=_exact_p(x, y),
        kendall=float(tau.statistic),
        kendall_p=float(tau.pvalue),
        n=len(x),
    )


def _exact_p(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Part of the orders of y whose rho is at least as far from 0."""
    ranks, others = (stats.rankdata(values) for values in (x, y))
    turned = len(x) + 1 - others
    if len(x) > _EXACT:
        if not (np.array_equal(ranks, others) or np.array_equal(ranks, turned)):
            return None
        # the one order, and the reverse if the ties allow it, of all n!, tied values being alike
        alike = math.prod(map(math.factorial, np.unique(others, return_counts=True)[1].tolist()))
        ways = 2 if np.array_equal(np.sort(others), np.sort(turned)) else 1
        return ways * alike / math.factorial(len(x))
    centred = ranks - ranks.mean()
    orders = np.array(list(permutations(others - others.mean())))
    products = np.abs(orders @ centred)
    return float((products >= abs(centred @ (others - others.mean())) - 1e-9).mean())


@dataclass(frozen=True)
class Spread:
    """Repeated runs as Merand 2021 prints them: mean ± best minus worst, no standard deviation.

    Attributes:
        mean: of the runs, NaN without one.
        best_minus_worst: largest minus least, never below 0; NaN below two runs, since one says
            nothing about how runs differ.
        n: runs with a score.

    Source: Merand 2021, Table 3.

    Example:
        >>> print(spread([0.37, 0.39, 0.41]))
        0.3900 ± 0.0400 (best minus worst, n=3)
    """

    mean: float
    best_minus_worst: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.best_minus_worst:.4f} (best minus worst, n={self.n})"


def spread(values: Sequence[float]) -> Spread:
    """Mean and best minus worst of repeated runs; NaN, a run without a score, counts nowhere.

    Example:
        >>> spread([0.5, float("nan")])
        Spread(mean=0.5, best_minus_worst=nan, n=1)
    """
    defined = [float(value) for value in values if not math.isnan(value)]
    apart = max(defined) - min(defined) if len(defined) > 1 else math.nan
    return Spread(mean=mean(defined), best_minus_worst=apart, n=len(defined))
