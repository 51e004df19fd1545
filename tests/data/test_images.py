import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transferseg.data.images import (
    denormalise,
    image_size,
    normalise,
    read_image,
    resize_image,
    to_channels,
)
from transferseg.data.masks import read_mask
from transferseg.errors import DataError
from transferseg.spec import InputSpec

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (9, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_pixels_come_back_at_their_dtype(save, name):
    for pixels in (GREY, COLOUR, (GREY.astype(np.uint16) * 257)):
        read = read_image(save(name, pixels))
        assert read.dtype == pixels.dtype
        np.testing.assert_array_equal(read, pixels)


def test_alpha_is_dropped_and_not_blended(save):
    for pixels in (COLOUR, GREY[..., None]):
        with_alpha = np.concatenate([pixels, np.zeros_like(pixels[..., :1])], axis=-1)
        read = read_image(save("x.png", with_alpha))
        np.testing.assert_array_equal(read, pixels.squeeze())


def test_palette_bits_integers_and_floats(save):
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode=None).convert("P")
    palette.putpalette([9, 8, 7, 255, 0, 0, 0, 0, 255])
    path = save("unused.png", GREY).with_name("p.png")
    palette.putdata([0, 1, 2, 1])
    palette.save(path)
    assert read_image(path).tolist() == [[[9, 8, 7], [255, 0, 0]], [[0, 0, 255], [255, 0, 0]]]
    assert read_mask(path).tolist() == [[0, 1], [2, 1]]
    bits = save("b.png", np.array([[True, False]]))
    assert read_image(bits).tolist() == [[255, 0]]
    assert read_mask(bits).tolist() == [[1, 0]]
    assert read_image(save("i.tif", np.array([[0, 65535]], np.int32))).dtype == np.uint16
    floats = read_image(save("f.tif", np.array([[0.25, 0.5]], np.float32)))
    assert floats.dtype == np.float32
    assert floats.tolist() == [[0.25, 0.5]]


