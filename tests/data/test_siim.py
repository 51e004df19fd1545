import pickle
import sys

import numpy as np
import pytest

from transferseg.data.boxes import Box, BoxReader, masks_from_boxes
from transferseg.data.readers.siim import SIIM_CLASSES, SIIMCovid19
from transferseg.data.samples import Reader
from transferseg.data.splits import class_presence
from transferseg.data.validate import validate
from transferseg.errors import DataError

IMAGE = ("id", "boxes", "label", "StudyInstanceUID")
STUDY = ("id", "Negative for Pneumonia", "Typical Appearance", "Indeterminate Appearance",
         "Atypical Appearance")  # fmt: skip
NONE = "none 1 0 0 1 1"


class Tree:
    """Four images of three studies of two patients: typical (two images), atypical, negative."""

    def __init__(self, root, write_csv, save_dicom):
        self.root, self.write_csv = root, write_csv
        rng = np.random.default_rng(0)
        self.pixels = {}
        places = {"d4": "s3/x/d4", "c3": "s2/x/c3", "b2": "s1/y/b2", "a1": "s1/x/a1"}
        for name, place in places.items():
            self.pixels[name] = rng.integers(0, 4096, (32, 40), dtype=np.uint16)
            patient = "p2" if name == "d4" else "p1"
            save_dicom(f"train/{place}.dcm", self.pixels[name], PatientID=patient)
        self.studies = [("s1_study", 0, 1, 0, 0), ("s2_study", 0, 0, 0, 1),
                        ("s3_study", 1, 0, 0, 0)]  # fmt: skip
        two = "opacity 1 2 4 12 24 opacity 1 20.0 3.5 30.0 13.5"
        self.images = [
            ("d4_image", "", NONE, "s3"),
            ("c3_image", "[{'x': 1, 'y': 2, 'width': 3, 'height': 4}]", "opacity 1 1 2 4 6", "s2"),
            ("b2_image", "", NONE, "s1"),
            ("a1_image", "[{'x': 2, ...}]", two, "s1"),
        ]
        self.write()

    def write(self):
        for name, columns, rows in (
            ("train_image_level.csv", IMAGE, self.images),
            ("train_study_level.csv", STUDY, self.studies),
        ):
            lines = [dict(zip(columns, row, strict=True)) for row in rows]
            self.write_csv(self.root / name, columns, lines)


@pytest.fixture
def tree(tmp_path, write_csv, save_dicom):
    return Tree(tmp_path, write_csv, save_dicom)


def test_the_tree_is_read_as_published(tree):
    reader = pickle.loads(pickle.dumps(SIIMCovid19(tree.root, without_boxes="all")))
    assert isinstance(reader, Reader)
    assert isinstance(reader, BoxReader)
    assert reader.ids == ("a1", "b2", "c3", "d4")
    assert reader.groups == ("p1", "p1", "p1", "p2")
    assert reader.appearances == ("typical", "typical", "atypical", "negative")
    assert (reader.mode, reader.classes) == ("multiclass", SIIM_CLASSES)
    assert (reader.negatives, reader.unboxed, reader.skipped) == (1, 1, ())
    assert [reader.boxes(n) for n in range(4)] == [
        (Box(2, 4, 10, 20, "typical"), Box(20, 3.5, 10, 10, "typical")),
        (),
        (Box(1, 2, 3, 4, "atypical"),),
        (),
    ]
    expected = np.zeros((32, 40), np.uint8)
    expected[4:24, 2:12] = 1
    expected[3:13, 20:30] = 1
    np.testing.assert_array_equal(reader[0].mask, expected)
    assert not reader[1].mask.any()  # the box of 1x1 pixels paints nothing
    assert not reader[3].mask.any()
    assert np.argwhere(reader[2].mask == 3).shape == (12, 2)
    full_range = np.rint(tree.pixels["a1"] / 4095 * 65535)
    np.testing.assert_array_equal(reader[0].image, full_range)
    assert reader[0].image.dtype == np.uint16
    np.testing.assert_array_equal(reader.presence, class_presence(reader))
    assert validate(reader).problems == ()


def test_modes_and_shapes(tree):
    reader = SIIMCovid19(tree.root, mode="multilabel", shape="ellipse")
    assert reader.classes == ("typical", "indeterminate", "atypical")
    expected = masks_from_boxes(reader.boxes(0), (32, 40), classes=reader.classes, shape="ellipse")
    assert 200 < expected.sum() < 300
    np.testing.assert_array_equal(reader[0].mask, expected)
    reader = SIIMCovid19(tree.root, mode="binary", without_boxes="none")
    assert (reader.ids, reader.classes, reader.negatives) == (("a1", "c3"), ("opacity",), 1)
    assert reader.boxes(1) == (Box(1, 2, 3, 4, "opacity"),)
    assert [sample.mask.sum() for sample in reader] == [300, 12]


