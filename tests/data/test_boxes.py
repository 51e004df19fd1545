from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.data.boxes import Box, check_box, masks_from_boxes
from transferseg.errors import DataError

CLASSES = ("background", "a", "b", "c")
PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)


def covered(box, y, x, shape):
    """Which pixel centres lie in a box, and which lie on the edge of an ellipse (either is right).

    Exact for sides on quarters of a pixel: everything is counted in whole eighths.
    """
    inside = (box.left <= x) & (x < box.right) & (box.top <= y) & (y < box.bottom)
    if shape == "rectangle":
        return inside, np.zeros_like(inside)
    x, y = ((8 * value).astype(np.int64) for value in (x, y))
    a, b = int(4 * box.width), int(4 * box.height)  # half axes in eighths
    dx, dy = x - (int(8 * box.left) + a), y - (int(8 * box.top) + b)
    distance = (dx * b) ** 2 + (dy * a) ** 2 - (a * b) ** 2
    return distance < 0, distance == 0


def oracle(boxes, size, mode, shape, overlap):
    """Pixel by pixel over a grid of centres: the mask, and which pixels are certain."""
    y, x = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5, indexing="ij")
    found = [(CLASSES.index(box.name), *covered(box, y, x, shape)) for box in boxes]
    certain = np.ones(size, bool)
    lists = {place: [] for place in product(*map(range, size))}
    for number, inside, edge in found:
        certain &= ~edge
        for place in lists:
            if inside[place]:
                lists[place].append(number)
    mask = np.zeros((*size, 3), np.uint8) if mode == "multilabel" else np.zeros(size, np.uint8)
    choose = {"last": lambda n: n[-1], "first": lambda n: n[0], "classes": max}[overlap]
    for place, numbers in lists.items():
        if mode == "multilabel":
            for number in numbers:
                mask[place][number - 1] = 1
        elif mode == "binary":
            mask[place] = bool(numbers)
        else:
            drawn = [number for number in numbers if number]
            mask[place] = choose(drawn) if drawn else 0
    return mask, certain


def boxes_of(number, names):
    sides = st.builds(lambda n, w: (n, w), number(-6, 14), number(0, 16))
    build = st.builds(
        lambda x, y, name: Box(x[0], y[0], x[1], y[1], name), sides, sides, st.sampled_from(names)
    )
    return st.lists(build, max_size=6)


def quarters(low, high):
    return st.integers(4 * low, 4 * high).map(lambda n: n / 4)


def check(boxes, size, mode, shape, overlap):
    if mode == "binary":
        boxes = [Box(b.left, b.top, b.width, b.height, "a") for b in boxes]
    classes = {"binary": ("a",), "multilabel": CLASSES[1:], "multiclass": CLASSES}[mode]
    mask = masks_from_boxes(boxes, size, classes=classes, mode=mode, shape=shape, overlap=overlap)
    expected, certain = oracle(boxes, size, mode, shape, overlap)
    assert mask.dtype == np.uint8
    assert mask.shape == expected.shape
    np.testing.assert_array_equal(mask[certain], expected[certain])


SIZES = st.tuples(st.integers(1, 10), st.integers(1, 10))
OVERLAPS = ("last", "first", "classes")


@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
@pytest.mark.parametrize(
    ("mode", "overlap"),
    [("binary", "last"), ("multilabel", "last"), *(("multiclass", name) for name in OVERLAPS)],
)
@PROPERTY
@given(data=st.data(), size=SIZES)
def test_masks_are_those_of_pixel_centres(data, size, mode, overlap, shape):
    names = CLASSES if mode == "multiclass" else CLASSES[1:]
    check(data.draw(boxes_of(quarters, names)), size, mode, shape, overlap)


@PROPERTY
@given(boxes=boxes_of(lambda low, high: st.floats(low, high), CLASSES), size=SIZES)
def test_rectangles_anywhere(boxes, size):
    check(boxes, size, "multiclass", "rectangle", "last")


def painted(box, size=(5, 5), **options):
    return masks_from_boxes([box], size, classes=(box.name,), mode="binary", **options)


def test_whole_numbers_are_whole_pixels_and_neighbours_share_none():
    left, right = painted(Box(1, 0, 2, 5, "a")), painted(Box(3, 0, 2, 5, "a"))
    assert left.sum(axis=0).tolist() == [0, 5, 5, 0, 0]
    assert (left + right).sum(axis=0).tolist() == [0, 5, 5, 5, 5]
    assert (left + right).max() == 1


def test_an_ellipse_by_hand():
    rows = ["01110", "11111", "11111", "11111", "01110"]
    expected = [[int(digit) for digit in row] for row in rows]
    assert painted(Box(0, 0, 5, 5, "a"), shape="ellipse").tolist() == expected
    assert painted(Box(1, 2, 1, 1, "a"), shape="ellipse").sum() == 1
    large = painted(Box(10.3, 20.7, 300, 170, "a"), (250, 400), shape="ellipse")
    assert large.sum() == pytest.approx(np.pi / 4 * 300 * 170, rel=1e-3)
    centre = [axis.mean() + 0.5 for axis in np.nonzero(large)]
    assert centre == pytest.approx([20.7 + 85, 10.3 + 150], abs=0.05)


