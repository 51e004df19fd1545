from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from tests.stages.world import data, reader
from transferseg.data import InMemory, RotatingKFold, Sample
from transferseg.errors import DataError
from transferseg.stages import StageData
from transferseg.stages.data import PARTS
from transferseg.stages.describe import key_of


class Changed:
    """A reader with one sample changed."""

    def __init__(self, source, index: int, **changes) -> None:
        self.source, self.index, self.changes = source, index, changes
        self.classes, self.mode = source.classes, source.mode
        self.ids, self.groups = source.ids, source.groups

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        return replace(sample, **self.changes) if index == self.index else sample


def key(**changes) -> str:
    return key_of(data(**changes).describe())


def test_every_change_of_the_data_is_seen():
    scenes, parts = reader(), data().parts
    image, mask = scenes[0].image.copy(), scenes[0].mask.copy()
    image[3, 4] ^= 1
    mask[3, 4, 0] ^= 1
    keys = [
        key(),
        key(reader=Changed(scenes, 0, image=image)),
        key(reader=Changed(scenes, 0, mask=mask)),
        key(parts={**parts, "validation": parts["test"], "test": parts["validation"]}),
        key(size=48),
        key(read_contents=False),
        key(parts={"train": parts["train"]}, folds=RotatingKFold(3)),
        key(parts={"train": parts["train"]}),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0] == key(name="another name", cache=False, size=(32, 32))


def test_unread_data_are_told_apart_by_what_is_known():
    unread = {"read_contents": False}
    scenes = reader()
    labelled, other = Changed(scenes, 0), Changed(scenes, 0)
    labelled.labels = np.zeros((12, 3))
    other.labels = np.eye(12, 3)
    keys = [
        key(**unread), key(**unread, name="another"), key(**unread, reader=labelled),
        key(**unread, reader=other), key(**unread, task="boxes"),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_an_image_outside_all_parts_changes_nothing():
    parts = {"train": (0,)}
    last = len(reader()) - 1
    image = np.zeros_like(reader()[last].image)
    assert key(parts=parts) == key(parts=parts, reader=Changed(reader(), last, image=image))


def test_facts_are_read_once_and_travel():
    one = data()
    facts = one.facts
    assert one.facts is facts
    copy = pickle.loads(pickle.dumps(one))
    copy.__dict__["reader"] = None
    assert copy.facts == facts


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"parts": {"training": (0,)}}, "unknown part 'training'.*Did you mean 'train'"),
        ({"parts": {"test": (0,)}}, "needs images to train on"),
        ({"parts": {"train": ()}}, "needs images to train on"),
        ({"folds": RotatingKFold(3)}, "either folds or a part 'validation'"),
        ({"parts": {"train": (0, 99)}}, r"positions 99 lie outside 0\.\.11"),
        ({"parts": {"train": np.array([True] * 12)}}, "np.flatnonzero"),
        ({"parts": {"train": (0, 0, 1)}}, "each once"),
        ({"parts": {"train": (0, 1)}, "folds": RotatingKFold(9)}, "group"),
        ({"size": 8}, "from 32"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(changes, match):
    with pytest.raises(DataError, match=match):
        data(**changes)


def test_a_patient_in_two_parts_is_refused():
    groups = reader().groups
    twice = next(i for i in range(1, len(groups)) if groups[i] == groups[i - 1])
    with pytest.raises(DataError, match="share 1 group"):
        data(parts={"train": (twice - 1,), "test": (twice,)})


def test_one_picture_under_two_names_is_found():
    parts = data().parts
    stolen = Changed(reader(), parts["test"][0], image=reader()[parts["train"][0]].image)
    twin = data(reader=stolen)
    with pytest.raises(DataError, match="identical images under two names"):
        _ = twin.facts
    assert not data(reader=stolen, read_contents=False).facts.contents


def test_parts_are_prepared_for_a_model():
    from transferseg.spec import InputSpec

    one = data()
    for part in PARTS:
        prepared = one.prepared(one.reader, part, InputSpec(1), train=False, seed=0)
        assert tuple(prepared.indices) == one.parts[part]
        assert prepared.augment is None


def test_a_view_in_memory_gives_the_same_training_data():
    scenes = reader()
    plain = StageData(scenes, {"train": range(4)}, 32)
    small = StageData(InMemory(scenes, size=32), {"train": range(4)}, 32)
    from transferseg.spec import InputSpec

    for index in range(4):
        a = plain.prepared(scenes, "train", InputSpec(1), train=False, seed=0)[index]
        b = small.prepared(small.reader, "train", InputSpec(1), train=False, seed=0)[index]
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["mask"], b["mask"])
