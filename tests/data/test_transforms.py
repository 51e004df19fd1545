import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.data.readers.ccxs import CCXS_CLASSES
from transferseg.data.synthetic import SyntheticRadiographs
from transferseg.data.transforms import (
    Augmentation,
    flips_augmentation,
    merand2021_augmentation,
    side_pairs,
)
from transferseg.errors import DataError

PROPERTY = settings(deadline=None, max_examples=20, derandomize=True)


def blob(size=64, channels=13):
    """Large smooth shapes, one a channel: turning them is comparable in any interpolation."""
    y, x = np.mgrid[:size, :size] / size
    planes = [
        ((x - 0.3 - 0.03 * k) ** 2 + (y - 0.6 + 0.02 * k) ** 2 < 0.05) for k in range(channels)
    ]
    return np.stack(planes, axis=-1).astype(np.uint8)


@PROPERTY
@given(st.integers(0, 2**62))
def test_image_and_mask_move_together(seed):
    mask = blob()
    augment = merand2021_augmentation(blur=0.0, swap=()).for_classes(
        [f"class {k}" for k in range(13)], mode="multilabel"
    )
    image, warped = augment(mask * 255, mask, seed)
    assert ((image > 127) == warped).mean() > 0.99
    image, warped = augment(mask[..., 0] * 255, mask[..., 0], seed)
    assert ((image > 127) == warped).mean() > 0.99


@PROPERTY
@given(st.integers(0, 2**62), st.sampled_from([np.uint8, np.uint16, np.float32]))
def test_dtype_and_shape_stay_and_the_seed_decides(seed, dtype):
    full = 1 if dtype is np.float32 else np.iinfo(dtype).max
    image = (np.random.default_rng(0).random((40, 48, 1)) * full).astype(dtype)
    mask = blob(48)[:40]
    before = image.copy(), mask.copy()
    augment = merand2021_augmentation().for_classes(CCXS_CLASSES, mode="multilabel")
    first, again = augment(image, mask, seed), augment(image, mask, seed)
    other = pickle.loads(pickle.dumps(augment))(image, mask, seed)
    for a, b, c, original in zip(first, again, other, before, strict=True):
        assert a.shape == original.shape
        assert a.dtype == original.dtype
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])
    if dtype is np.float32:
        assert 0 <= first[0].min() <= first[0].max() <= 1


def test_each_transform_draws_for_itself():
    """albumentations 2.0.8 alone flips both ways together, always."""
    flip = flips_augmentation()
    image = np.arange(4, dtype=np.uint8).reshape(2, 2)
    corners = [int(flip(image, None, seed)[0][0, 0]) for seed in range(400)]
    counts = np.bincount(corners, minlength=4)
    assert counts.min() > 70, counts  # 100 each; 0 without seeds of their own
    both = Augmentation(_two_flips)
    corners = [int(both(image, None, seed)[0][0, 0]) for seed in range(400)]
    assert np.bincount(corners, minlength=4).min() > 70


def _two_flips():
    import albumentations

    return [albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)]


def _to_float():
    import albumentations

    return [albumentations.RandomGamma(p=1.0)]


def test_a_transform_that_changes_the_dtype_is_an_error():
    image = np.full((32, 32), 900, np.uint16)
    with pytest.raises(DataError, match=r"turned uint16 .* into float64"):
        Augmentation(_to_float)(image, None, 0)


def test_ignored_pixels_and_large_class_numbers_survive():
    augment = merand2021_augmentation(rotation=1.0, degrees=10, outside=255)
    for dtype, ignored in ((np.uint8, 255), (np.int64, 255), (np.int32, 3000)):
        mask = np.zeros((64, 64), dtype)
        mask[16:48, 16:48] = ignored
        mask[30:34, 30:34] = 7
        _, warped = augment(np.zeros((64, 64), np.uint8), mask, 1)
        assert warped.dtype == dtype
        assert set(np.unique(warped)) == {0, 7, 255, ignored}
    corners = merand2021_augmentation(rotation=1.0, degrees=10)
    _, warped = corners(np.zeros((64, 64), np.uint8), np.ones((64, 64), np.uint8), 1)
    assert set(np.unique(warped)) == {0, 1}


