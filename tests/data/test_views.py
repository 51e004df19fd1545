from __future__ import annotations

import pickle

import numpy as np
import pytest

from transferseg.data import InMemory, Sample, SelectedClasses, SyntheticRadiographs, original
from transferseg.data.images import resize_image
from transferseg.data.masks import resize_mask
from transferseg.errors import DataError


class Organs:
    """A multiclass reader with ignored pixels and one-hot labels."""

    classes, mode = ("background", "liver", "spleen", "kidney"), "multiclass"
    ids, groups = ("a", "b"), ("p", "q")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        mask = np.array([[0, 1, 2, 3], [3, 3, 255, 0]], np.uint8)
        label = np.eye(4, dtype=np.float32)[2 + index]
        return Sample(np.zeros((2, 4), np.uint8), mask, label, self.ids[index], self.groups[index])


def test_in_memory_holds_what_resizing_gives():
    reader = SyntheticRadiographs(5, size=64)
    kept = InMemory(reader, size=(32, 48), indices=[3, 1])
    assert kept.ids == (reader.ids[3], reader.ids[1])
    assert kept.groups == (reader.groups[3], reader.groups[1])
    assert (kept.classes, kept.mode, len(kept)) == (reader.classes, reader.mode, 2)
    for position, index in enumerate((3, 1)):
        sample = reader[index]
        np.testing.assert_array_equal(kept[position].image, resize_image(sample.image, (32, 48)))
        np.testing.assert_array_equal(kept[position].mask, resize_mask(sample.mask, (32, 48)))
    assert original(kept) is reader
    copy = pickle.loads(pickle.dumps(kept))
    np.testing.assert_array_equal(copy[0].image, kept[0].image)
    with pytest.raises(IndexError):
        kept[2]


def test_in_memory_keeps_own_sizes_if_told_none():
    reader = SyntheticRadiographs(2, size=64, task="classify")
    kept = InMemory(reader)
    assert kept[0].image.shape == (64, 64)
    np.testing.assert_array_equal(kept[1].label, reader[1].label)
    with pytest.raises(DataError, match="from 32"):
        InMemory(reader, size=8)


def test_chosen_channels_of_overlapping_classes():
    reader = SyntheticRadiographs(2, size=64)
    chosen = SelectedClasses(reader, ["Device", "Heart"])
    np.testing.assert_array_equal(chosen[1].mask, reader[1].mask[..., [4, 2]])
    findings = SyntheticRadiographs(2, size=64, task="classify")
    picked = SelectedClasses(findings, ["Enlarged Heart"])
    np.testing.assert_array_equal(picked[1].label, findings[1].label[[2]])


def test_exclusive_classes_that_were_not_chosen_are_background():
    chosen = SelectedClasses(Organs(), ["background", "kidney"])
    assert chosen[0].mask.tolist() == [[0, 0, 0, 1], [1, 1, 255, 0]]
    assert chosen[0].label.tolist() == [1, 0]
    assert chosen[1].label.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("classes", "match"),
    [
        (["Liver"], "unknown class 'Liver'.*Did you mean 'liver'"),
        ([], "one or more distinct names"),
        (["background", "liver", "liver"], "distinct names"),
        (["liver", "kidney"], "begins with the background"),
        (["background"], "names one more"),
    ],
)
def test_choices_that_make_no_sense(classes, match):
    with pytest.raises(DataError, match=match):
        SelectedClasses(Organs(), classes)
