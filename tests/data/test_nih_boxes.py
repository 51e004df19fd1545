import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from transferseg.data.boxes import Box, BoxReader, masks_from_boxes
from transferseg.data.readers.nih_boxes import NIH_BOX_FINDINGS, NIHChestXray14Boxes
from transferseg.data.samples import Reader
from transferseg.data.splits import class_presence
from transferseg.data.validate import validate
from transferseg.errors import DataError

ENTRIES = """Image Index,Finding Labels,Follow-up #,Patient ID
00000002_000.png,Mass|Infiltration,0,2
00000001_001.png,No Finding,1,1
00000001_000.png,Infiltration,0,1
00000003_000.png,Hernia,0,3
00000004_000.png,Mass,0,4
"""
HEADER = "Image Index,Finding Label,Bbox [x,y,w,h]"
LINES = [
    "00000002_000.png,Mass,2.0,4.0,10.0,20.0",
    "00000001_000.png,Infiltrate,8.0,3.5,20.0,10.0",
    "00000002_000.png,Infiltrate,0,0,4,5",
]


@pytest.fixture
def tree(tmp_path, save):
    """Five listed images, one of which is not there; boxes in two."""
    (tmp_path / "Data_Entry_2017.csv").write_text(ENTRIES)
    for n, name in enumerate(["00000002_000", "00000001_001", "00000001_000", "00000003_000"]):
        save(f"images/{name}.png", np.full((32, 64), 40 * n, np.uint8))

    def write(lines, ending=""):
        text = "\n".join(f"{line}{ending}" for line in (HEADER, *lines))
        (tmp_path / "BBox_List_2017.csv").write_text(text)
        return tmp_path

    write(LINES)
    return write


@pytest.mark.parametrize("ending", ["", ",,,"])  # as stored anew, as published
def test_the_list_is_read_as_published(tree, ending):
    reader = pickle.loads(pickle.dumps(NIHChestXray14Boxes(tree(LINES, ending))))
    assert isinstance(reader, Reader)
    assert isinstance(reader, BoxReader)
    assert reader.ids == ("00000001_000.png", "00000002_000.png")
    assert reader.groups == ("1", "2")
    assert (reader.classes, reader.mode) == (NIH_BOX_FINDINGS, "multilabel")
    assert reader.boxes(0) == (Box(8, 3.5, 20, 10, "Infiltration"),)
    assert reader.boxes(1) == (Box(2, 4, 10, 20, "Mass"), Box(0, 0, 4, 5, "Infiltration"))
    sample = reader[1]
    assert (sample.image == 0).all()
    expected = np.zeros((32, 64, 8), np.uint8)
    expected[4:24, 2:12, reader.classes.index("Mass")] = 1
    expected[0:5, 0:4, reader.classes.index("Infiltration")] = 1
    np.testing.assert_array_equal(sample.mask, expected)
    np.testing.assert_array_equal(reader.presence, class_presence(reader))
    assert reader.skipped == ()
    assert validate(reader).problems == ()


@pytest.mark.parametrize("overlap", ["first", "last"])
def test_masks_are_painted_as_asked(tree, overlap):
    reader = NIHChestXray14Boxes(tree(LINES), mode="multiclass", shape="ellipse", overlap=overlap)
    assert reader.classes == ("background", *NIH_BOX_FINDINGS)
    expected = masks_from_boxes(
        reader.boxes(1), (32, 64), classes=reader.classes, mode="multiclass", shape="ellipse",
        overlap=overlap,
    )  # fmt: skip
    np.testing.assert_array_equal(reader[1].mask, expected)
    with pytest.raises(DataError, match=r"8 class\(es\) .* do not fit mode 'binary'"):
        NIHChestXray14Boxes(tree(LINES), mode="binary")


def test_images_without_a_finding_can_be_background(tree):
    """Not the one with a hernia: nobody boxed it, but it is there."""
    reader = NIHChestXray14Boxes(tree(LINES), without_boxes=True)
    assert reader.ids == ("00000001_000.png", "00000001_001.png", "00000002_000.png")
    assert reader.boxes(1) == ()
    assert (reader[1].image == 40).all()
    assert not reader[1].mask.any()


