from __future__ import annotations

import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferseg.errors import DataError
from transferseg.study.cells import CellResult, axis_text

finite = st.floats(allow_nan=False, allow_infinity=False)
labels = st.text(max_size=5)
amounts = st.floats(0, 1e9)
cells = st.builds(
    CellResult,
    axes=st.dictionaries(labels, labels | finite | st.integers()),
    status=st.sampled_from(["done", "failed", "blocked", "missing"]),
    scores=st.dictionaries(labels, st.none() | st.floats()),
    coverage=st.dictionaries(labels, st.floats(0, 1)),
    chain=st.lists(labels).map(tuple),
    seconds=amounts,
    chain_seconds=amounts,
    samples_seen=st.integers(0, 10**9),
    chain_samples=st.integers(0, 10**9),
    error=labels,
)


@given(cells)
def test_a_cell_comes_back_from_json_and_from_another_process(cell):
    text = json.dumps(cell.to_dict(), allow_nan=False)
    assert CellResult.from_dict(json.loads(text)) == cell
    assert pickle.loads(pickle.dumps(cell)) == cell


def test_what_is_not_finite_is_undefined():
    scores = {"a": math.nan, "b": math.inf, "c": 0.5, "d": None}
    cell = CellResult({}, "done", scores)
    assert cell.scores == {"a": None, "b": None, "c": 0.5, "d": None}


def test_a_cell_keeps_its_own_copies():
    axes = {"seed": 0}
    cell = CellResult(axes, "done", chain=["a", "b"])
    axes["seed"] = 1
    assert (cell.axes, cell.chain) == ({"seed": 0}, ("a", "b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "finished"}, "unknown status 'finished'"),
        ({"axes": {"parts": None}}, "axis 'parts' is None; expected a label or a finite number"),
        ({"axes": {"rate": math.nan}}, "axis 'rate' is nan"),
        ({"axes": 3}, "does not fit"),
        ({"coverage": {"encoder": 98.0}}, r"coverage of 'encoder' must lie in 0\.\.1, got 98"),
        ({"coverage": {"encoder": math.nan}}, "got nan"),
        ({"scores": {"dice": "high"}}, "does not fit.*high"),
        ({"chain": "lungs"}, "a list of stage names, got 'lungs'"),
        ({"seconds": -1.0}, "seconds must be a finite number from 0, got -1"),
        ({"chain_samples": "8"}, "chain_samples must be a finite number"),
        ({"chain_second": 1.0}, "Did you mean 'chain_second"),
    ],
)
def test_values_that_no_cell_has_are_named(change, message):
    with pytest.raises(DataError, match=message):
        CellResult.from_dict({"axes": {"seed": 0}, "status": "done", **change})


def test_a_missing_field_is_named():
    with pytest.raises(DataError, match="status"):
        CellResult.from_dict({"axes": {}})
    with pytest.raises(DataError, match="a dict of fields, got list"):
        CellResult.from_dict([1])


def test_a_label_stands_on_one_line():
    assert axis_text("2-step\n autoencoder") == "2-step autoencoder"
    assert [axis_text(value) for value in (3, 0.1, 1e-5, None)] == ["3", "0.1", "1e-05", "-"]