def test_a_reflection_swaps_left_and_right():
    mirror = Augmentation(reflect=1.0)
    sample = SyntheticRadiographs(1, size=64)[0]
    classes = SyntheticRadiographs(1, size=64).classes
    augment = mirror.for_classes(classes, mode="multilabel")
    image, mask = augment(sample.image, sample.mask, 0)
    np.testing.assert_array_equal(image, sample.image[:, ::-1])
    right, left = classes.index("Right Lung"), classes.index("Left Lung")
    np.testing.assert_array_equal(mask[..., right], sample.mask[:, ::-1, left])
    np.testing.assert_array_equal(mask[..., left], sample.mask[:, ::-1, right])
    np.testing.assert_array_equal(mask[..., 2:], sample.mask[:, ::-1, 2:])
    # What shows: the right lung is at the left of the picture, before and after.
    columns = np.arange(64)
    for lungs in (sample.mask, mask):
        assert (lungs[..., right].sum(0) @ columns) / lungs[..., right].sum() < 32
        assert (lungs[..., left].sum(0) @ columns) / lungs[..., left].sum() > 32
    again = augment(image, mask, 0)
    np.testing.assert_array_equal(again[1], sample.mask)
    kept = Augmentation(reflect=1.0, swap=()).for_classes(classes, mode="multilabel")
    np.testing.assert_array_equal(kept(sample.image, sample.mask, 0)[1], sample.mask[:, ::-1])


def test_a_reflection_swaps_class_numbers():
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    augment = Augmentation(reflect=1.0).for_classes(
        ("background", "left kidney", "right kidney"), mode="multiclass"
    )
    assert augment(mask, mask, 0)[1].tolist() == [[255, 1, 2, 0]]


def test_sides_are_found_by_name():
    assert side_pairs(CCXS_CLASSES) == ((1, 0),)
    assert side_pairs(CCXS_CLASSES, (("Left Lung", "Right Lung"),)) == ((1, 0),)
    assert side_pairs(("left_eye", "nose", "right_eye", "bright spot")) == ((0, 2),)
    assert side_pairs(("polyp",)) == ()
    with pytest.raises(DataError, match="'Left Lung' has a side but no counterpart"):
        side_pairs(("Left Lung", "Heart"))
    with pytest.raises(DataError, match=r"unknown class to swap 'Left Lug'.*'Left Lung'"):
        side_pairs(CCXS_CLASSES, (("Left Lug", "Right Lung"),))
    with pytest.raises(DataError, match="one other only"):
        side_pairs(("a", "b", "c"), (("a", "b"), ("b", "c")))
    with pytest.raises(DataError, match="counterpart"):
        merand2021_augmentation().for_classes(("Left Lung",), mode="binary")
    merand2021_augmentation(reflect=0.0).for_classes(("Left Lung",), mode="binary")


def test_probabilities_are_checked():
    with pytest.raises(DataError, match="from 0 to 1, got 2"):
        Augmentation(reflect=2.0)


def test_the_paper_augmentation_does_all_three():
    augment = merand2021_augmentation()
    image = SyntheticRadiographs(1, size=64)[0].image
    results = [augment(image, None, seed)[0] for seed in range(60)]
    plain = sum(np.array_equal(r, image) for r in results)
    mirrored = sum(np.array_equal(r, image[:, ::-1]) for r in results)
    assert 4 <= plain <= 20  # 0.5 * 0.7 * 0.5 of 60 is 10.5
    assert 4 <= mirrored <= 20


def test_importing_the_room_does_not_import_albumentations():
    code = "import transferseg.data, sys; sys.exit('albumentations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sides_are_found_in_any_spelling():
    from transferseg.data.transforms import side_pairs

    for left, right in (("Lung (left)", "Lung (right)"), ("lung-left", "lung-right"),
                        ("LeftLung", "RightLung"), ("left_lung", "right_lung")):  # fmt: skip
        assert side_pairs((right, "Heart", left)) == ((2, 0),)
    assert side_pairs(("cleft palate", "bright spot")) == ()