@pytest.mark.parametrize(
    ("which", "ids"),
    [("negative", "a1 c3 d4"), ("all", "a1 b2 c3 d4"), ("none", "a1 c3")],
)
def test_an_unboxed_image_of_a_positive_study_is_no_background_unless_asked(tree, which, ids):
    """b2 is of a typical study and has no box; d4 is of a negative one."""
    reader = SIIMCovid19(tree.root, without_boxes=which)
    assert reader.ids == tuple(ids.split())
    assert (reader.negatives, reader.unboxed) == (1, 1)
    assert len(reader.appearances) == len(reader.groups) == len(reader)
    assert SIIMCovid19(tree.root).ids == ("a1", "c3", "d4")
    with pytest.raises(DataError, match=r"unknown without_boxes 'True': .*'all', 'negative'"):
        SIIMCovid19(tree.root, without_boxes=True)


def test_patients_are_in_the_dicom_files(tree, save, save_dicom):
    assert SIIMCovid19(tree.root).groups == ("p1", "p1", "p2")
    assert SIIMCovid19(tree.root, group="study").groups == ("s1", "s2", "s3")
    save_dicom("train/s3/x/d4.dcm", tree.pixels["d4"])
    with pytest.raises(DataError, match=r"level\.csv, line 2: .*d4\.dcm names no patient, .*study"):
        SIIMCovid19(tree.root)
    (tree.root / "train/s3/x/d4.dcm").unlink()
    save("train/s3/x/d4.png", np.zeros((32, 40), np.uint8))  # one converted among DICOM files
    with pytest.raises(DataError, match=r"line 2: .*d4\.png names no patient, .*group='study'"):
        SIIMCovid19(tree.root)
    assert SIIMCovid19(tree.root, invalid="skip").ids == ("a1", "c3")
    with pytest.raises(DataError, match=r"unknown group 'pateint'.*Did you mean 'patient'"):
        SIIMCovid19(tree.root, group="pateint")


def test_stored_values_on_request(tree, save_dicom):
    save_dicom("train/s1/x/a1.dcm", tree.pixels["a1"], PatientID="p1", WindowCenter=9,
               WindowWidth=2)  # fmt: skip
    assert set(np.unique(SIIMCovid19(tree.root)[0].image)) <= {0, 65535}
    full_range = np.rint(tree.pixels["a1"] / 4095 * 65535)
    np.testing.assert_array_equal(SIIMCovid19(tree.root, values="stored")[0].image, full_range)
    with pytest.raises(DataError, match="unknown values"):
        SIIMCovid19(tree.root, values="raw")


SIZES = ("image_id", "dim0", "dim1", "split")


@pytest.fixture
def converted(tree, save, write_csv):
    """The same in one folder, as PNG and JPEG of half the height and a quarter of the width."""
    for name, suffix in zip(tree.pixels, (".png", ".jpg", ".png", ".png"), strict=True):
        save(f"small/{name}{suffix}", tree.pixels[name][::2, ::4].astype(np.uint8))
    rows = [dict(zip(SIZES, (name, 32, 40, "train"), strict=True)) for name in tree.pixels]
    rows.append(dict(zip(SIZES, ("other", 9, 9, "test"), strict=True)))

    def write(change=lambda rows: None):
        change(rows)
        write_csv(tree.root / "small" / "meta.csv", SIZES, rows)
        return tree.root

    write()
    return write


def test_converted_images_and_their_original_sizes(converted):
    root = converted()
    options = {"images": "small", "group": "study"}
    reader = SIIMCovid19(root, original_sizes="small/meta.csv", **options)
    assert reader.boxes(0) == (Box(0.5, 2, 2.5, 10, "typical"), Box(5, 1.75, 2.5, 5, "typical"))
    assert (reader[0].image.dtype, reader[0].image.shape) == (np.uint8, (16, 10))
    expected = np.zeros((16, 10), np.uint8)
    expected[2:12, 0:3] = 1
    expected[2:7, 5:7] = 1  # 5 <= 5.5, 6.5 < 7.5
    np.testing.assert_array_equal(reader[0].mask, expected)
    with pytest.raises(DataError, match=r"line 5: .* sticks out of its image of 10x16"):
        SIIMCovid19(root, **options)
    for invalid in ("raise", "skip"):
        with pytest.raises(DataError, match=r"small: has no DICOM file, .*give group='study'"):
            SIIMCovid19(root, images="small", original_sizes="small/meta.csv", invalid=invalid)
    with pytest.raises(DataError, match="no DICOM file; values='stored' is for these alone"):
        SIIMCovid19(root, original_sizes="small/meta.csv", values="stored", **options)


