import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from transferseg.data.boxes import Box, BoxReader, masks_from_boxes
from transferseg.data.readers.coco import COCOBoxes
from transferseg.data.samples import Reader
from transferseg.data.splits import class_presence
from transferseg.data.validate import validate
from transferseg.errors import DataError


class Tree:
    """Three images, one in a folder and one without boxes; two categories, listed upside down."""

    def __init__(self, root, save):
        self.root = root
        rng = np.random.default_rng(0)
        sizes = {"p2_a.png": (33, 40), "p1_b.jpg": (36, 34), "more/p1_a.png": (32, 32)}
        self.images = [
            {"id": 10 * n, "file_name": name, "width": width, "height": height}
            for n, (name, (height, width)) in enumerate(sizes.items())
        ]
        for name, size in sizes.items():
            save(f"images/{name}", rng.integers(0, 256, size, dtype=np.uint8))
        self.categories = [
            {"id": 7, "name": "Left Lung", "supercategory": "lungs"},
            {"id": 3, "name": "Right Lung"},
        ]
        self.annotations = []
        self.add(0, 3, [2, 4, 10, 20])
        self.add(0, 7, [8.0, 3.5, 20, 10.0])
        self.add(10, 7, [0, 0, 34, 36])
        self.write()

    def add(self, image, category, sides, **others):
        self.annotations.append(
            {"id": 100 + len(self.annotations), "image_id": image, "category_id": category,
             "bbox": sides, "area": 1, "iscrowd": 0, **others}
        )  # fmt: skip

    def write(self):
        lists = {name: getattr(self, name) for name in ("images", "annotations", "categories")}
        (self.root / "annotations.json").write_text(json.dumps(lists))


@pytest.fixture
def tree(tmp_path, save):
    return Tree(tmp_path, save)


RIGHT = Box(2, 4, 10, 20, "Right Lung")
LEFT = Box(8, 3.5, 20, 10, "Left Lung")


def test_the_tree_is_read(tree):
    reader = pickle.loads(pickle.dumps(COCOBoxes(tree.root)))
    assert isinstance(reader, Reader)
    assert isinstance(reader, BoxReader)
    assert reader.ids == reader.groups == ("more/p1_a.png", "p1_b.jpg", "p2_a.png")
    assert (reader.classes, reader.mode) == (("Right Lung", "Left Lung"), "multilabel")
    assert [reader.boxes(n) for n in range(3)] == [
        (), (Box(0, 0, 34, 36, "Left Lung"),), (RIGHT, LEFT)
    ]  # fmt: skip
    empty, whole, both = reader
    assert empty.mask.shape == (32, 32, 2)
    assert not empty.mask.any()
    assert whole.mask.all(axis=(0, 1)).tolist() == [False, True]
    assert (both.image.shape, both.image.dtype) == ((33, 40), np.uint8)
    expected = np.zeros((33, 40, 2), np.uint8)
    expected[4:24, 2:12, 0] = 1
    expected[3:13, 8:28, 1] = 1  # a centre on the upper side belongs to the box
    np.testing.assert_array_equal(both.mask, expected)
    np.testing.assert_array_equal(reader.presence, class_presence(reader))
    assert reader.skipped == ()
    assert validate(reader).problems == ()
    with pytest.raises(IndexError):
        reader.boxes(3)


@pytest.mark.parametrize("overlap", ["last", "first", "classes"])
@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
def test_masks_are_painted_as_asked(tree, shape, overlap):
    tree.annotations[:2] = tree.annotations[1::-1]
    tree.write()
    reader = COCOBoxes(tree.root, mode="multiclass", shape=shape, overlap=overlap)
    assert reader.classes == ("background", "Right Lung", "Left Lung")
    assert reader.presence.tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 1]]
    expected = masks_from_boxes(
        [LEFT, RIGHT], (33, 40), classes=reader.classes, mode="multiclass", shape=shape,
        overlap=overlap,
    )  # fmt: skip
    np.testing.assert_array_equal(reader[2].mask, expected)
    if shape == "rectangle":
        assert reader[2].mask[5, 10] == (1 if overlap == "last" else 2)
    assert validate(reader).problems == ()


def test_one_category_is_binary(tree):
    with pytest.raises(DataError, match=r"2 class\(es\) 'Right Lung', 'Left Lung' do not fit"):
        COCOBoxes(tree.root, mode="binary")
    tree.categories.pop(0)
    tree.annotations[1:] = []
    tree.write()
    sample = COCOBoxes(tree.root, mode="binary")[2]
    assert (sample.mask.shape, sample.mask.sum()) == ((33, 40), 200)


def test_folders_and_images_without_boxes(tree):
    (tree.root / "annotations.json").rename(tree.root / "boxes.json")
    (tree.root / "images").rename(tree.root / "scans")
    reader = COCOBoxes(
        tree.root, annotations="boxes.json", images=tree.root / "scans", without_boxes=False
    )
    assert reader.ids == ("p1_b.jpg", "p2_a.png")
    assert reader[1].mask.any()


