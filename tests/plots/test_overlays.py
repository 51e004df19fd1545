from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from transferseg.errors import DataError
from transferseg.plots import PALETTE, overlay

H, W = 6, 9


def tinted(ax):
    """Where each area layer is, by its colour."""
    layers = [np.asarray(layer.get_array()) for layer in ax.images[1:]]
    return {
        to_hex(layer[layer[..., 3] > 0][0], keep_alpha=True): layer[..., 3] > 0 for layer in layers
    }


def outlines(ax):
    """The enclosed area of each outline, by its colour (shoelace formula)."""
    areas = {}
    for contour in ax.collections:
        x, y = contour.get_paths()[0].vertices.T
        areas[to_hex(contour.get_edgecolor()[0], keep_alpha=True)] = 0.5 * abs(
            np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))
        )
    return areas


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def colour(position, alpha=1.0):
    return to_hex((PALETTE[position], alpha), keep_alpha=True)


def index_mask():
    mask = np.zeros((H, W), np.uint8)
    mask[:2, :3] = 1
    mask[4:, 5:] = 3
    return mask


def test_indices_become_one_layer_a_class_that_is_present():
    mask = index_mask()
    ax = overlay(np.zeros((H, W)), mask, classes=["background", "a", "b", "c"], alpha=0.4)
    layers = tinted(ax)
    assert set(layers) == {colour(0, 0.4), colour(2, 0.4)}
    np.testing.assert_array_equal(layers[colour(0, 0.4)], mask == 1)
    np.testing.assert_array_equal(layers[colour(2, 0.4)], mask == 3)
    assert legend(ax) == ["a", "c"]
    assert ax.get_xlim() == (-0.5, W - 0.5)
    assert ax.get_ylim() == (H - 0.5, -0.5)  # the first row on top


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_the_one_name_of_a_binary_mask_is_the_foreground(dtype):
    ax = overlay(np.zeros((H, W)), (index_mask() == 1).astype(dtype), classes=["polyp"])
    assert legend(ax) == ["polyp"]
    assert set(tinted(ax)) == {colour(0, 0.45)}


def test_overlapping_classes_each_have_their_layer():
    mask = np.zeros((H, W, 3), np.uint8)
    mask[:3, :, 0] = 1
    mask[2:, :, 2] = 1
    ax = overlay(np.zeros((H, W)), mask, classes=["a", "b", "c"])
    layers = tinted(ax)
    np.testing.assert_array_equal(layers[colour(0, 0.45)], mask[..., 0] == 1)
    np.testing.assert_array_equal(layers[colour(2, 0.45)], mask[..., 2] == 1)
    assert legend(ax) == ["a", "c"]


def test_without_names_classes_are_called_by_their_number():
    assert legend(overlay(np.zeros((H, W)), index_mask())) == ["class_1", "class_3"]
    assert legend(overlay(np.zeros((H, W)), np.ones((H, W, 2), bool))) == ["class_0", "class_1"]


def test_truth_is_an_outline_that_is_closed_at_the_border():
    truth = index_mask()
    ax = overlay(np.zeros((H, W)), np.zeros((H, W), np.uint8), truth=truth)
    # a rectangle of n pixels loses the four corners, triangles with legs of half a pixel
    assert outlines(ax) == pytest.approx({colour(0): 2 * 3 - 0.5, colour(2): 2 * 4 - 0.5})
    assert not tinted(ax)


def test_the_legend_tells_predicted_from_true():
    mask, truth = np.zeros((2, H, W), np.uint8)
    mask[0, 0], truth[1, 1], mask[2, 2], truth[2, 2] = 1, 2, 3, 3
    handles = overlay(np.zeros((H, W)), mask, truth=truth).get_legend().get_patches()
    drawn = [(patch.get_facecolor()[3] > 0, patch.get_edgecolor()[3] > 0) for patch in handles]
    assert drawn == [(True, False), (False, True), (True, True)]


def test_ignored_pixels_stay_bare():
    mask = index_mask()
    mask[3] = 255
    channels = np.full((H, W, 1), 255, np.uint8)
    ax = overlay(np.zeros((H, W)), mask, truth=mask)
    assert legend(ax) == ["class_1", "class_3"]
    assert not any(layer[3].any() for layer in tinted(ax).values())
    assert overlay(np.zeros((H, W)), channels, classes=["a"]).get_legend() is None


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.array([[0, 51], [102, 204]], np.uint8), [[0, 0.2], [0.4, 0.8]]),
        (np.array([[1000, 2000], [3000, 5000]], np.uint16), [[0, 0.25], [0.5, 1]]),
        (np.array([[0.1, 0.2], [0.3, 0.4]], np.float32), [[0.1, 0.2], [0.3, 0.4]]),
        (np.array([[-1.0, 0.0], [0.0, 1.0]]), [[0, 0.5], [0.5, 1]]),
        (np.array([[7, 7], [7, 7]], np.int16), [[0, 0], [0, 0]]),
        (np.array([[False, True], [True, False]]), [[0, 1], [1, 0]]),
        (np.array([[[0, 1.0], [0.5, 0.5]]]), [[0.5, 0.5]]),  # two channels: their mean
        (np.array([[[255, 0, 51]]], np.uint8), [[[1, 0, 0.2]]]),  # three: colour
    ],
)
def test_any_real_dtype_and_number_of_channels_is_shown(image, expected):
    ax = overlay(image, np.zeros(image.shape[:2], bool))
    np.testing.assert_allclose(ax.images[0].get_array(), expected, atol=1e-6)
    assert ax.images[0].get_clim() == (0, 1)


BLANK, PIXELS = np.zeros((H, W)), np.zeros((H, W), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": PIXELS.astype(float)}, "mask must be bool or whole numbers, got float64"),
        ({"mask": PIXELS.T}, r"expected \(6, 9\), got \(9, 6\)"),
        ({"mask": PIXELS, "truth": PIXELS[..., None]}, r"truth .* got \(6, 9, 1\)"),
        ({"mask": PIXELS + 2, "classes": ["lesion"]}, "mask must hold 0 to 1 .* got 2"),
        ({"mask": PIXELS, "truth": PIXELS + 3, "classes": list("bcd")}, "truth must hold 0 to 2"),
        ({"mask": PIXELS.astype(int) - 1}, "got -1"),
        ({"mask": np.full((H, W, 2), 2)}, "mask must hold 0 to 1 .* got 2"),
        ({"mask": np.zeros((H, W, 2), bool), "classes": ["a"]}, "have 2 classes, got 1 names"),
        ({"mask": PIXELS + 2, "colours": ["red"]}, "2 classes need as many colours, got 1"),
        ({"image": BLANK * np.nan, "mask": PIXELS}, "not finite"),
        ({"image": np.zeros(5), "mask": PIXELS}, r"got shape \(5,\)"),
        ({"image": BLANK * 1j, "mask": PIXELS}, "complex"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    arguments = {"image": BLANK, **arguments}
    with pytest.raises(DataError, match=message):
        overlay(arguments.pop("image"), arguments.pop("mask"), **arguments)
