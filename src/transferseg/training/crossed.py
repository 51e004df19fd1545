"""What a cross-validation has found: the counts of its folds, and the scores of all images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from transferseg.data.folds import Fold
from transferseg.training.evaluate import Metric
from transferseg.training.history import History
from transferseg.training.judge import flat_scores


@dataclass(frozen=True)
class Spread:
    """One score over the folds.

    Attributes:
        pooled: of the counts of all images, each counted by the model that has not seen it.
        mean: of the folds' scores, those that are undefined (NaN) left out.
        best_minus_worst: between the folds.
        folds: how many have the score.
    """

    pooled: float
    mean: float
    best_minus_worst: float
    folds: int


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The result of `cross_validate`.

    Attributes:
        folds: as they were given.
        histories: of the training of each fold.
        fold_counts: of each fold, what was counted on the images that it held out: "scores" (the
            `metrics`, if given) and "loss".

    Example:
        >>> from torch.nn.functional import mse_loss
        >>> from transferseg.training import MeanLoss
        >>> mean = MeanLoss(mse_loss)
        >>> result = CrossValidation((Fold((1,), (0,)),), (History(()),), ({"loss": mean},))
        >>> result.counts["loss"] is mean
        True
    """

    folds: tuple[Fold, ...]
    histories: tuple[History, ...]
    fold_counts: tuple[Mapping[str, Metric[Any]], ...]

    @property
    def counts(self) -> dict[str, Metric[Any]]:
        """The counts of all folds together: every image once."""
        return {
            name: reduce(add, (counts[name] for counts in self.fold_counts))
            for name in self.fold_counts[0]
        }

    @property
    def scores(self) -> dict[str, float]:
        """Scores of all images together, by name; the mean loss is "loss"."""
        return _scores(self.counts)

    @property
    def fold_scores(self) -> tuple[dict[str, float], ...]:
        """Scores of the images that each fold held out."""
        return tuple(_scores(counts) for counts in self.fold_counts)

    def summary(self) -> dict[str, Spread]:
        """Of every score the pooled value, the mean over the folds, and best minus worst."""
        pooled, each = self.scores, self.fold_scores
        found = {}
        for name, value in pooled.items():
            values = [own for scores in each if not math.isnan(own := scores.get(name, math.nan))]
            mean = sum(values) / len(values) if values else math.nan
            spread = max(values) - min(values) if values else math.nan
            found[name] = Spread(value, mean, spread, len(values))
        return found


def _scores(counts: Mapping[str, Metric[Any]]) -> dict[str, float]:
    return flat_scores({name: metric.scores() for name, metric in counts.items()})
