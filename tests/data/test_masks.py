import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.data.images import resize_image
from transferseg.data.masks import read_mask, read_mask_colours, resize_mask
from transferseg.errors import DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (9, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)


def test_masks_are_numbers_not_colours(save):
    same = np.repeat(GREY[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read_mask(save("same.png", same)), GREY)
    with pytest.raises(DataError, match=r"colours\.png: a colour mask"):
        read_mask(save("colours.png", COLOUR))
    drawn = read_mask_colours(save("drawn.png", np.array([[[0, 0, 0, 255], [0, 0, 3, 255]]], "u1")))
    assert drawn.tolist() == [[0, 1]]
    with pytest.raises(DataError, match="mode 'F'"):
        read_mask(save("f.tif", GREY.astype(np.float32)))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_masks_resize_to_values_that_were_there(h, w, new_h, new_w):
    mask = np.random.default_rng(h * w).choice(np.array([0, 3, 255], np.uint8), (h, w, 2))
    result = resize_mask(mask, (new_h, new_w))
    assert result.shape == (new_h, new_w, 2)
    assert set(np.unique(result)) <= set(np.unique(mask))
    np.testing.assert_array_equal(resize_mask(mask, (h, w)), mask)


def test_masks_and_images_stay_aligned_when_resized():
    mask = np.zeros((60, 90), np.uint8)
    mask[20:40, 30:75] = 255
    for size in ((32, 32), (30, 45), (120, 100)):
        image = resize_image(mask, size)
        assert (np.abs(image.astype(int) - resize_mask(mask, size)) > 128).mean() < 0.02
