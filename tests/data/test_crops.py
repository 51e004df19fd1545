import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.data import PreparedDataset, RandomScaleCrop, SyntheticRadiographs
from transferseg.errors import DataError
from transferseg.spec import InputSpec

PROPERTY = settings(deadline=None, max_examples=30, derandomize=True)
#: Every pixel has a value of its own, which tells where it was.
NUMBERED = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)


@PROPERTY
@given(st.integers(0, 2**62))
def test_image_and_mask_are_the_same_piece(seed):
    image, mask = RandomScaleCrop((16, 24))(NUMBERED[..., None], NUMBERED, seed)
    top, left = divmod(int(mask[0, 0]), 40)
    np.testing.assert_array_equal(mask, NUMBERED[top : top + 16, left : left + 24])
    np.testing.assert_array_equal(image[..., 0], mask)
    assert image.flags.c_contiguous
    again = pickle.loads(pickle.dumps(RandomScaleCrop((16, 24))))(NUMBERED, None, seed)
    np.testing.assert_array_equal(again[0], mask)
    assert again[1] is None


def test_every_place_is_as_likely():
    corners = [
        divmod(int(RandomScaleCrop((45, 38))(NUMBERED, None, seed)[0][0, 0]), 40)
        for seed in range(1200)
    ]
    counts = np.zeros((4, 3), int)
    np.add.at(counts, tuple(np.transpose(corners)), 1)  # no other place: IndexError
    assert counts.min() > 60, counts  # 100 each


@PROPERTY
@given(st.integers(0, 2**62))
def test_a_piece_that_is_too_large_is_filled_up_with_black_and_ignored(seed):
    """It holds the whole resized image, so that its size tells the factor."""
    mask = (NUMBERED % 251).astype(np.uint8)
    image = np.full((48, 40, 3), 200, np.uint8)
    crop = RandomScaleCrop(100, scale=(0.5, 2.0))
    piece, labels = crop(image, mask, seed)
    height, width = (labels[:, 0] != 255).sum(), (labels[0] != 255).sum()
    assert 24 <= height <= 96
    assert abs(height / 48 - width / 40) < 1 / 40  # one factor for both sides
    rows = np.floor((np.arange(height) + 0.5) * 48 / height).astype(int)
    columns = np.floor((np.arange(width) + 0.5) * 40 / width).astype(int)
    np.testing.assert_array_equal(labels[:height, :width], mask[rows][:, columns])
    assert (piece[:height, :width] == 200).all()
    for filled, value in ((piece, 0), (labels, 255)):
        assert (filled[height:] == value).all()
        assert (filled[:, width:] == value).all()
    assert (piece.dtype, labels.dtype) == (image.dtype, mask.dtype)


def test_factors_fill_their_range():
    white = np.ones((50, 50), np.uint8)
    crop = RandomScaleCrop(100, scale=(0.5, 2.0))
    sides = [int(crop(white, None, seed)[0].sum(axis=0)[0]) for seed in range(300)]
    assert np.histogram(sides, bins=5, range=(25, 100))[0].min() > 35  # 60 each


@PROPERTY
@given(st.integers(0, 2**62))
def test_a_resized_shape_covers_its_resized_mask(seed):
    y, x = np.mgrid[:64, :64]
    mask = ((x - 25) ** 2 + (y - 38) ** 2 < 300).astype(np.uint8)
    image, labels = RandomScaleCrop(48, scale=(0.75, 1.5))(mask * 255, mask, seed)
    assert image.shape == labels.shape == (48, 48)
    known = labels != 255
    assert ((image > 127) == labels)[known].mean() > 0.98


def share_of_the_largest(mask):
    """MMSegmentation's `cat_max_ratio`, written down once more."""
    labels, counts = np.unique(mask, return_counts=True)
    counts = counts[labels != 255]
    return counts.max() / counts.sum() if len(counts) > 1 else 1.0


def test_pieces_of_one_class_are_drawn_again():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 1
    mask[:8] = 255
    overlapping = np.stack([mask == 1, np.zeros_like(mask)], axis=-1).astype(np.uint8)
    overlapping[:8] = 255
    drawn, plain = (RandomScaleCrop(32, largest_share=share) for share in (0.75, 1.0))
    shares = [share_of_the_largest(plain(mask, mask, seed)[1]) for seed in range(150)]
    assert 0.3 < np.mean(np.array(shares) < 0.75) < 0.7  # half of all places
    found = []
    for seed in range(150):
        _, piece = drawn(mask, mask, seed)
        found.append(share_of_the_largest(piece))
        np.testing.assert_array_equal(piece, drawn(mask, overlapping, seed)[1][..., 0])
    assert np.mean(np.array(found) < 0.75) > 0.98  # 1 - 0.55 ** 11
    nothing = drawn(mask, np.zeros_like(mask), 0)  # nothing better to be found: it ends
    assert nothing[1].shape == (32, 32)


def test_no_random_state_is_touched():
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global one
    RandomScaleCrop(8, scale=(0.5, 2.0))(NUMBERED, NUMBERED, 1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_a_data_set_gives_pieces_of_one_size():
    reader = SyntheticRadiographs(3, size=64)
    data = PreparedDataset(
        reader, input=InputSpec(1), size=64, augment=RandomScaleCrop(40, scale=(0.5, 1.5)), seed=0
    )
    data.set_epoch(0)
    assert {tuple(data[k]["image"].shape) for k in range(3)} == {(1, 40, 40)}
    assert {tuple(data[k]["mask"].shape) for k in range(3)} == {(5, 40, 40)}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": 0}, "size must be 1 or more"),
        ({"size": 8, "scale": (2.0, 1.0)}, "two factors above 0, going up"),
        ({"size": 8, "scale": (0.0, 1.0)}, "two factors above 0"),
        ({"size": 8, "largest_share": 0.0}, "largest_share must lie above 0"),
    ],
)
def test_options_are_checked(options, match):
    with pytest.raises(DataError, match=match):
        RandomScaleCrop(**options)
