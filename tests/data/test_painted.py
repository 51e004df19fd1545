import numpy as np
import pytest

from transferseg.data.boxes import Box, BoxReader, masks_from_boxes
from transferseg.data.painted import BoxedImage, BoxPainter, PaintedBoxes
from transferseg.data.samples import Reader
from transferseg.data.splits import class_presence
from transferseg.errors import DataError


def test_the_painter_checks_boxes_and_tells_presence():
    painter = BoxPainter(("a", "b"), "multiclass", shape="ellipse", outside="clip")
    assert painter.classes == ("background", "a", "b")
    for box, match in (
        (Box(0, 0, 3, 0, "a"), "has no area"),
        (Box(-3, 0, 3, 3, "a"), "lies outside its image of 8x6 pixels"),
        (Box(0, 6, 3, 3, "a"), "lies outside"),
        (Box(1.6, 0, 0.8, 5, "a"), "covers no pixel"),
    ):
        with pytest.raises(DataError, match=match):
            painter.check(box, (6, 8))
    large = Box(5, 5, 9, 9, "b")
    painter.check(large, (6, 8))
    with pytest.raises(DataError, match="sticks out"):
        BoxPainter(("b",), "binary").check(large, (6, 8))
    assert painter.presence([[large], []]).tolist() == [[True, False, True], [True, False, False]]
    assert BoxPainter(("a", "b"), "multilabel").presence([[large]]).tolist() == [[False, True]]
    with pytest.raises(DataError, match=r"3 class\(es\)"):
        BoxPainter(("background", "a"), "multiclass")


@pytest.fixture
def images(save):
    """Two images, the second name first; in one of them the second box hides the first."""
    found = []
    for n, name in enumerate(("b.png", "a.png")):
        path = save(name, np.full((6, 8), 9 * n, np.uint8))
        boxes = (Box(1, 1, 2, 2, "x"), Box(0, 0, 4, 4, "y")) if n else ()
        found.append(BoxedImage(name, f"p{n}", path, boxes))
    return found


def test_names_groups_and_masks_of_one_image_stay_together(images, tmp_path):
    painter = BoxPainter(("x", "y"), "multilabel", shape="ellipse", outside="clip")
    reader = PaintedBoxes(painter, iter(images), place=tmp_path, skipped=["a line"])
    assert isinstance(reader, Reader)
    assert isinstance(reader, BoxReader)
    assert (reader.ids, reader.groups) == (("a.png", "b.png"), ("p1", "p0"))
    assert [reader.boxes(n) for n in range(2)] == [images[1].boxes, ()]
    assert (reader.shape, reader.overlap, reader.outside) == ("ellipse", "last", "clip")
    assert reader.skipped == ("a line",)
    sample = reader[0]
    assert (sample.id, sample.group, sample.label) == ("a.png", "p1", None)
    assert (sample.image == 9).all()
    expected = masks_from_boxes(images[1].boxes, (6, 8), classes=("x", "y"), shape="ellipse")
    np.testing.assert_array_equal(sample.mask, expected)
    np.testing.assert_array_equal(reader.presence, class_presence(reader))
    for index in (2, -1):
        with pytest.raises(IndexError):
            reader[index]
        with pytest.raises(IndexError):
            reader.boxes(index)


def test_a_hidden_class_is_present_though_the_mask_lacks_it(images, tmp_path):
    reader = PaintedBoxes(BoxPainter(("x", "y"), "multiclass"), images, place=tmp_path)
    assert reader.presence.tolist() == [[True, True, True], [True, False, False]]
    assert class_presence(reader).tolist() == [[True, False, True], [True, False, False]]


def test_no_image_is_an_error_that_says_what_was_left_out(tmp_path):
    painter = BoxPainter(("x",), "binary")
    with pytest.raises(DataError, match="no image to read; left out: line 2, line 3"):
        PaintedBoxes(painter, [], place=tmp_path, skipped=["line 2", "line 3"])
    with pytest.raises(DataError, match="left out: none"):
        PaintedBoxes(painter, [], place=tmp_path)