def test_a_box_that_vanishes_when_its_image_is_made_smaller(tree, converted):
    tree.images[1] = ("c3_image", "", "opacity 1 3 2 4 6", "s2")  # 1 of 4 columns, no centre
    tree.write()
    options = {"images": "small", "original_sizes": "small/meta.csv", "group": "study"}
    with pytest.raises(DataError, match=r"level\.csv, line 3: .* covers no pixel"):
        SIIMCovid19(converted(), **options)
    assert SIIMCovid19(tree.root, invalid="skip", **options).ids == ("a1", "d4")


@pytest.mark.parametrize(
    ("change", "match", "left"),
    [
        (lambda rows: rows[0].update(dim0="x"), r"meta\.csv, line 2: dim0 is 'x'", 3),
        (lambda rows: rows[0].update(dim1="0"), r"meta\.csv, line 2: dim1 is '0'", 3),
        (lambda rows: rows.append(rows[0]), r"meta\.csv, line 7: image 'd4' is listed a second", 4),
        (lambda rows: rows.pop(0), r"level\.csv, line 2: image 'd4' has no line in the table", 3),
    ],
)
def test_hostile_sizes(converted, change, match, left):
    root = converted(change)
    options = {"images": "small", "original_sizes": "small/meta.csv", "group": "study"}
    options["without_boxes"] = "all"
    with pytest.raises(DataError, match=match):
        SIIMCovid19(root, **options)
    reader = SIIMCovid19(root, invalid="skip", **options)
    assert len(reader) == left
    assert len(reader.skipped) == (2 if "dim" in match else 1)


def image(*values):
    """Another line of the image table; a file for it is there."""

    def apply(tree):
        tree.images.append(values)

    return apply


def study(*values):
    def apply(tree):
        tree.studies.append(values)

    return apply


HOSTILE = [
    (image("e5_image", "", "", "s1"), r"image_level\.csv, line 6: label is ''; expected 'none 1"),
    (image("e5_image", "", "nan", "s1"), "line 6: label is 'nan'"),
    (image("e5_image", "", "opacity 1 nan 2 3 4", "s1"), "line 6: .*nan.* is no box"),
    (image("e5_image", "", "opacity 1 1 2 3", "s1"), "line 6: label is 'opacity 1 1 2 3'"),
    (image("e5_image", "", "opacity 1 1 2 3 x", "s1"), "line 6: label is .*could not convert"),
    (image("e5_image", "", f"{NONE} opacity 1 1 2 3 4", "s1"), "line 6: label is 'none"),
    (image("e5_image", "", "__import__('os') 1 1 2 3 4", "s1"), "line 6: label is"),
    (image("e5_image", "", "opacity 1 9 2 3 4", "s1"), "line 6: a box of width -6"),
    (image("e5_image", "", "opacity 1 3 2 3 4", "s1"), "line 6: .* has no area"),
    (image("e5_image", "", "opacity 1 3.6 2 4.4 9", "s1"), "line 6: .* covers no pixel"),
    (image("e5_image", "", "opacity 1 41 2 44 4", "s1"), "line 6: .* lies outside its image of 40"),
    (image("e5_image", "", "opacity 1 38 2 44 4", "s1"), "line 6: .* sticks out .* by 4"),
    (image("e5_image", "", "opacity 1 1 2 3 4", "s3"), "line 6: an opacity in study 's3', which"),
    (image("e5_image", "", NONE, "s9"), "line 6: study 's9' has no line"),
    (image("f6_image", "", NONE, "s1"), "line 6: image 'f6' has no file"),
    (image("a1_image", "", NONE, "s1"), "line 6: image 'a1' is listed a second time"),
    (image("e5", "", NONE, "s1"), "line 6: id is 'e5'; expected a name ending in '_image'"),
    (study("s1_study", 0, 0, 0, 1), r"study_level\.csv, line 5: study 's1' is listed a second"),
    (study("s4_study", 0, 1, 0, 1), r"line 5: study 's4' is \['0', '1', '0', '1'\]; expected one"),
    (study("s4_study", 0, 0, 0, 0), "line 5: study 's4' is"),
    (study("s4_study", 0, "", 0, 1), "line 5: study 's4' is"),
    (study("s4", 0, 1, 0, 0), "line 5: id is 's4'; expected a name ending in '_study'"),
]


