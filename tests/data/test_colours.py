import colorsys

import numpy as np
import pytest

from transferseg.data import ColourJitter
from transferseg.errors import DataError

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def held(value):
    return min(1.0, max(0.0, value))


def oracle(pixel, brightness, contrast, saturation, turn, contrast_first):
    """One pixel of 0 to 1, with Python's own conversion; what is left out is 0 or 1."""
    pixel = [held(v + brightness) for v in pixel]
    if contrast_first:
        pixel = [held(v * contrast) for v in pixel]
    hue, colour, value = colorsys.rgb_to_hsv(*pixel)
    pixel = colorsys.hsv_to_rgb((hue + turn / 360) % 1.0, held(colour * saturation), value)
    return pixel if contrast_first else [held(v * contrast) for v in pixel]


def drawn(seed, jitter):
    """The draws of a seed, in the order in which they are made."""
    rng = np.random.default_rng(seed)
    happens = rng.random(4) < jitter.probability
    values = [
        rng.uniform(-jitter.brightness, jitter.brightness), rng.uniform(*jitter.contrast),
        rng.uniform(*jitter.saturation), rng.uniform(-jitter.hue, jitter.hue),
    ]  # fmt: skip
    kept = np.where(happens, values, (0, 1, 1, 0))
    return [*kept, bool(rng.integers(2))]


@pytest.mark.parametrize("seed", range(12))
def test_it_is_its_definition(seed):
    jitter = ColourJitter(probability=0.7)
    expected = np.array(
        [[oracle(pixel / 255, *drawn(seed, jitter)) for pixel in row] for row in IMAGE]
    )
    mask = np.ones((6, 5), np.uint8)
    image, same = jitter(IMAGE, mask, seed)
    assert same is mask
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image, expected * 255, atol=0.51 + 0.05)
    floats, _ = jitter((IMAGE / 255).astype(np.float32), None, seed)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, expected, atol=2e-4)
    fine, _ = jitter(IMAGE.astype(np.uint16) * 257, None, seed)
    np.testing.assert_allclose(fine, expected * 65535, atol=16)


def test_every_part_happens_as_often_as_told():
    """Sixteen combinations, each on its own: one of sixteen leaves the image as it is."""
    jitter = ColourJitter()
    results = [jitter(IMAGE, None, seed)[0] for seed in range(320)]
    alone = sum(np.array_equal(result, IMAGE) for result in results)
    assert 8 <= alone <= 36  # 20
    assert len({result.tobytes() for result in results}) > 280


def test_grey_images_have_no_hue():
    jitter = ColourJitter(brightness=0.0, contrast=(1.0, 1.0), probability=1.0)
    for image in (IMAGE[..., 0], IMAGE[..., :1], IMAGE[..., :2]):
        np.testing.assert_array_equal(jitter(image, None, 3)[0], image)
    assert not np.array_equal(jitter(IMAGE, None, 3)[0], IMAGE)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"brightness": 32}, r"brightness must lie in 0\.\.1, got 32"),
        ({"hue": -1.0}, r"hue must lie in 0\.\.180"),
        ({"probability": 1.5}, "probability must lie"),
        ({"contrast": (1.5, 0.5)}, "contrast must be two factors"),
    ],
)
def test_options_are_checked(options, match):
    with pytest.raises(DataError, match=match):
        ColourJitter(**options)
