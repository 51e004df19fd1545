import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferseg.data.readers.ccxs import CCXS, CCXS_CLASSES
from transferseg.data.samples import Reader
from transferseg.errors import DataError


def channel(name):
    return CCXS_CLASSES.index(name)


def test_the_tree_is_read_as_published(ccxs_tree):
    reader = pickle.loads(pickle.dumps(CCXS(ccxs_tree.root)))
    assert isinstance(reader, Reader)
    assert reader.ids == ("a.jpeg", "b.png", "c.png")
    assert reader.groups == ("2", "10", "2")
    assert (reader.mode, len(reader.classes)) == ("multilabel", 13)
    assert (reader.annotations, reader.annotations_without_mask) == (6, 1)
    a, b, c = reader
    assert (a.image.shape, b.image.shape, c.image.shape) == ((40, 50, 3), (60, 36), (33, 34, 3))
    np.testing.assert_array_equal(c.image, ccxs_tree.images["c.png"][..., :3])
    expected = np.zeros((40, 50, 13), np.uint8)
    expected[2:6, 3:9, channel("Right Lung")] = 1  # two crops of one class: their union
    expected[4:8, 5:11, channel("Right Lung")] = 1
    expected[35, 45, channel("Left Lung")] = 1
    np.testing.assert_array_equal(a.mask, expected)
    assert np.argwhere(b.mask).tolist() == [[55, 31, channel("Nosogastric Tube")]]
    assert c.mask[..., channel("Cardiomediastinum")].all()
    assert c.mask.sum() == 33 * 34  # the bare tag adds nothing
    np.testing.assert_array_equal(
        reader.presence, np.stack([s.mask.any(axis=(0, 1)) for s in reader])
    )


def test_tags_without_mask_can_be_ignored_pixels(ccxs_tree):
    sample = CCXS(ccxs_tree.root, without_mask="ignore")[2]
    assert (sample.mask[..., channel("Monitoring Probes")] == 255).all()
    assert (sample.mask == 255).sum() == 33 * 34
    with pytest.raises(DataError, match="unknown without_mask 'drop'"):
        CCXS(ccxs_tree.root, without_mask="drop")


def change(row, **values):
    def apply(tree):
        tree.rows[row].update(values)

    return apply


@pytest.mark.parametrize(
    ("apply", "match"),
    [
        (change(0, Class="COVID-19 Right Lug"), r"structure\.csv, line 2: unknown class.*'Right L"),
        (change(1, Width=7), r"line 3: Width x Height is 7x4, but .*hash_1\.png is 6x4"),
        (change(0, Top=37), r"line 2: .*hash_0\.png at Left 3, Top 37, 6x4, lies outside .*50x40"),
        (change(0, Left=-1), r"line 2: Left is '-1'; expected a whole number from 0"),
        (change(0, Top="x"), "line 2: Top is 'x'"),
        (change(2, Mask="masks/gone.png"), r"line 4: .*gone\.png: the file does not exist"),
        (change(2, Mask="../images/a.jpeg"), "line 4: Mask is"),
        (change(3, Filename="gone.png"), "line 5: image 'gone.png' has no line with"),
        (change(3, Filename="../b.png"), "line 5: Filename is"),
        (
            lambda tree: tree.metadata.pop(1),
            "image 'b.png' has no line with a patient in .*metadata.csv",
        ),
        (
            lambda tree: tree.metadata.append({"patientid": "7", "filename": "b.png"}),
            r"metadata\.csv, line 6: 'b\.png' has patientid '7', before '10'",
        ),
        (
            lambda tree: tree.metadata[1].update(patientid=""),
            "image 'b.png' has no line with a patient in",
        ),
        (lambda tree: tree.rows.clear(), r"structure\.csv: the table has no lines"),
    ],
)
def test_a_broken_table_names_file_and_line(ccxs_tree, apply, match):
    apply(ccxs_tree)
    ccxs_tree.write()
    with pytest.raises(DataError, match=match):
        CCXS(ccxs_tree.root)


def test_missing_files_and_columns_are_named(ccxs_tree):
    table = ccxs_tree.root / "structure.csv"
    text = table.read_text()
    table.write_text(text.replace("Left,", "Lft,", 1))
    with pytest.raises(DataError, match=r"structure\.csv: column\(s\) 'Left' missing; .*'Lft'"):
        CCXS(ccxs_tree.root)
    table.write_text(text + "7,COVID-19 Airways\n")
    with pytest.raises(DataError, match="line 8: the line is cut short"):
        CCXS(ccxs_tree.root)
    table.write_bytes(b"Class\xff")
    with pytest.raises(DataError, match="not a CSV table in UTF-8"):
        CCXS(ccxs_tree.root)
    table.write_text(text)
    (ccxs_tree.root / "images" / "b.png").unlink()
    with pytest.raises(DataError, match=r"line 5: .*b\.png: the file does not exist"):
        CCXS(ccxs_tree.root)
    (ccxs_tree.root / "metadata.csv").unlink()
    with pytest.raises(DataError, match=r"metadata\.csv: the file does not exist"):
        CCXS(ccxs_tree.root)


def test_damage_behind_the_header_shows_when_reading(ccxs_tree, truncate):
    truncate(ccxs_tree.root / "images" / "b.png")
    reader = CCXS(ccxs_tree.root)
    with pytest.raises(DataError, match=r"b\.png: the file is truncated"):
        reader[1]
    Image.new("L", (2, 2)).save(ccxs_tree.root / "masks" / "hash_0.png")
    with pytest.raises(DataError, match=r"hash_0\.png: the mask changed since .*line 2"):
        reader[0]


@pytest.fixture(scope="module")
def published():
    folder = os.environ.get("TRANSFERSEG_DATA")
    if not folder or not (Path(folder) / "ccxs" / "structure.csv").is_file():
        pytest.skip("TRANSFERSEG_DATA does not name a folder with ccxs/")
    return CCXS(Path(folder) / "ccxs")


def test_the_published_data(published):
    assert len(published) == 82
    assert len(set(published.groups)) == 60
    assert (published.annotations, published.annotations_without_mask) == (490, 11)
    presence = dict(zip(CCXS_CLASSES, published.presence.sum(0).tolist(), strict=True))
    assert presence["Right Lung"] == 82
    assert presence["Left Lung"] == 81
    assert presence["Pneumothorax"] == 1
    index = next(k for k, name in enumerate(published.ids) if name.startswith("auntminnie-d"))
    np.testing.assert_array_equal(published[index].mask.any(axis=(0, 1)), published.presence[index])