def test_pillow_s_limit_is_told_with_the_way_past_it(save, monkeypatch):
    path = save("large.png", GREY)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(DataError, match=r"large\.png: .*MAX_IMAGE_PIXELS = None"):
            read_image(path)
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert read_image(path).shape == GREY.shape


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif"])
def test_truncated_files_are_named(save, truncate, name):
    path = truncate(save(name, RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    with pytest.raises(DataError, match=name):
        read_image(path)


def test_files_that_are_no_single_image_are_named(save, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png: not an image"):
        read_image(tmp_path / "text.png")
    with pytest.raises(DataError, match=r"gone\.png: the file does not exist"):
        image_size(tmp_path / "gone.png")
    with pytest.raises(DataError, match="not an image"):
        read_image(tmp_path)
    frames = [Image.fromarray(GREY)] * 2
    frames[0].save(tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"two\.tif: holds 2 images"):
        read_image(tmp_path / "two.tif")
    with pytest.raises(DataError, match=r"cmyk\.tif: image mode 'CMYK'"):
        read_image(save("cmyk.tif", COLOUR, mode="CMYK"))
    with pytest.raises(DataError, match=r"wide\.tif: 32-bit values 0\.\.70000"):
        read_image(save("wide.tif", np.array([[0, 70000]], np.int32)))


def test_16_bit_colour_is_refused_rather_than_cut(tmp_path):
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "deep.png"), COLOUR.astype(np.uint16) * 257)
    with pytest.raises(DataError, match=r"deep\.png: 16-bit colour"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_to_colour_and_back_is_the_identity(dtype):
    every = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(-1, 16)
    colour = to_channels(every, 3, "RGB")
    np.testing.assert_array_equal(to_channels(colour, 1, "L")[..., 0], every)


def test_luminance_is_pillows():
    theirs = np.asarray(Image.fromarray(COLOUR).convert("L")).astype(int)
    assert np.abs(to_channels(COLOUR, 1, "L")[..., 0].astype(int) - theirs).max() <= 1
    assert np.array_equal(to_channels(COLOUR, 3, "BGR"), COLOUR[..., ::-1])


@pytest.mark.parametrize(
    ("image", "channels", "order", "match"),
    [
        (np.zeros((4, 4, 2), np.uint8), 1, "L", r"2 channel\(s\)"),
        (np.zeros((4, 4, 3), np.uint8), 4, "any", "as 4 channel"),
        (np.zeros((4, 4), np.uint8), 3, "L", "order 'L'"),
        (np.zeros((4, 4), np.uint8), 3, "GBR", "unknown channel order 'GBR'"),
        (np.zeros((4,), np.uint8), 1, "L", r"got shape \(4,\)"),
        (np.zeros((0, 4), np.uint8), 1, "L", "with pixels"),
    ],
)
def test_channels_that_cannot_be_made(image, channels, order, match):
    with pytest.raises(DataError, match=match):
        to_channels(image, channels, order)


def test_normalise_agrees_with_torchvision():
    transforms = pytest.importorskip("torchvision.transforms.v2.functional")
    spec = InputSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    theirs = transforms.normalize(
        transforms.to_dtype(transforms.to_image(COLOUR), scale=True), spec.mean, spec.std
    )
    np.testing.assert_allclose(normalise(COLOUR, spec), theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_normalise_maps_the_full_range_of_every_dtype():
    spec = InputSpec(channels=1, value_range=(-1.0, 1.0))
    for image in (
        np.array([[0, 255]], np.uint8),
        np.array([[0, 65535]], np.uint16),
        np.array([[0.0, 1.0]], np.float32),
    ):
        result = normalise(image, spec)
        assert result.dtype == np.float32
        assert result.flags.c_contiguous
        np.testing.assert_allclose(result, [[[-1, 1]]], atol=1e-6)


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.array([[0.0, 1.5]]), r"within 0\.\.1, got 0\.\.1\.5"),
        (np.array([[-0.1, 1.0]]), r"within 0\.\.1"),
        (np.array([[np.nan, 0.5]]), r"within 0\.\.1"),
        (np.array([[1, 2]]), "dtype int64"),
        (np.array([[True]]), "dtype bool"),
    ],
)
def test_normalise_refuses_values_of_unknown_range(image, match):
    with pytest.raises(DataError, match=match):
        normalise(image, InputSpec(channels=1))


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.sampled_from(["L", "RGB", "BGR"]), st.sampled_from([(0, 1), (0, 255), (-1, 1)]))
def test_denormalise_undoes_normalise(order, value_range):
    image = GREY if order == "L" else COLOUR
    count = 1 if order == "L" else 3
    spec = InputSpec(count, order, value_range, mean=(0.4, 0.1, 0.2)[:count], std=(2, 3, 4)[:count])
    back = denormalise(normalise(image, spec), spec)
    np.testing.assert_allclose(back, image / 255, atol=1e-5)


def test_denormalise_names_a_wrong_shape():
    with pytest.raises(DataError, match=r"\(1, H, W\), got shape \(3, 2, 2\)"):
        denormalise(np.zeros((3, 2, 2)), InputSpec(channels=1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (6,)])
def test_shrinking_takes_the_mean_over_the_area(dtype, channels):
    image = RNG.integers(0, 200, (12, 8, *channels)).astype(dtype)
    image = image / dtype(255) if dtype is np.float32 else image
    small = resize_image(image, (4, 4))
    mean = image.astype(float).reshape(4, 3, 4, 2, *channels).mean(axis=(1, 3))
    assert small.dtype == dtype
    np.testing.assert_allclose(small, mean, atol=1e-6 if dtype is np.float32 else 0.51)


def test_one_side_grows_while_the_other_shrinks():
    image = np.repeat(RNG.integers(0, 256, (1, 12), dtype=np.uint8), 4, axis=0)
    result = resize_image(image, (8, 4))
    assert result.shape == (8, 4)
    np.testing.assert_allclose(result[0], image[0].reshape(4, 3).mean(axis=1), atol=0.51)


@pytest.mark.parametrize("name", ["a.bmp", "a.tif"])
def test_8_bit_colour_is_not_taken_for_16_bit(name, tmp_path):
    for width in (205, 64, 16):  # strides and offsets that hold the digits 16
        pixels = np.random.default_rng(width).integers(0, 255, (40, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), pixels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [(31, 23), (90, 70), (31, 90)])
def test_resized_floats_stay_within_their_values(dtype, size):
    for value in (1.0, 0.3):
        image = np.full((64, 50, 3), value, dtype)
        found = resize_image(image, size)
        assert (found.shape, found.dtype) == ((*size, 3), dtype)
        assert (found == dtype(value)).all()
        normalise(found, InputSpec(3))