@pytest.mark.parametrize(("apply", "match"), HOSTILE)
def test_hostile_rows_are_named_or_left_out_and_counted(tree, save_dicom, apply, match):
    save_dicom("train/s1/x/e5.dcm", np.zeros((32, 40), np.uint16), PatientID="p1")
    apply(tree)
    tree.write()
    with pytest.raises(DataError, match=match):
        SIIMCovid19(tree.root)
    reader = SIIMCovid19(tree.root, without_boxes="all", invalid="skip")
    assert len(reader.skipped) == 1
    assert reader.ids == ("a1", "b2", "c3", "d4")
    assert (reader.negatives, reader.unboxed, len(reader.boxes(0))) == (1, 1, 2)


def test_a_study_that_is_left_out_takes_its_images_along(tree):
    tree.studies[0] = ("s1_study", 1, 1, 0, 0)
    tree.write()
    reader = SIIMCovid19(tree.root, invalid="skip")
    assert (reader.ids, len(reader.skipped)) == (("c3", "d4"), 3)
    tree.studies[1:] = []
    tree.write()
    with pytest.raises(DataError, match=r"no image to read; left out: .*study 's1'"):
        SIIMCovid19(tree.root, invalid="skip")


def test_boxes_that_stick_out_can_be_cut(tree):
    tree.images[1] = ("c3_image", "", "opacity 1 38 2 44 4", "s2")
    tree.write()
    assert SIIMCovid19(tree.root, outside="clip")[1].mask.sum() == 3 * 4


def test_files_are_named(tree, save, truncate):
    save("train/s9/a1.png", np.zeros((32, 40), np.uint8))
    with pytest.raises(DataError, match=r"a1\.(png|dcm) and .*a1\.(png|dcm) share a name"):
        SIIMCovid19(tree.root, invalid="skip")
    (tree.root / "train" / "s9" / "a1.png").unlink()
    path = tree.root / "train" / "s1" / "x" / "a1.dcm"
    truncate(path)
    with pytest.raises(DataError, match=r"a1\.dcm"):
        SIIMCovid19(tree.root)[0]
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"line 5: .*a1\.dcm: not a DICOM file"):
        SIIMCovid19(tree.root)
    assert len(SIIMCovid19(tree.root, invalid="skip").skipped) == 1
    (tree.root / "train").rename(tree.root / "images")
    with pytest.raises(DataError, match=r"train: the folder does not exist"):
        SIIMCovid19(tree.root)
    (tree.root / "train_study_level.csv").unlink()
    with pytest.raises(DataError, match=r"train_study_level\.csv: the file does not exist"):
        SIIMCovid19(tree.root, images="images")


def test_by_study_the_headers_of_images_without_boxes_are_left_for_later(tree):
    path = tree.root / "train" / "s3" / "x" / "d4.dcm"
    path.write_bytes(b"no image")
    reader = SIIMCovid19(tree.root, group="study")
    assert reader.ids == ("a1", "c3", "d4")
    with pytest.raises(DataError, match=r"d4\.dcm: not a DICOM file"):
        reader[2]
    with pytest.raises(DataError, match=r"line 2: .*d4\.dcm: not a DICOM file"):
        SIIMCovid19(tree.root)


@pytest.mark.parametrize("invalid", ["raise", "skip"])
def test_a_missing_pydicom_is_no_bad_row(tree, monkeypatch, invalid):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=r"^\S+\.dcm: reading DICOM needs pydicom: pip install"):
        SIIMCovid19(tree.root, group="study", invalid=invalid)


@pytest.mark.parametrize("table", ["train_image_level.csv", "train_study_level.csv"])
def test_a_line_cut_short_is_named_or_left_out(tree, table):
    path = tree.root / table
    path.write_text(path.read_text() + "zz_image\n".replace("image", table.split("_")[1]))
    with pytest.raises(DataError, match=rf"{table}, line \d: the line is cut short.*skip"):
        SIIMCovid19(tree.root)
    reader = SIIMCovid19(tree.root, invalid="skip")
    assert (reader.ids, len(reader.skipped)) == (("a1", "c3", "d4"), 1)
