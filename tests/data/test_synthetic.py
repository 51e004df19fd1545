import pickle

import numpy as np
import pytest

from transferseg.data.splits import content_hashes
from transferseg.data.synthetic import (
    ENLARGED,
    SYNTHETIC_CLASSES,
    SYNTHETIC_FINDINGS,
    SyntheticRadiographs,
    box_of,
)
from transferseg.errors import DataError

N = 24
WORLD = SyntheticRadiographs(N, size=64, seed=2)


def test_scenes_do_not_depend_on_order_or_number():
    again = pickle.loads(pickle.dumps(SyntheticRadiographs(5, size=64, seed=2)))
    for index in (4, 0, 2):
        np.testing.assert_array_equal(again[index].image, WORLD[index].image)
        np.testing.assert_array_equal(again[index].mask, WORLD[index].mask)
    assert again.groups == WORLD.groups[:5]
    assert again.ids == WORLD.ids[:5]


def test_every_kind_of_annotation_agrees():
    tasks = {
        task: SyntheticRadiographs(N, size=64, seed=2, task=task)
        for task in ("segment", "boxes", "classify", "images")
    }
    seen = set()
    for index in range(N):
        samples = {task: world[index] for task, world in tasks.items()}
        for sample in samples.values():
            np.testing.assert_array_equal(sample.image, samples["segment"].image)
        masks = dict(
            zip(SYNTHETIC_CLASSES, np.moveaxis(samples["segment"].mask, -1, 0), strict=True)
        )
        label = dict(zip(SYNTHETIC_FINDINGS, samples["classify"].label, strict=True))
        boxes = WORLD.boxes(index)
        filled = np.zeros((64, 64), np.uint8)
        for box in boxes:
            filled[box.top : box.bottom, box.left : box.right] = 1
        np.testing.assert_array_equal(samples["boxes"].mask, filled)
        assert not (masks["Opacity"] & (1 - filled)).any()
        assert label["Opacity"] == masks["Opacity"].any() == bool(len(boxes))
        assert label["Device"] == masks["Device"].any()
        lungs = masks["Right Lung"] | masks["Left Lung"]
        assert not (masks["Opacity"] & (1 - lungs)).any()
        if len(boxes) == 1:
            box = boxes[0]
            assert (box.left, box.top, box.right, box.bottom) == box_of(masks["Opacity"])
        heart, chest = box_of(masks["Heart"]), box_of(lungs)
        ratio = (heart[2] - heart[0]) / (chest[2] - chest[0])
        assert label["Enlarged Heart"] == (ratio > ENLARGED)
        assert samples["images"].mask is None
        assert samples["images"].label is None
        seen.add(tuple(label.values()))
    assert len(seen) > 4


def test_anatomy_is_where_it_belongs():
    columns = np.arange(64)
    for index in range(N):
        mask = WORLD[index].mask
        right, left, heart = (mask[..., k] for k in range(3))
        centres = [(m.sum(0) @ columns) / m.sum() for m in (right, heart, left)]
        assert centres == sorted(centres)
        assert not (right & left).any()
        assert min(right.mean(), left.mean(), heart.mean()) > 0.02


def test_lungs_are_dark_in_one_domain_and_bright_in_the_other():
    other = SyntheticRadiographs(N, size=64, seed=2, domain="b")
    assert other.groups == WORLD.groups
    for index in range(N):
        a, b = WORLD[index], other[index]
        np.testing.assert_array_equal(a.mask, b.mask)
        lungs = (a.mask[..., 0] | a.mask[..., 1]) & (1 - a.mask[..., 2]) & (1 - a.mask[..., 3])
        below = np.zeros_like(lungs)
        below[56:60, 28:36] = 1  # the abdomen
        assert a.image[lungs > 0].mean() < a.image[below > 0].mean()
        assert b.image[lungs > 0].mean() > b.image[below > 0].mean()


def test_the_scene_is_the_same_at_any_size():
    large = SyntheticRadiographs(6, size=128, seed=2)
    for index in range(6):
        coarse = large[index].mask[1::2, 1::2, :4]
        assert (coarse == WORLD[index].mask[..., :4]).mean() > 0.97


def test_patients_share_anatomy_and_worlds_share_nothing():
    counts = np.unique(WORLD.groups, return_counts=True)[1]
    assert counts.min() >= 1
    assert counts.max() <= 3
    assert not set(WORLD.groups) & set(SyntheticRadiographs(N, size=64, seed=3).groups)
    assert len(set(content_hashes(WORLD))) == N

    def overlap(a, b):
        a, b = WORLD[a].mask[..., :3] > 0, WORLD[b].mask[..., :3] > 0
        return (a & b).sum() / (a | b).sum()

    same = [overlap(i, i + 1) for i in range(N - 1) if WORLD.groups[i] == WORLD.groups[i + 1]]
    other = [overlap(i, i + 1) for i in range(N - 1) if WORLD.groups[i] != WORLD.groups[i + 1]]
    assert np.mean(same) > np.mean(other)


def test_channels_and_modes():
    colour = SyntheticRadiographs(1, size=32, channels=3)[0].image
    assert colour.shape == (32, 32, 3)
    np.testing.assert_array_equal(colour[..., 0], SyntheticRadiographs(1, size=32)[0].image)
    boxes = SyntheticRadiographs(1, size=32, task="boxes")
    assert (boxes.mode, boxes.classes) == ("binary", ("Opacity",))
    assert len(list(boxes)) == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"domain": "c"}, "unknown domain 'c'"),
        ({"task": "segmnt"}, "Did you mean 'segment'"),
        ({"size": 16}, "size from 32"),
        ({"channels": 2}, "channels 1 or 3"),
        ({"n": 0}, "n from 1"),
        ({"seed": -1}, "seed from 0"),
    ],
)
def test_options_are_checked(options, match):
    with pytest.raises(DataError, match=match):
        SyntheticRadiographs(**{"n": 2, **options})


def test_an_empty_mask_has_no_box():
    with pytest.raises(DataError, match="has no box"):
        box_of(np.zeros((3, 3)))
