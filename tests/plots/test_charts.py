from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from transferseg.errors import DataError
from transferseg.plots import PALETTE, bars, curves


def test_a_curve_has_a_point_a_row_that_has_the_value():
    rows = [
        {"epoch": 1, "loss": 0.9},
        {"epoch": 2, "loss": 0.7, "dice": 0.4},
        {"epoch": 3, "loss": float("inf"), "dice": None},
        {"epoch": 4, "loss": 0.5, "dice": 0.8},
    ]
    ax = curves({"run": rows}, "dice")
    assert ax.lines[0].get_xdata().tolist() == [2, 4]
    assert ax.lines[0].get_ydata().tolist() == [0.4, 0.8]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "dice")
    gap = curves({"run": rows}, "loss").lines[0].get_ydata()
    np.testing.assert_array_equal(gap, [0.9, 0.7, np.nan, 0.5])


def test_runs_differ_in_colour_then_in_line_style():
    runs = {f"run {k}": [{"step": 0, "loss": k}] for k in range(5)}
    ax = curves(runs, "loss", x="step", colours=["red", "blue"])
    looks = [(line.get_color(), line.get_linestyle()) for line in ax.lines]
    assert looks == [("red", "-"), ("blue", "-"), ("red", "--"), ("blue", "--"), ("red", ":")]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(runs)


@pytest.mark.parametrize(
    ("histories", "value", "message"),
    [
        ({}, "loss", "at least one run"),
        ({"a": [{"epoch": 1, "loss": 1.0}]}, "los", "no row of 'a' .* mean 'loss'"),
        ({"a": []}, "loss", "no row of 'a'"),
        ({"a": [{"epochs": 1, "loss": 1.0}]}, "loss", "'a' lacks .* mean 'epochs'"),
    ],
)
def test_histories_that_cannot_be_drawn_say_why(histories, value, message):
    with pytest.raises(DataError, match=message):
        curves(histories, value)


def test_bars_are_means_and_their_lines_go_from_worst_to_best():
    ax = bars(
        {"lungs": {"scratch": [0.5, 0.6, 0.1], "transfer": 0.8}, "heart": {"transfer": [0.7, 0.9]}},
        ylabel="Dice",
    )
    scratch, transfer = (c for c in ax.containers if c.get_label() in ("scratch", "transfer"))
    assert [bar.get_height() for bar in scratch] == pytest.approx([0.4])
    assert [bar.get_height() for bar in transfer] == pytest.approx([0.8, 0.8])
    assert {to_hex(bar.get_facecolor()).upper() for bar in transfer} == {PALETTE[1]}
    middles = [bar.get_x() + bar.get_width() / 2 for bar in (*scratch, *transfer)]
    assert middles == pytest.approx([-0.2, 0.2, 1.2])
    spans = [
        segment.tolist()
        for lines in ax.collections
        if isinstance(lines, LineCollection)
        for segment in lines.get_segments()
    ]
    # one value, no line
    np.testing.assert_allclose(spans, [[[-0.2, 0.1], [-0.2, 0.6]], [[1.2, 0.7], [1.2, 0.9]]])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["lungs", "heart"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["scratch", "transfer"]
    assert ax.get_ylabel() == "Dice"


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "1 to 14 series .* got 0"),
        ({"group": {}}, "1 to 14 series .* got 0"),
        ({"group": dict.fromkeys(map(str, range(15)), 1.0)}, "got 15"),
        ({"group": {"a": [0.5, float("nan")]}}, "'group', 'a' must hold .* leave it out"),
        ({"group": {"a": []}}, "one finite value or more"),
    ],
)
def test_scores_that_cannot_be_drawn_say_why(scores, message):
    with pytest.raises(DataError, match=message):
        bars(scores)
