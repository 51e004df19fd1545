import pickle

import numpy as np
import pytest

from transferseg.data.readers.folders import ImageFolder, ImageMaskFolder
from transferseg.data.samples import Reader
from transferseg.errors import DataError

RNG = np.random.default_rng(0)


def noise(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


@pytest.fixture
def polyps(save, tmp_path):
    """Kvasir-SEG's layout: colour JPEG images, JPEG masks in three equal channels."""
    drawn = np.zeros((40, 48), np.uint8)
    drawn[8:24, 16:40] = 255
    for name in ("p1_b", "p1_a", "p2_a"):
        save(f"images/{name}.jpg", noise(40, 48, 3))
        save(f"masks/{name}.jpg", drawn, mode="RGB")
    return tmp_path, drawn


def test_jpeg_masks_by_threshold(polyps):
    root, drawn = polyps
    reader = ImageMaskFolder(
        root, classes=("polyp",), threshold=127, group=lambda name: name.split("_")[0]
    )
    assert isinstance(reader, Reader)
    assert reader.ids == ("p1_a", "p1_b", "p2_a")
    assert reader.groups == ("p1", "p1", "p2")
    assert reader.mode == "binary"
    again = pickle.loads(pickle.dumps(reader))
    for sample in again:
        assert sample.image.shape == (40, 48, 3)
        assert sample.mask.dtype == np.uint8
        np.testing.assert_array_equal(sample.mask, drawn > 127)


def test_masks_of_0_and_255_are_not_guessed(save, tmp_path):
    save("images/x.png", noise(8, 8))
    save("masks/x.png", np.array([[0, 200]] * 4 + [[255, 1]] * 4, np.uint8).repeat(4, axis=1))
    with pytest.raises(DataError, match=r"masks.x\.png: pixel value\(s\) 200 .*threshold=127"):
        ImageMaskFolder(tmp_path, classes=("a",))[0]
    values = {0: 0, 1: 0, 200: 1, 255: 1}
    mask = ImageMaskFolder(tmp_path, classes=("a",), values=values)[0].mask
    assert mask.mean() == 0.5
    assert set(np.unique(mask)) == {0, 1}


def test_a_plain_0_255_mask_is_refused_and_not_taken_for_ignored_pixels(save, tmp_path):
    save("images/x.png", noise(8, 8))
    save("masks/x.png", np.array([[0, 255]] * 8, np.uint8).repeat(4, axis=1))
    with pytest.raises(DataError, match=r"x\.png: holds 255 .*threshold=127"):
        ImageMaskFolder(tmp_path, classes=("a",))[0]
    mask = ImageMaskFolder(tmp_path, classes=("a",), values={0: 0, 1: 1, 255: 255})[0].mask
    assert set(np.unique(mask)) == {0, 255}


def test_class_numbers_16_bit_images_and_ignored_pixels(save, tmp_path):
    image = noise(4, 4, dtype=np.uint16)
    numbers = np.array([[0, 1, 2, 255]] * 4, np.uint8)
    save("scans/x.tif", image)
    save("truth/x.png", numbers)
    reader = ImageMaskFolder(
        images=tmp_path / "scans", masks=tmp_path / "truth", classes=("back", "a", "b")
    )
    assert reader.mode == "multiclass"
    np.testing.assert_array_equal(reader[0].image, image)
    np.testing.assert_array_equal(reader[0].mask, numbers)
    mapped = ImageMaskFolder(
        images=tmp_path / "scans",
        masks=tmp_path / "truth",
        classes=("back", "a"),
        values={0: 0, 1: 1, 2: 255, 255: 0},
    )
    assert mapped[0].mask[0].tolist() == [0, 1, 255, 0]
    with pytest.raises(DataError, match=r"x\.png: pixel value\(s\) 2 mean no class"):
        ImageMaskFolder(images=tmp_path / "scans", masks=tmp_path / "truth", classes=("back", "a"))[
            0
        ]


def test_pairs_that_do_not_match_are_named(polyps, save):
    root, _ = polyps
    (root / "masks" / "p1_a.jpg").unlink()
    with pytest.raises(DataError, match=r"images.p1_a\.jpg: no mask of the same name"):
        ImageMaskFolder(root, classes=("polyp",))
    save("masks/p1_a.png", noise(48, 40))
    with pytest.raises(DataError, match=r"p1_a\.png is 40x48, but its image .* is 48x40"):
        ImageMaskFolder(root, classes=("polyp",))
    save("masks/p1_a.png", noise(40, 48))
    save("masks/extra.png", noise(40, 48))
    with pytest.raises(DataError, match=r"masks.extra\.png: no image of the same name"):
        ImageMaskFolder(root, classes=("polyp",))
    save("masks/p1_a.jpg", noise(40, 48))
    with pytest.raises(DataError, match="share the name 'p1_a'"):
        ImageMaskFolder(root, classes=("polyp",))


def test_damaged_files_are_named(polyps, truncate, save):
    root, _ = polyps
    truncate(save("masks/p1_b.jpg", noise(40, 48)))
    reader = ImageMaskFolder(root, classes=("polyp",), threshold=127)
    with pytest.raises(DataError, match=r"masks.p1_b\.jpg: the file is truncated"):
        reader[1]
    (root / "images" / "p2_a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"p2_a\.jpg: not an image"):
        ImageMaskFolder(root, classes=("polyp",))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"classes": ("a", "b"), "threshold": 127}, "threshold is for binary"),
        ({"classes": ("a",), "threshold": 1, "values": {0: 0}}, "not beside values"),
        ({"classes": ("a",), "values": {7: 2}}, r"class numbers 0\.\.1 or 255 .*\{7: 2\}"),
        ({"classes": ("a",), "values": {}}, "values maps"),
        ({"classes": ("a", "b"), "mode": "multilabel"}, "exclusive classes"),
        ({"classes": ("a", "b"), "mode": "binary"}, r"does not fit 2 class"),
        ({"classes": ()}, "does not fit 0 class"),
        ({"classes": ("a",), "images": "x"}, "either the root"),
        ({"classes": ("a",), "group": lambda name: 3}, "gave 3 for 'p1_a'"),
        ({"classes": ("a",), "group": lambda name: name.split("-")[1]}, "failed on 'p1_a'"),
    ],
)
def test_options_are_checked(polyps, options, match):
    with pytest.raises(DataError, match=match):
        ImageMaskFolder(polyps[0], **options)


def test_plain_folders(save, tmp_path):
    save("scans/b.png", noise(8, 8))
    save("scans/a.TIF", noise(8, 9, dtype=np.uint16))
    save("scans/deep/a.jpg", noise(8, 8, 3))
    (tmp_path / "scans" / "notes.txt").write_text("no image")
    reader = ImageFolder(tmp_path / "scans")
    assert isinstance(reader, Reader)
    assert reader.ids == reader.groups == ("a", "b")
    assert reader[0].image.dtype == np.uint16
    assert reader[1].mask is None
    deep = ImageFolder(tmp_path / "scans", recursive=True, group=lambda name: name[0])
    assert deep.ids == ("a", "b", "deep/a")
    assert deep.groups == ("a", "b", "d")
    assert ImageFolder(tmp_path / "scans", pattern="b*").ids == ("b",)
    with pytest.raises(DataError, match=r"no image matches '\*\.gif'"):
        ImageFolder(tmp_path / "scans", pattern="*.gif")
    with pytest.raises(DataError, match="the folder does not exist"):
        ImageFolder(tmp_path / "gone")
    save("scans/b.jpg", noise(8, 8))
    with pytest.raises(DataError, match="share the name 'b'"):
        ImageFolder(tmp_path / "scans")
