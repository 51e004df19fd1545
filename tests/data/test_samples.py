import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from transferseg.data.samples import PreparedDataset, Reader, Sample
from transferseg.data.synthetic import SyntheticRadiographs
from transferseg.data.transforms import flips_augmentation, merand2021_augmentation
from transferseg.errors import DataError
from transferseg.spec import InputSpec

GREY = InputSpec(channels=1)


class Listed:
    """A reader of samples that a test gives."""

    def __init__(self, samples, classes, mode):
        self.samples, self.classes, self.mode = samples, classes, mode
        self.ids = tuple(sample.id for sample in samples)
        self.groups = tuple(sample.group for sample in samples)
        self.reads = 0

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.reads += 1
        return self.samples[index]


def reader(mode, classes, shape=(40, 50), mask_shape=None, label=None):
    rng = np.random.default_rng(0)
    mask_shape = mask_shape or (shape if mode != "multilabel" else (*shape, len(classes)))
    return Listed(
        [
            Sample(
                rng.integers(0, 256, shape, dtype=np.uint8),
                rng.integers(0, 2, mask_shape, dtype=np.uint8),
                label,
                f"image-{index}",
                f"patient-{index // 2}",
            )
            for index in range(4)
        ],
        classes,
        mode,
    )


@pytest.mark.parametrize(
    ("mode", "classes", "shape", "dtype"),
    [
        ("binary", ("polyp",), (1, 32, 48), torch.uint8),
        ("multiclass", ("background", "a", "b"), (32, 48), torch.int64),
        ("multilabel", ("a", "b", "c"), (3, 32, 48), torch.uint8),
    ],
)
def test_items_have_the_promised_shapes_and_dtypes(mode, classes, shape, dtype):
    source = reader(mode, classes, label=np.array([0.0, 1, np.nan][: len(classes)]))
    assert isinstance(source, Reader)
    data = PreparedDataset(source, [2, 0], input=InputSpec(), size=(32, 48))
    item = data[0]
    assert item["image"].shape == (3, 32, 48)
    assert item["image"].dtype == torch.float32
    assert item["mask"].shape == shape
    assert item["mask"].dtype == dtype
    assert item["label"].dtype == torch.float32
    assert (item["id"], item["group"]) == ("image-2", "patient-1")
    assert data.groups == ("patient-1", "patient-0")
    batch = next(iter(DataLoader(data, batch_size=2)))
    assert batch["mask"].shape == (2, *shape)
    assert batch["id"] == ["image-2", "image-0"]


def test_what_is_missing_has_no_key():
    images = SyntheticRadiographs(2, size=32, task="images")
    item = PreparedDataset(images, input=GREY, size=None)[0]
    assert set(item) == {"image", "id", "group"}


def test_without_a_size_pixels_and_masks_are_the_readers():
    source = reader("multilabel", ("a", "b"))
    item = PreparedDataset(source, input=GREY, size=None)[1]
    sample = source.samples[1]
    np.testing.assert_allclose(item["image"][0] * 255, sample.image, atol=1e-4)
    np.testing.assert_array_equal(item["mask"], sample.mask.transpose(2, 0, 1))


def test_ignored_pixels_survive():
    source = reader("multilabel", ("a", "b"))
    source.samples[0].mask[10:30, 10:40] = 255
    item = PreparedDataset(source, input=GREY, size=32)[0]
    assert (item["mask"] == 255).float().mean() == pytest.approx(20 * 30 / 2000, abs=0.03)


def test_bgr_weights_get_blue_first():
    colour = np.zeros((32, 32, 3), np.uint8)
    colour[..., 0] = 255  # red
    source = Listed([Sample(colour, None, None, "red", "")], (), "multilabel")
    item = PreparedDataset(source, input=InputSpec(channel_order="BGR"), size=32)[0]
    assert item["image"].mean(dim=(1, 2)).tolist() == [0, 0, 1]


@pytest.mark.parametrize("augment", [None, merand2021_augmentation(), flips_augmentation()])
@pytest.mark.parametrize("persistent", [False, True])
def test_any_number_of_workers_gives_the_same_epochs(augment, persistent):
    data = PreparedDataset(
        SyntheticRadiographs(6, size=32), input=GREY, size=32, augment=augment, seed=5
    )
    alone = DataLoader(data, batch_size=2)
    workers = DataLoader(data, batch_size=2, num_workers=2, persistent_workers=persistent)
    epochs = []
    for epoch in range(2):
        data.set_epoch(epoch)
        batches = list(zip(alone, workers, strict=True))
        for a, b in batches:
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["mask"], b["mask"])
            assert a["id"] == b["id"]
        epochs.append(torch.cat([a["image"] for a, _ in batches]))
    assert torch.equal(*epochs) == (augment is None)


