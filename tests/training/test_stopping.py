from __future__ import annotations

import math

import numpy as np
import pytest

from transferseg.errors import TrainingError
from transferseg.training import EarlyStopping


def test_the_sequence():
    stopping = EarlyStopping(patience=2, minimum_delta=0.1)
    stops = []
    better = []
    for score in (0.5, 0.55, 0.61, math.nan, 0.7, 0.9):
        better.append(stopping.update(score))
        stops.append(stopping.should_stop)
    # every better score is the best; but 0.7 does not beat 0.61, which beat 0.5 by more than 0.1
    assert better == [True, True, True, False, True, True]
    assert stops == [False, False, False, False, True, False]
    assert (stopping.best, stopping.best_count, stopping.count) == (0.9, 6, 6)


def test_the_best_is_the_best_by_however_little():
    stopping = EarlyStopping(patience=np.int64(3), minimum_delta=0.2)
    for score in (0.5, 0.55, 0.58):
        stopping.update(score)
    assert (stopping.best, stopping.best_count, stopping.should_stop) == (0.58, 3, False)
    stopping.update(0.6)
    assert stopping.should_stop


def test_lower_is_better():
    stopping = EarlyStopping(patience=1, mode="min")
    assert [stopping.update(x) for x in (3.0, 2.0, 2.0)] == [True, True, False]
    assert stopping.should_stop


def test_an_infinity_is_no_better_than_another():
    stopping = EarlyStopping(patience=2, mode="min")
    assert [stopping.update(math.inf) for _ in range(3)] == [True, False, False]
    assert (stopping.best_count, stopping.should_stop) == (1, True)
    assert stopping.update(3.0)


def test_without_patience_it_never_stops():
    stopping = EarlyStopping()
    for _ in range(50):
        stopping.update(math.nan)
    assert not stopping.should_stop
    assert stopping.best is None


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 0},
        {"patience": 1.5},
        {"patience": math.nan},
        {"patience": True},
        {"minimum_delta": -1.0},
        {"minimum_delta": math.nan},
        {"mode": "maximum"},
    ],
)
def test_errors(options):
    with pytest.raises(TrainingError, match=next(iter(options))):
        EarlyStopping(**options)
