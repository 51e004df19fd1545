import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from transferseg.data.samples import PreparedDataset, Sample
from transferseg.data.synthetic import SyntheticRadiographs
from transferseg.data.validate import check_batch, validate
from transferseg.errors import DataError
from transferseg.spec import InputSpec

NAN = torch.nan


class Listed:
    def __init__(self, samples, classes=("a", "b"), mode="multilabel"):
        self.samples, self.classes, self.mode = samples, classes, mode
        self.ids = tuple(getattr(sample, "id", "broken") for sample in samples)
        self.groups = self.ids

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if isinstance(self.samples[index], Exception):
            raise self.samples[index]
        return self.samples[index]


def sample(name, *, image=None, mask=None, label=None):
    image = np.zeros((8, 9), np.uint8) if image is None else image
    return Sample(image, mask, label, name, name)


def test_a_good_reader_is_counted():
    world = SyntheticRadiographs(10, size=32)
    report = validate(world)
    presence = np.stack([s.mask.any(axis=(0, 1)) for s in world]).sum(0)
    assert list(report.classes.values()) == presence.tolist()
    assert report.sizes == {(32, 32): 10}
    assert report.groups == len(set(world.groups))
    assert report.problems == ()
    report.raise_if_problems()
    assert "10 of 10 images read" in report.to_text()
    assert validate(world, sample=3).checked == 3
    with pytest.raises(DataError, match="1 or more"):
        validate(world, sample=0)


@pytest.mark.parametrize(
    ("bad", "classes", "mode", "match"),
    [
        (sample("p", mask=np.full((8, 9), 2, np.uint8)), ("a",), "binary", r"p: mask value\(s\) 2"),
        (sample("p", mask=np.full((8, 9), 3)), ("a", "b"), "multiclass", r"expected 0\.\.1"),
        (sample("p", mask=np.full((8, 9), -1)), ("a", "b"), "multiclass", r"mask value\(s\) -1"),
        (sample("p", mask=np.zeros((8, 9, 3), int)), ("a", "b"), "multilabel", "p: multilabel mas"),
        (sample("p", mask=np.zeros((8, 9))), ("a",), "binary", "dtype float64"),
        (sample("p", label=np.array([0, 2.0])), ("a", "b"), "multilabel", r"label value\(s\) 2"),
        (sample("p", label=np.zeros(3)), ("a", "b"), "multilabel", r"expected \(2,\)"),
        (sample("p", image=np.full((8, 9), 2.0)), ("a", "b"), "multilabel", r"p: a float image"),
        (sample("p", label=np.ones(2)), ("a", "b"), "multiclass", "p: a label with 2 of 2 excl"),
        (sample("p", label=np.zeros(2)), ("a", "b"), "multiclass", "with 0 of 2 .* and 0 missing"),
        (sample("p", label=np.array([1, np.nan])), ("a", "b"), "multiclass", "1 of 2 .* 1 missing"),
        (sample("p", label=np.full(2, 0.5)), ("a", "b"), "multiclass", r"label value\(s\) 0\.5"),
        (DataError("p.png: truncated"), ("a", "b"), "multilabel", "broken: p.png: truncated"),
    ],
)
def test_problems_name_the_image(bad, classes, mode, match):
    report = validate(Listed([sample("good"), bad], classes, mode))
    assert len(report.problems) == 1
    with pytest.raises(DataError, match=match):
        report.raise_if_problems()


def test_empty_masks_missing_labels_and_double_names():
    empty = np.zeros((8, 9, 2), np.uint8)
    empty[0] = 255
    labels = [sample("m", label=np.array([1, np.nan])), sample("m", mask=empty)]
    report = validate(Listed(labels))
    assert report.empty_masks == ("m",)
    assert report.classes == {"a": 1, "b": 0}
    assert report.problems == ("ids that stand for several images: m",)


def test_a_mask_of_class_0_alone_is_empty():
    masks = {"empty": np.zeros((8, 9), np.uint8), "full": np.eye(8, 9, dtype=np.uint8)}
    masks["ignored"] = np.where(masks["full"] == 1, 255, 0).astype(np.uint8)
    masks["whole"] = np.ones((8, 9), np.uint8)
    samples = [sample(name, mask=mask) for name, mask in masks.items()]
    report = validate(Listed(samples, mode="multiclass"))
    assert report.empty_masks == ("empty", "ignored")
    assert report.classes == {"a": 3, "b": 2}
    assert report.problems == ()
    report = validate(Listed(samples, classes=("a",), mode="binary"))
    assert report.empty_masks == ("empty", "ignored")


