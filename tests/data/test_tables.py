import pytest

from transferseg.data.tables import read_groups, read_header, read_rows
from transferseg.errors import DataError


@pytest.fixture
def table(tmp_path):
    def write(text):
        (tmp_path / "t.csv").write_text(text)
        return tmp_path / "t.csv"

    return write


def test_a_line_cut_short_is_an_error_or_one_when_it_is_asked(table):
    path = table("a,b,c\n1,2,3\n4\n5,6\n")
    with pytest.raises(DataError, match=r"t\.csv, line 3: the line is cut short"):
        read_rows(path, ("a", "b"))
    rows = read_rows(path, ("a", "b"), cut=True)
    assert [row["a"] for row in rows] == ["1", "4", "5"]
    assert rows[2]["b"] == "6"  # what it lacks is not wanted
    for ask in (lambda row: row["b"], lambda row: row.whole("b")):
        with pytest.raises(DataError, match=r"t\.csv, line 3: the line is cut short"):
            ask(rows[1])


def test_the_header(table):
    assert read_header(table("\ufeffa,b\n")) == ("a", "b")
    assert read_header(table("")) == ()
    with pytest.raises(DataError, match="the file does not exist"):
        read_header(table("").with_name("gone.csv"))


def test_groups_of_names(table):
    groups = read_groups(table("name,p\nx,1\ny,\nx,1\n"), "name", "p")
    assert groups == {"x": "1", "y": ""}
    for other in ("2", ""):
        path = table(f"name,p\nx,1\nx,{other}\n")
        with pytest.raises(DataError, match=rf"line 3: 'x' has p '{other}', before '1'"):
            read_groups(path, "name", "p")
