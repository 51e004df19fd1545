import pytest

from transferseg.data.hostile import HostileRows
from transferseg.errors import DataError


def read(rows):
    kept = []
    for number in range(4):
        with rows.row(f"t.csv, line {number}"):
            if number == 1:
                raise DataError("an odd number.")
            if number == 3:
                raise DataError("t.csv, line 3: has its place.")
            kept.append(number)
    return kept


def test_rows_are_left_out_and_counted():
    rows = HostileRows("skip")
    assert read(rows) == [0, 2]
    assert rows.messages == ["t.csv, line 1: an odd number.", "t.csv, line 3: has its place."]


def test_the_first_row_is_an_error():
    with pytest.raises(DataError, match=r"^t\.csv, line 1: an odd number\. .*invalid='skip'"):
        read(HostileRows("raise"))


def test_only_what_is_known_to_be_wrong_is_left_out():
    with pytest.raises(KeyError), HostileRows("skip").row("t.csv, line 1"):
        raise KeyError("a bug")
    with pytest.raises(DataError, match=r"unknown invalid 'skp'.*Did you mean 'skip'"):
        HostileRows("skp")
