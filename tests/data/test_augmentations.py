import pickle

import numpy as np
import pytest

from transferseg.data import (
    Augmentation,
    AugmentationChain,
    ColourJitter,
    PreparedDataset,
    RandomScaleCrop,
    Sample,
    SyntheticRadiographs,
    khadka2020_augmentation,
    mmseg_augmentation,
)
from transferseg.errors import DataError
from transferseg.spec import InputSpec


class Noted:
    def __init__(self):
        self.seeds = []

    def __call__(self, image, mask, seed):
        self.seeds.append(seed)
        return image, mask


def test_every_step_has_a_seed_of_its_own():
    first, second = Noted(), Noted()
    chain = AugmentationChain((first, second))
    for seed in (0, 1, 2, 1):
        chain(np.zeros((2, 2), np.uint8), None, seed)
    seeds = first.seeds + second.seeds
    assert first.seeds[1] == first.seeds[3]
    assert len(set(seeds)) == 6


def test_sides_reach_the_step_that_reflects():
    reader = SyntheticRadiographs(2, size=64)
    chain = mmseg_augmentation(64, scale=(1.0, 1.0), largest_share=1.0, reflect=1.0, colours=None)
    data = PreparedDataset(reader, input=InputSpec(1), size=64, augment=chain, seed=0)
    data.set_epoch(0)
    right, left = (reader.classes.index(name) for name in ("Right Lung", "Left Lung"))
    mask, plain = data[0]["mask"].numpy(), reader[0].mask
    np.testing.assert_array_equal(mask[right], plain[:, ::-1, left])
    np.testing.assert_array_equal(mask[left], plain[:, ::-1, right])
    assert data.augment.swaps
    assert not chain.swaps  # the given one is as it was


def test_a_reflection_in_a_chain_refuses_sided_labels():
    class Labelled(SyntheticRadiographs):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return Sample(sample.image, None, np.zeros(5, np.float32), sample.id, sample.group)

    data = PreparedDataset(
        Labelled(2, size=64), input=InputSpec(1), size=64, augment=mmseg_augmentation(32)
    )
    with pytest.raises(DataError, match="label of a sided class"):
        data[0]


def test_mmsegmentation_has_its_parts_in_its_order():
    crop, flip, colours = mmseg_augmentation(512).steps
    assert crop == RandomScaleCrop(512, scale=(0.5, 2.0), largest_share=0.75)
    assert flip == Augmentation(reflect=0.5)
    assert colours == ColourJitter(32 / 255, (0.5, 1.5), (0.5, 1.5), 36.0, 0.5)


def test_an_empty_chain_is_refused():
    with pytest.raises(DataError, match="needs a step"):
        AugmentationChain(())


# --- Khadka 2020 --------------------------------------------------------------------------------


def blob():
    y, x = np.mgrid[:96, :96]
    return (((x - 40) ** 2 + (y - 52) ** 2) < 700).astype(np.uint8)


def khadka(**options):
    off = dict.fromkeys(("reflect", "vertical", "rotation", "elastic", "shift", "flare"), 0.0)
    return khadka2020_augmentation(**{**off, **options}).for_classes(("polyp",), mode="binary")


@pytest.mark.parametrize("part", ["rotation", "elastic"])
def test_what_a_warp_uncovers_is_ignored_in_every_class(part):
    mask = np.zeros((64, 64, 6), np.uint8)
    warped = khadka(**{part: 1.0})(np.full((64, 64, 3), 200, np.uint8), mask, 3)[1]
    uncovered = warped == 255
    assert uncovered[..., 0].any()
    assert (uncovered == uncovered[..., :1]).all()


@pytest.mark.parametrize("part", ["reflect", "vertical", "rotation", "elastic"])
def test_shapes_move_with_their_masks(part):
    augment, mask = khadka(**{part: 1.0}), blob()
    for seed in range(4):
        image, warped = augment(np.stack([mask * 255] * 3, axis=-1), mask, seed)
        known = warped != 255
        assert ((image[..., 1] > 127) == warped)[known].mean() > 0.99
        assert known.mean() > 0.9
        assert not np.array_equal(warped, mask)


@pytest.mark.parametrize("part", ["shift", "flare"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_colours_change_and_the_mask_stays(part, dtype):
    image = np.full((96, 96, 3), 100, np.uint8)
    image = image if dtype is np.uint8 else (image / 255).astype(np.float32)
    full = 255 if dtype is np.uint8 else 1.0
    changed = 0
    for seed in range(4):
        result, mask = khadka(**{part: 1.0})(image, blob(), seed)
        np.testing.assert_array_equal(mask, blob())
        assert result.dtype == dtype
        difference = np.abs(result.astype(float) - image.astype(float)) / full
        changed += difference.max() > 0.01
        if part == "shift":
            assert difference.max() <= 20.5 / 255
            assert np.ptp(result.reshape(-1, 3), axis=0).max() <= 1e-6  # one shift a channel
        else:
            assert (difference < 0.01).mean() > 0.2  # a flare, not a white image
    assert changed >= 3


def test_it_does_all_of_it_and_repeats():
    augment = khadka2020_augmentation().for_classes(("polyp",), mode="binary")
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    again = pickle.loads(pickle.dumps(augment))
    results = [augment(image, blob(), seed) for seed in range(40)]
    plain = sum(np.array_equal(result, image) for result, _ in results)
    assert plain <= 9  # 0.5 ** 3 * 0.8 ** 2 * 0.9 of 40 is 2.9
    for seed in (0, 7):
        for one, other in zip(results[seed], again(image, blob(), seed), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("part", "dtype", "channels"), [("shift", np.uint16, 3), ("flare", np.uint8, 1)]
)
def test_images_that_a_transform_cannot_take_are_told(part, dtype, channels):
    image = np.full((32, 32, channels), 200, dtype)
    with pytest.raises(DataError, match=rf"{dtype.__name__} \(32, 32, {channels}\): "):
        khadka(**{part: 1.0})(image, None, 0)


def test_grey_images_do_without_colours():
    grey = np.full((64, 64, 1), 90, np.uint8)
    augment = khadka2020_augmentation(shift=0.0, flare=0.0)
    assert augment(grey, None, 0)[0].shape == grey.shape
