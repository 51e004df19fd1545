from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferseg.study.cells import CellResult
from transferseg.study.rows import table_rows


def rows_of(cells, mode="max"):
    return table_rows(cells, score="dice", repeats=("seed", "fold"), mode=mode)


def test_cells_that_differ_in_the_repeats_alone_are_one_row():
    cells = [
        CellResult({"pretraining": "none", "seed": 0}, "done", {"dice": 0.5}),
        CellResult({"pretraining": "lungs", "seed": 0}, "done", {"dice": 0.25}),
        # the order in which the axes are named does not tell cells apart
        CellResult({"seed": 1, "pretraining": "none"}, "done", {"dice": 0.875}),
        CellResult({"seed": 2, "pretraining": "none"}, "done", {"dice": 0.25}),
    ]
    none, lungs = rows_of(cells)
    assert (none.axes, lungs.axes) == ({"pretraining": "none"}, {"pretraining": "lungs"})
    assert none.values == (0.5, 0.875, 0.25)
    assert none.mean == pytest.approx(0.541666666)
    assert (none.spread, none.best, none.worst, none.n) == (0.625, 0.875, 0.25, 3)
    # one run does not show how runs differ
    assert (lungs.mean, lungs.spread, lungs.best, lungs.n) == (0.25, None, 0.25, 1)


def test_the_best_may_be_the_lowest_and_the_spread_stays_positive():
    cells = [CellResult({"seed": k}, "done", {"dice": v}) for k, v in enumerate([3.0, 1.0, 2.0])]
    (row,) = rows_of(cells, mode="min")
    assert (row.best, row.worst, row.spread) == (1.0, 3.0, 2.0)


def test_only_done_cells_with_a_score_count():
    cells = [
        CellResult({"seed": 0}, "done", {"dice": 0.5}, {"encoder": 1.0}, seconds=10.0),
        CellResult({"seed": 1}, "done", {"dice": None}, {"encoder": 0.75}, seconds=20.0),
        CellResult({"seed": 2}, "done", {"iou": 0.5}, {"encoder": 0.875}, seconds=60.0),
        CellResult({"seed": 3}, "failed", {"dice": 0.9}, {"encoder": 0.1}, seconds=1.0),
        CellResult({"seed": 4}, "blocked"),
        CellResult({"seed": 5}, "missing"),
        CellResult({"seed": 6}, "missing"),
    ]
    (row,) = rows_of(cells)
    assert (row.values, row.mean, row.spread) == ((0.5,), 0.5, None)
    assert row.without == {"undefined": 2, "failed": 1, "blocked": 1, "missing": 2}
    assert (row.coverage, row.seconds) == ({"encoder": 0.75}, 30.0)


def test_a_part_that_one_repeat_did_not_transfer_is_not_covered():
    cells = [
        CellResult({"seed": 0}, "done", {"dice": 0.5}, {"encoder": 1.0, "decoder": 0.5}),
        CellResult({"seed": 1}, "done", {"dice": 0.5}, {"encoder": 1.0}),
    ]
    assert rows_of(cells)[0].coverage == {"encoder": 1.0, "decoder": 0.0}


def test_a_row_without_a_done_cell_has_no_numbers():
    (row,) = rows_of([CellResult({"seed": 0}, "failed"), CellResult({"seed": 1}, "missing")])
    empty = (row.mean, row.spread, row.best, row.worst, row.seconds, row.chain_samples)
    assert empty == (None,) * 6
    assert (row.n, row.coverage, row.without) == (0, {}, {"failed": 1, "missing": 1})


def test_costs_are_means_over_the_done_cells():
    costs = {"seconds": 2.0, "chain_seconds": 5.0, "samples_seen": 100, "chain_samples": 1000}
    cells = [
        CellResult({"seed": 0}, "done", {"dice": 0.5}, **costs),
        CellResult({"seed": 1}, "done", {"dice": 0.5}, **{k: 2 * v for k, v in costs.items()}),
    ]
    (row,) = rows_of(cells)
    assert {name: getattr(row, name) for name in costs} == {
        "seconds": 3.0, "chain_seconds": 7.5, "samples_seen": 150.0, "chain_samples": 1500.0
    }  # fmt: skip


values = st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=8)


@given(st.lists(values, min_size=1, max_size=3), st.randoms())
def test_the_order_of_the_repeats_changes_nothing(groups, shuffler: random.Random):
    """Against NumPy; and cells of a group may swap places."""

    def cells(groups):
        return [
            CellResult(
                {"group": index, "seed": seed, "fold": seed % 2},
                "done",
                {"dice": value},
                {"encoder": 1 / (1 + seed)},
                seconds=0.1 * seed,
            )
            for index, group in enumerate(groups)
            for seed, value in group
        ]

    numbered = [list(enumerate(group)) for group in groups]
    rows = rows_of(cells(numbered))
    for row, group in zip(rows, groups, strict=True):
        scores = np.array([value for value in group if value is not None])
        assert row.n == scores.size
        if scores.size:
            assert row.mean == pytest.approx(scores.mean(), rel=1e-9, abs=1e-9)
            assert (row.best, row.worst) == (scores.max(), scores.min())
        assert row.spread == (np.ptp(scores) if scores.size > 1 else None)
    shuffled = rows_of(cells([shuffler.sample(group, len(group)) for group in numbered]))
    assert [dataclasses.replace(row, values=tuple(sorted(row.values))) for row in rows] == [
        dataclasses.replace(row, values=tuple(sorted(row.values))) for row in shuffled
    ]
    assert [row.mean for row in rows] == [row.mean for row in shuffled]