def test_exclusive_labels_are_counted():
    rows = [[0, 1], [1, 0], [0, 1], [np.nan, np.nan]]
    labels = [sample(str(k), label=np.array(row, np.float32)) for k, row in enumerate(rows)]
    report = validate(Listed(labels, mode="multiclass"))
    assert report.problems == ()
    assert report.classes == {"a": 1, "b": 2}


def batch_of(task, mode_changes=None):
    data = PreparedDataset(
        SyntheticRadiographs(2, size=32, task=task), input=InputSpec(channels=1), size=32
    )
    return {**default_collate([data[0], data[1]]), **(mode_changes or {})}


@pytest.mark.parametrize(
    ("task", "classes", "mode", "target"),
    [
        ("segment", 5, "multilabel", "mask"),
        ("boxes", 1, "binary", "mask"),
        ("classify", 3, "multilabel", "label"),
        ("images", 1, "multilabel", "image"),
    ],
)
def test_good_batches_pass(task, classes, mode, target):
    check_batch(batch_of(task), classes=classes, mode=mode, target=target, channels=1)


def test_multiclass_batches():
    batch = {"image": torch.zeros(2, 1, 32, 32), "mask": torch.full((2, 32, 32), 255)}
    check_batch(batch, classes=2, mode="multiclass", target="mask")
    batch["mask"][1, 0, 0] = 2
    with pytest.raises(DataError, match=r"^1: mask value\(s\) 2 in 1 pixel"):
        check_batch(batch, classes=2, mode="multiclass", target="mask")


@pytest.mark.parametrize("row", [[1, 1, 0], [0, 0, 0], [0, 1, NAN], [0, 0, NAN]])
def test_exclusive_label_rows_must_be_one_hot(row):
    label = torch.tensor([[0, 1, 0], [NAN] * 3, row])
    batch = {"image": torch.zeros(3, 1, 32, 32), "id": ["p", "q", "r"], "label": label}
    options = {"classes": 3, "target": "label"}
    check_batch({**batch, "label": label[[0, 1, 0]]}, mode="multiclass", **options)
    check_batch(batch, mode="multilabel", **options)
    with pytest.raises(DataError, match=r"^r: a label with [0-2] of 3 exclusive classes set and"):
        check_batch(batch, mode="multiclass", **options)


@pytest.mark.parametrize(
    ("changes", "options", "match"),
    [
        ({}, {"classes": 4}, r"expected \(2, 4, H, W\) for 4 class"),
        ({}, {"target": "label"}, "no tensor 'label'; it has image, mask, id, group"),
        ({}, {"target": "masks"}, "Did you mean 'mask'"),
        ({}, {"mode": "multiclass"}, "multiclass masks of shape"),
        ({"image": torch.zeros(2, 32, 32)}, {}, r"expected floats \(B, C, H, W\)"),
        ({"image": torch.zeros(2, 1, 32, 32, dtype=torch.uint8)}, {}, "uint8"),
        ({"image": torch.full((2, 1, 32, 32), torch.nan)}, {}, "scene-00000, scene-00001: the im"),
        ({"image": torch.zeros(2, 1, 64, 64)}, {}, r"\(32, 32\) do not fit images of \(64, 64\)"),
        ({"mask": torch.full((2, 5, 32, 32), 3)}, {}, r"scene-00000: mask value\(s\) 3"),
        ({"mask": torch.zeros(2, 5, 32, 32)}, {}, "dtype float32"),
        ({}, {"channels": 3}, r"1 channel\(s\), the model takes 3"),
        ({"id": ["x"]}, {}, "1 entries for 2 images"),
        ({"label": torch.zeros(2, 4)}, {"target": "label"}, r"expected \(2, 5\)"),
        ({"label": torch.full((2, 5), 0.5)}, {"target": "label"}, r"label value\(s\) 0\.5"),
    ],
)
def test_bad_batches_say_what_is_wrong(changes, options, match):
    options = {"classes": 5, "mode": "multilabel", "target": "mask", **options}
    with pytest.raises(DataError, match=match):
        check_batch(batch_of("segment", changes), **options)