def test_boxes_for_images_of_another_size(tree):
    lines = ["00000002_000.png,Mass,256.0,512.0,128.0,256.0"]
    reader = NIHChestXray14Boxes(tree(lines), boxes_for=1024)
    assert reader.boxes(0) == (Box(16, 16, 8, 8, "Mass"),)  # the image is 64 wide and 32 high
    assert reader[0].mask.sum() == 64
    with pytest.raises(DataError, match=r"line 2: .* lies outside its image of 64x32 pixels"):
        NIHChestXray14Boxes(tree(lines))
    with pytest.raises(DataError, match="boxes_for must be"):
        NIHChestXray14Boxes(tree(lines), boxes_for=0)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("00000002_000.png,Mas,1,1,2,2", r"unknown finding 'Mas'.*Did you mean 'Mass'"),
        ("00000002_000.png,Hernia,1,1,2,2", "unknown finding 'Hernia'"),
        ("00000002_000.png,nan,1,1,2,2", "unknown finding 'nan'"),
        (
            "00000004_000.png,Mass,1,1,2,2",
            r"image '00000004_000\.png' is not in .*images.*partial=True",
        ),
        ("00000009_000.png,Mass,1,1,2,2", r"has no line in Data_Entry_2017\.csv to go by"),
        ("../00000002_000.png,Mass,1,1,2,2", "Image Index is '../0"),
        ("00000002_000.png,Mass,nan,1,2,2", "nan.* is no box"),
        ("00000002_000.png,Mass,1,,2,2", "x, y, w, h are '1, , 2, 2'"),
        ("00000002_000.png,Mass,1,1,-2,2", "a box of width -2"),
        ("00000002_000.png,Mass,1,1,2,0", "has no area"),
        ("00000002_000.png,Mass,1,1.6,2,0.8", "covers no pixel"),
        ("00000002_000.png,Mass,1", "the line is cut short"),
        ("00000002_000.png,Mass,1,40,2,2", "lies outside its image"),
        ("00000002_000.png,Mass,1,30,2,3", "sticks out of its image of 64x32 pixels by 1"),
    ],
)
def test_hostile_lines_are_named_or_left_out_and_counted(tree, line, match):
    root = tree([LINES[0], line, *LINES[1:]])
    with pytest.raises(DataError, match=rf"BBox_List_2017\.csv, line 3: .*{match}"):
        NIHChestXray14Boxes(root)
    reader = NIHChestXray14Boxes(root, invalid="skip")
    assert len(reader.skipped) == 1
    if line.startswith("00000002"):  # its other two boxes go with the one that is bad
        assert (reader.ids, reader.left_out) == (("00000001_000.png",), ("00000002_000.png",))
    else:
        assert (len(reader), reader.left_out) == (2, ())
        assert [len(reader.boxes(n)) for n in range(2)] == [1, 2]


def test_an_image_with_a_bad_box_is_no_background(tree):
    """Labelled "No Finding", but in the list of boxes."""
    root = tree([*LINES, "00000001_001.png,Mass,1,1,2,0"])
    reader = NIHChestXray14Boxes(root, without_boxes=True, invalid="skip")
    assert reader.ids == ("00000001_000.png", "00000002_000.png")
    assert reader.left_out == ("00000001_001.png",)


def test_lines_without_an_image_are_counted(tree):
    root = tree([*LINES, "00000004_000.png,Mass,1,1,2,2", "00000004_000.png,Mass,1,1,3,3"])
    reader = NIHChestXray14Boxes(root, partial=True)
    assert (len(reader), reader.lines_without_image, reader.skipped) == (2, 2, ())
    assert NIHChestXray14Boxes(tree(LINES)).lines_without_image == 0
    root = tree([*LINES, "00000009_000.png,Mass,1,1,2,2"])  # not for want of an archive
    with pytest.raises(DataError, match=r"has no line in Data_Entry_2017\.csv"):
        NIHChestXray14Boxes(root, partial=True)


def test_the_table_of_labels_is_read_as_asked(tree):
    root = tree(LINES)
    path = root / "Data_Entry_2017.csv"
    path.rename(root / "Data_Entry_2017_v2020.csv")
    assert len(NIHChestXray14Boxes(root)) == 2
    path.write_text(ENTRIES.replace("00000001_000.png,Infiltration", "00000001_000.png,Infil"))
    reader = NIHChestXray14Boxes(root, table=path.name, invalid="skip")
    assert reader.ids == ("00000002_000.png",)
    assert [text.split(": ")[0].rpartition("/")[2] for text in reader.skipped] == [
        "Data_Entry_2017.csv, line 4", "BBox_List_2017.csv, line 3"
    ]  # fmt: skip


def test_boxes_that_stick_out_can_be_cut(tree):
    reader = NIHChestXray14Boxes(tree(["00000002_000.png,Mass,1,30,2,3"]), outside="clip")
    assert reader[0].mask.sum() == 2 * 2


def test_other_tables_and_files_are_named(tree, truncate):
    root = tree(["00000002_000.png,Hernia,1,1,2,2"])
    with pytest.raises(DataError, match=r"no image to read; left out: .*'Hernia'"):
        NIHChestXray14Boxes(root, invalid="skip")
    root = tree(LINES)
    truncate(root / "images" / "00000002_000.png")
    with pytest.raises(DataError, match=r"00000002_000\.png"):
        NIHChestXray14Boxes(root)[1]
    (root / "Data_Entry_2017.csv").write_text(ENTRIES.replace("Hernia", "Hernai"))
    with pytest.raises(DataError, match=r"Data_Entry_2017\.csv, line 5: .*'Hernia'"):
        NIHChestXray14Boxes(root)
    (root / "BBox_List_2017.csv").write_text("Image Index,Finding Label,x,y,w,h\na,b,1,2,3,4\n")
    (root / "Data_Entry_2017.csv").write_text(ENTRIES)
    with pytest.raises(DataError, match=r"BBox_List_2017\.csv: column\(s\) 'Bbox \[x', 'h\]'"):
        NIHChestXray14Boxes(root)


def test_the_published_data():
    folder = os.environ.get("TRANSFERSEG_DATA")
    if not folder or not (Path(folder) / "nih_cxr14").is_dir():
        pytest.skip("TRANSFERSEG_DATA does not name a folder with nih_cxr14/")
    reader = NIHChestXray14Boxes(Path(folder) / "nih_cxr14")
    assert (len(reader), len(set(reader.groups)), reader.skipped) == (44, 42, ())
    assert sum(len(reader.boxes(n)) for n in range(len(reader))) == 49
    assert reader.presence[:, NIH_BOX_FINDINGS.index("Pneumonia")].sum() == 43