def test_groups_from_a_mapping_or_a_table(tree, write_csv):
    patients = {"p2_a.png": "2", "p1_b.jpg": "1", "more/p1_a.png": "1"}
    assert COCOBoxes(tree.root, groups=patients).groups == ("1", "1", "2")
    rows = [{"filename": name, "patientid": patient} for name, patient in patients.items()]
    rows[1]["filename"] = "p1_b.tiff"  # encoded anew since the table was written
    rows.append({"filename": "unused.png", "patientid": "9"})
    columns = {"name_column": "filename", "group_column": "patientid"}
    write_csv(tree.root / "metadata.csv", ("filename", "patientid"), rows)
    assert COCOBoxes(tree.root, groups="metadata.csv", **columns).groups == ("1", "1", "2")
    with pytest.raises(DataError, match=r"metadata\.csv: column\(s\) 'file_name', 'group'"):
        COCOBoxes(tree.root, groups=tree.root / "metadata.csv")
    rows.append({"filename": "p1_b.png", "patientid": "3"})  # now p1_b may be either
    write_csv(tree.root / "metadata.csv", ("filename", "patientid"), rows)
    with pytest.raises(DataError, match=r"image id 10: groups has None for 'p1_b\.jpg'"):
        COCOBoxes(tree.root, groups="metadata.csv", **columns)
    reader = COCOBoxes(tree.root, groups="metadata.csv", invalid="skip", **columns)
    assert (reader.groups, len(reader.skipped)) == (("1", "2"), 2)  # and its annotation
    rows.append({"filename": "p1_b.png", "patientid": "4"})
    write_csv(tree.root / "metadata.csv", ("filename", "patientid"), rows)
    with pytest.raises(DataError, match=r"line 7: 'p1_b\.png' has patientid '4', before '3'"):
        COCOBoxes(tree.root, groups="metadata.csv", **columns)


def box(*sides, **others):
    """Another annotation of the first image."""

    def apply(tree):
        tree.add(0, 3, list(sides), **others)

    return apply


CROWD = [10, 1, 25, 20]  # half over the left lung, and beyond


def crowded(tree):
    tree.add(0, 7, CROWD, iscrowd=1)
    tree.write()
    return tree.root


def test_crowds_are_errors_or_passed_over(tree):
    root = crowded(tree)
    with pytest.raises(DataError, match=r"annotation id 103: iscrowd: .*see crowds="):
        COCOBoxes(root)
    reader = COCOBoxes(root, crowds="skip")
    assert (reader.boxes(2), reader.crowd_annotations, reader.skipped) == ((RIGHT, LEFT), 1, ())
    assert reader[2].mask.max() == 1
    with pytest.raises(DataError, match="unknown crowds 'drop'"):
        COCOBoxes(root, crowds="drop")


@pytest.mark.parametrize("mode", ["multilabel", "multiclass", "binary"])
def test_crowds_are_ignored_pixels(tree, mode):
    if mode == "binary":
        tree.categories.pop(1)
        tree.annotations[0]["category_id"] = 7
    root = crowded(tree)
    reader = COCOBoxes(root, crowds="ignore", mode=mode, shape="ellipse")
    plain = COCOBoxes(root, crowds="skip", mode=mode, shape="ellipse")[2].mask
    left, top, width, height = CROWD
    around = np.zeros(plain.shape, bool)
    inside = around[..., 1] if mode == "multilabel" else around  # of the left lung
    inside[top : top + height, left : left + width] = True
    assert (plain[around] > 0).any()
    expected = np.where(around & (plain == 0), 255, plain)
    np.testing.assert_array_equal(reader[2].mask, expected)
    assert (reader.crowd_annotations, reader[1].mask.max() < 255) == (1, True)
    np.testing.assert_array_equal(reader.presence, class_presence(reader))
    assert validate(reader).problems == ()
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(again[2].mask, expected)


def test_an_empty_group_is_no_other_images_group(tree):
    names = ("p2_a.png", "p1_b.jpg", "more/p1_a.png")
    groups = {"p2_a": "7", **dict.fromkeys(names, "1")}
    assert COCOBoxes(tree.root, groups=groups).groups == ("1", "1", "1")
    with pytest.raises(DataError, match=r"groups has '' for 'p2_a\.png'"):
        COCOBoxes(tree.root, groups=groups | {"p2_a.png": ""})


def test_an_image_of_another_size_takes_its_annotations_along(tree):
    tree.images[0] |= {"width": 33, "height": 40}
    tree.write()
    with pytest.raises(DataError, match=r"image id 0: width x height is 33x40, but .* is 40x33"):
        COCOBoxes(tree.root)
    reader = COCOBoxes(tree.root, invalid="skip")
    assert reader.ids == ("more/p1_a.png", "p1_b.jpg")
    assert [text.split(", ")[1].split(":")[0] for text in reader.skipped] == [
        "image id 0", "annotation id 100", "annotation id 101"
    ]  # fmt: skip
    tree.images[0].pop("width")
    tree.write()
    with pytest.raises(DataError, match="width x height is Nonex40"):
        COCOBoxes(tree.root)


def test_boxes_that_stick_out_can_be_cut(tree):
    box(-3, 30, 5, 5)(tree)
    tree.write()
    reader = COCOBoxes(tree.root, outside="clip")
    assert reader.boxes(2)[-1] == Box(-3, 30, 5, 5, "Right Lung")
    assert reader[2].mask[..., 0].sum() == 200 + 2 * 3
    box(-3, 0, 3, 5)(tree)
    tree.write()
    with pytest.raises(DataError, match=r"annotation id 104: .* lies outside"):
        COCOBoxes(tree.root, outside="clip")


def test_the_published_data():
    folder = os.environ.get("TRANSFERSEG_DATA")
    if not folder or not (Path(folder) / "covid_lung_boxes").is_dir():
        pytest.skip("TRANSFERSEG_DATA does not name a folder with covid_lung_boxes/")
    root = Path(folder) / "covid_lung_boxes"
    reader = COCOBoxes(root)
    assert (len(reader), reader.skipped) == (500, ())
    assert reader.classes == ("Right Lung", "Left Lung")
    assert reader.presence.sum() == 999
    # four images of the JSON file have no line in the table of patients
    patients = {"name_column": "filename", "group_column": "patientid"}
    reader = COCOBoxes(root, groups="metadata.csv", invalid="skip", **patients)
    assert (len(reader), len(reader.skipped)) == (496, 4 + 8)
    assert len(set(reader.groups)) < len(reader)