def test_items_of_an_epoch_do_not_depend_on_the_order_of_access():
    data = PreparedDataset(
        SyntheticRadiographs(4, size=32), input=GREY, size=32, augment=merand2021_augmentation()
    )
    data.set_epoch(3)
    forward = [data[i]["image"] for i in range(4)]
    backward = [data[i]["image"] for i in reversed(range(4))][::-1]
    assert all(map(torch.equal, forward, backward))


def test_without_set_epoch_torchs_seed_decides():
    data = PreparedDataset(
        SyntheticRadiographs(8, size=32), input=GREY, size=32, augment=merand2021_augmentation()
    )
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(torch.stack([data[i]["image"] for i in range(8)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_repeats_of_an_index_are_augmented_each_in_their_own_way():
    data = PreparedDataset(
        SyntheticRadiographs(1, size=32), [0] * 8, input=GREY, size=32,
        augment=merand2021_augmentation(),
    )  # fmt: skip
    data.set_epoch(0)
    assert len({data[i]["image"].numpy().tobytes() for i in range(8)}) > 3


def test_the_cache_reads_every_image_once_and_changes_nothing():
    source = reader("binary", ("polyp",))
    plain = PreparedDataset(source, input=GREY, size=32, augment=flips_augmentation(), seed=1)
    source.reads = 0
    cached = PreparedDataset(
        source, [0, 3, 3], input=GREY, size=32, augment=flips_augmentation(), seed=1, cache=True
    )
    assert source.reads == 2
    for data in (plain, cached):
        data.set_epoch(0)
    for _ in range(2):
        kept, read = cached[0], plain[0]
        assert torch.equal(kept["image"], read["image"])
        assert torch.equal(kept["mask"], read["mask"])
    assert source.reads == 4


def test_it_pickles_with_its_epoch():
    data = PreparedDataset(
        SyntheticRadiographs(3, size=32), input=GREY, size=32, augment=merand2021_augmentation()
    )
    data.set_epoch(2)
    data[0]  # builds the transforms, which must not be in the way
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[1]["image"], data[1]["image"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"indices": [0, 4]}, r"indices 4 lie outside the reader's 0\.\.3"),
        ({"indices": [-1]}, "indices -1"),
        ({"indices": []}, "indices is empty"),
        ({"size": 31}, "from 32, got 31"),
        ({"size": (64, 8)}, "from 32"),
        ({"size": 64.0}, "whole numbers"),
    ],
)
def test_construction_checks(change, match):
    options = {"indices": None, "size": 32, **change}
    with pytest.raises(DataError, match=match):
        PreparedDataset(reader("binary", ("polyp",)), options.pop("indices"), input=GREY, **options)


@pytest.mark.parametrize(
    ("mode", "classes"),
    [("binary", ("a", "b")), ("multiclass", ("a",)), ("multilabel", ("a", "a"))],
)
def test_classes_must_fit_the_mode(mode, classes):
    with pytest.raises(DataError, match="class"):
        PreparedDataset(reader(mode, classes), input=GREY, size=32)


def test_targets_that_do_not_fit_are_named():
    with pytest.raises(DataError, match=r"image-0: a multilabel mask of 3 class\(es\)"):
        PreparedDataset(
            reader("multilabel", ("a", "b", "c"), mask_shape=(40, 50, 2)), input=GREY, size=32
        )[0]
    with pytest.raises(DataError, match=r"image-0: a label must have one entry"):
        PreparedDataset(
            reader("binary", ("a",), label=np.zeros(3, np.float32)), input=GREY, size=32
        )[0]
    with pytest.raises(DataError, match=r"x: a mask of \(4, 5\) does not fit an image of \(5, 4\)"):
        Sample(np.zeros((5, 4), np.uint8), np.zeros((4, 5), np.uint8), None, "x", "")
    floats = Listed([Sample(np.full((32, 32), 300.0), None, None, "hot", "")], (), "multilabel")
    with pytest.raises(DataError, match=r"hot: .*within 0\.\.1"):
        PreparedDataset(floats, input=GREY, size=32)[0]


def test_positions_outside_end_a_loop():
    data = PreparedDataset(SyntheticRadiographs(2, size=32), input=GREY, size=32)
    assert len(list(data)) == 2
    with pytest.raises(DataError, match="counts from 0"):
        data.set_epoch(-1)