@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
@pytest.mark.parametrize(
    "box",
    [
        Box(1.6, 0, 0.8, 5, "a"),  # between two columns of centres
        Box(2, 2, 0, 3, "a"),
        Box(2.5, 2.5, 0, 0, "a"),
        Box(-9, 1, 4, 4, "a"),
        Box(1, 7, 4, 4, "a"),
        Box(1e300, -1e300, 1e300, 1, "a"),
    ],
)
def test_boxes_without_a_centre_paint_nothing(box, shape):
    assert not painted(box, shape=shape).any()


def test_a_box_around_all_paints_all():
    for shape in ("rectangle", "ellipse"):
        assert painted(Box(-1e200, -1e200, 2e200, 2e200, "a"), shape=shape).all()


def test_the_one_pixel_box_of_a_negative_image():
    """SIIM-FISABIO-RSNA marks images without opacity by a box of 1x1 at the origin."""
    negative, typical = Box(0, 0, 1, 1, "negative"), Box(0, 0, 2, 2, "typical")
    options = {"classes": ("negative", "typical"), "mode": "multiclass"}
    assert not masks_from_boxes([negative], (4, 4), **options).any()
    for order in ([negative, typical], [typical, negative]):
        assert masks_from_boxes(order, (4, 4), **options).sum() == 4


def test_sticking_out_is_cut_or_an_error():
    box = Box(-0.4, 3, 2, 2.4, "a")
    assert painted(box, outside="raise").sum() == 2 * 2  # half a pixel is rounding
    for wrong in (Box(-0.6, 3, 2, 2, "a"), Box(0, 3, 2, 2.6, "a")):
        assert painted(wrong).sum() == (2 if wrong.left else 4)
        with pytest.raises(DataError, match=r"sticks out of its image of 5x5 pixels by 0\.6"):
            painted(wrong, outside="raise")


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ((float("nan"), 0, 1, 1), "nan.* is no box"),
        ((0, 0, float("inf"), 1), "inf.* is no box"),
        ((0, "0", 1, 1), "is no box"),
        ((0, None, 1, 1), "is no box"),
        ((True, 0, 1, 1), "is no box"),
        ((10**400, 0, 1, 1), "is no box"),
        ((1.7e308, 0, 1.7e308, 1), "is no box"),
        ((0, 0, -1, 1), "width -1 and height 1.*right and lower"),
        ((0, 0, 1, -0.5), "height -0.5"),
    ],
)
def test_a_box_is_checked(numbers, match):
    with pytest.raises(DataError, match=match):
        Box(*numbers, name="a")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"classes": ("Nodle",)}, r"unknown class 'Nodule'.*Did you mean 'Nodle'"),
        ({"mode": "multi"}, "unknown mode 'multi'"),
        ({"shape": "circle"}, "unknown shape"),
        ({"overlap": "top"}, "unknown overlap"),
        ({"outside": "keep"}, "unknown outside"),
        ({"size": (4, 0)}, r"size must be .* got \(4, 0\)"),
        ({"size": (4.0, 4)}, "size must be"),
        ({"classes": ("Nodule", "Nodule")}, "distinct names"),
        ({"classes": (), "boxes": ()}, r"0 class\(es\)"),
        ({"classes": ("Nodule", "b"), "mode": "binary"}, r"2 class\(es\) 'Nodule', 'b' do not fit"),
        ({"classes": ("Nodule",), "mode": "multiclass"}, "background first"),
        ({"classes": [str(n) for n in range(256)], "mode": "multiclass"}, "2 to 255"),
    ],
)
def test_options_are_checked(options, match):
    options = {"boxes": [Box(0, 0, 1, 1, "Nodule")], "size": (4, 4), "classes": "Nodule"} | options
    with pytest.raises(DataError, match=match):
        masks_from_boxes(options.pop("boxes"), options.pop("size"), **options)


@PROPERTY
@given(
    boxes=boxes_of(quarters, ("a",)), size=SIZES, shape=st.sampled_from(["rectangle", "ellipse"])
)
def test_a_box_passes_exactly_when_it_paints(boxes, size, shape):
    for box in boxes:
        paints = painted(box, size, shape=shape).any()
        try:
            check_box(box, size, shape=shape, outside="clip")
        except DataError:
            assert not paints
        else:
            assert paints


def test_a_thin_ellipse_covers_no_pixel_where_the_rectangle_does():
    corner = Box(0.36, 0.36, 0.15, 0.15, "a")  # one centre, near a corner
    check_box(corner, (5, 5), shape="rectangle", outside="raise")
    with pytest.raises(DataError, match="covers no pixel"):
        check_box(corner, (5, 5), shape="ellipse", outside="raise")
    assert not painted(corner, shape="ellipse").any()
    assert painted(corner).sum() == 1
