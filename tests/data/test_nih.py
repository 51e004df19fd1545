import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from transferseg.data.readers.nih import NIH_FINDINGS, NIHChestXray14
from transferseg.data.samples import Reader
from transferseg.errors import DataError

COLUMNS = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID")


@pytest.fixture
def tree(tmp_path, save, write_csv):
    rows = [
        ("00000002_000.png", "Mass|Pleural_Thickening", "0", "2"),
        ("00000001_001.png", "No Finding", "1", "1"),
        ("00000001_000.png", "Hernia", "0", "1"),
    ]
    for name, *_ in rows:
        save(f"images/{name}", np.full((33, 32), len(name), np.uint8))

    def write(rows):
        write_csv(
            tmp_path / "Data_Entry_2017.csv",
            COLUMNS,
            [dict(zip(COLUMNS, row, strict=True)) for row in rows],
        )
        return tmp_path

    write(rows)
    return tmp_path, rows, write


def test_labels_and_patients(tree):
    reader = pickle.loads(pickle.dumps(NIHChestXray14(tree[0])))
    assert isinstance(reader, Reader)
    assert reader.ids == ("00000001_000.png", "00000001_001.png", "00000002_000.png")
    assert reader.groups == ("1", "1", "2")
    assert len(reader.classes) == 14
    found = [[NIH_FINDINGS[k] for k in np.flatnonzero(s.label)] for s in reader]
    assert found == [["Hernia"], [], ["Mass", "Pleural_Thickening"]]
    assert reader[0].label.dtype == np.float32
    assert reader[0].mask is None
    np.testing.assert_array_equal(reader.labels, np.stack([s.label for s in reader]))


def test_archives_side_by_side(tree, save):
    root = tree[0]
    for number, name in (("001", "00000001_000.png"), ("012", "00000002_000.png")):
        (root / f"images_{number}" / "images").mkdir(parents=True)
        (root / "images" / name).rename(root / f"images_{number}" / "images" / name)
        (root / f"images_{number}" / "images" / "notes.txt").touch()  # of one name in both
    reader = NIHChestXray14(root)
    assert len(reader) == 3
    assert [path.parent.parent.name for path in reader.paths.values()] == [
        "images_001", root.name, "images_012"
    ]  # fmt: skip
    save("images_012/images/00000001_001.png", np.zeros((33, 32), np.uint8))
    for invalid in ("raise", "skip"):
        with pytest.raises(
            DataError,
            match=r"/images/0+1_001\.png and .*images_012/images/0+1_001\.png share a name",
        ):
            NIHChestXray14(root, invalid=invalid)


def test_the_table_has_two_names(tree):
    root, *_ = tree
    old, new = root / "Data_Entry_2017.csv", root / "Data_Entry_2017_v2020.csv"
    assert NIHChestXray14(root).table == old
    new.write_text(old.read_text().replace("Hernia", "Mas"))
    with pytest.raises(DataError, match=r"has Data_Entry_2017_v2020\.csv and Data_.*table="):
        NIHChestXray14(root)
    assert len(NIHChestXray14(root, table=old.name)) == 3
    with pytest.raises(DataError, match=r"Data_Entry_2017_v2020\.csv, line 4: .*'Mas'"):
        NIHChestXray14(root, table=new.name)
    old.rename(new)
    assert NIHChestXray14(root).table == new
    new.rename(root / "mine.csv")
    assert len(NIHChestXray14(root, table="mine.csv")) == 3
    with pytest.raises(DataError, match=r"has neither Data_Entry_2017_v2020\.csv nor Data_Entry_2"):
        NIHChestXray14(root)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (("a.png", "Mas", "0", "3"), r"line 5: unknown finding 'Mas'.*Did you mean 'Mass'"),
        (("a.png", "No Finding|Mass", "0", "3"), "line 5: 'No Finding' stands beside"),
        (("a.png", "", "0", "3"), "line 5: unknown finding ''"),
        (("a.png", "Mass", "0", "3"), r"line 5: image 'a\.png' is not in .*partial=True"),
        (("../a.png", "Mass", "0", "3"), "line 5: Image Index is"),
        (("00000002_000.png", "Mass", "0", "3"), "line 5: image .* is listed a second time"),
        (("b.png", "Mass", "0", ""), r"line 5: image 'b\.png' has no Patient ID"),
    ],
)
def test_hostile_lines_are_named_or_left_out(tree, row, match):
    root, rows, write = tree
    write([*rows, row])
    with pytest.raises(DataError, match=match):
        NIHChestXray14(root)
    reader = NIHChestXray14(root, invalid="skip")
    assert (len(reader), len(reader.skipped), reader.lines_without_image) == (3, 1, 0)
    with pytest.raises(DataError, match=match):
        raise DataError(reader.skipped[0])


def test_a_line_cut_short_is_named_or_left_out(tree):
    path = tree[0] / "Data_Entry_2017.csv"
    path.write_text(path.read_text().rstrip().removesuffix("0,1"))  # of an image that is there
    with pytest.raises(DataError, match=r"csv, line 4: the line is cut short.*skip"):
        NIHChestXray14(tree[0])
    reader = NIHChestXray14(tree[0], invalid="skip")
    assert (reader.ids, len(reader.skipped)) == (("00000001_001.png", "00000002_000.png"), 1)


def test_partial_downloads_are_counted(tree):
    root, rows, write = tree
    write([*rows, ("a.png", "Mass", "0", "3")])
    reader = NIHChestXray14(root, partial=True)
    assert (len(reader), reader.lines_without_image) == (3, 1)
    assert reader.names_without_image == {"a.png"}
    both = NIHChestXray14(root, partial=True, invalid="skip")
    assert (both.lines_without_image, both.skipped) == (1, ())
    write([("a.png", "Mass", "0", "3")])
    with pytest.raises(DataError, match="1 line"):
        NIHChestXray14(root, partial=True)


def test_a_damaged_image_is_named(tree, truncate):
    truncate(tree[0] / "images" / "00000001_000.png")
    with pytest.raises(DataError, match=r"00000001_000\.png"):
        NIHChestXray14(tree[0])[0]


def test_the_published_data():
    folder = os.environ.get("TRANSFERSEG_DATA")
    if not folder or not (Path(folder) / "nih_cxr14").is_dir():
        pytest.skip("TRANSFERSEG_DATA does not name a folder with nih_cxr14/")
    reader = NIHChestXray14(Path(folder) / "nih_cxr14")
    assert (len(reader), len(set(reader.groups))) == (1000, 682)
    assert reader.labels[:, NIH_FINDINGS.index("Pneumonia")].sum() == 474
