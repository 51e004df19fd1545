from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.forked import start
from tests.stages import world
from transferseg.data import flips_augmentation, merand2021_augmentation
from transferseg.errors import TrainingError
from transferseg.losses import BCEDiceLoss
from transferseg.stages.describe import describe_value, file_digest, key_of
from transferseg.training import adamw, cosine, polynomial, sgd

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def key(value) -> str:
    return key_of(describe_value(value))


@given(VALUES)
def test_plain_values_are_json_and_equal_ones_have_equal_keys(value):
    text = json.dumps(describe_value(value), allow_nan=False)
    assert key(json.loads(json.dumps(value))) == key_of(json.loads(text))


def own(logits, target):
    return (logits - target).abs().mean()


class Focal(torch.nn.Module):
    """As users write their losses: no `extra_repr`."""

    def __init__(self, gamma):
        super().__init__()
        self.gamma = gamma


@dataclass(frozen=True)
class Setting:
    name: str
    size: tuple[int, int] = (1, 2)
    _kept: int = 0


DIFFERENT = [
    None, True, 1, "1", 1.5, [1, 2], [2, 1], {"a": 1}, {"a": 2}, float("inf"),
    adamw, sgd, partial(adamw, lr=1e-3), partial(adamw, lr=2e-3), partial(sgd, lr=1e-3),
    cosine(), cosine(warmup_steps=1), polynomial(),
    BCEDiceLoss("binary"), BCEDiceLoss("binary", squared=False),
    BCEDiceLoss("binary", pos_weight=[2.0]), BCEDiceLoss("binary", pos_weight=[3.0]),
    torch.nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss(label_smoothing=0.1), Focal(1), Focal(2),
    torch.nn.Sequential(Focal(1)), torch.nn.Sequential(Focal(2)),
    smp.losses.DiceLoss("binary"), smp.losses.DiceLoss("binary", smooth=1.0),
    merand2021_augmentation(), merand2021_augmentation(degrees=5), flips_augmentation(),
    Setting("a"), Setting("b"), Setting("a", (2, 1)), own,
    np.zeros(2), np.zeros(2, np.float32), torch.ones(2), torch.nn.ReLU, torch.nn.Linear(1, 1),
]  # fmt: skip


def test_different_settings_have_different_keys_and_the_same_one_the_same():
    keys = [key(value) for value in DIFFERENT]
    assert len(set(keys)) == len(DIFFERENT)
    assert keys == [key(value) for value in DIFFERENT]


def test_private_fields_are_no_setting():
    assert key(Setting("a", _kept=3)) == key(Setting("a"))


def test_keys_are_the_same_in_another_process(tmp_path):
    """A set has another order there."""
    world.write_a_key(tmp_path / "here")
    process = start(world.write_a_key, tmp_path / "there", said=tmp_path / "said")
    process.join()
    here, there = (json.loads((tmp_path / name).read_text()) for name in ("here", "there"))
    assert here["key"] == there["key"]
    if "PYTHONHASHSEED" not in os.environ:
        assert here["order"] != there["order"]


def test_a_path_stands_for_its_content(tmp_path):
    first, second = tmp_path / "a.pt", tmp_path / "b.pt"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    assert key(first) == key(second)
    second.write_bytes(b"others!")
    assert key(first) != key(second)
    before = file_digest(tmp_path)
    (tmp_path / "b.pt").rename(tmp_path / "c.pt")
    assert file_digest(tmp_path) != before
    with pytest.raises(TrainingError, match=r"nothing\.pt does not exist"):
        key(tmp_path / "nothing.pt")


def test_what_cannot_be_seen_is_refused():
    bound = 3

    def local(x):
        return x + bound

    for value in (local, lambda x: x):
        with pytest.raises(TrainingError, match="captured values cannot be seen"):
            describe_value({"loss": value}, what="task")
    with pytest.raises(TrainingError, match=r"task\['loss'\]\[0\] is a object"):
        describe_value({"loss": [object()]}, what="task")


def test_an_own_function_counts_by_its_text(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = []
    for number in (1, 2):
        name = f"own_losses_{number}"
        (tmp_path / f"{name}.py").write_text(f"def loss(a, b):\n    return a - {number} * b\n")
        function = __import__(name).loss
        function.__module__ = "own_losses"
        keys.append(key(function))
    assert keys[0] != keys[1]


def test_an_own_class_counts_by_its_text(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = []
    for number in (1, 2):
        name = f"own_tasks_{number}"
        text = "class Base:\n    weight = {}\nclass Task(Base):\n    pass\n"
        (tmp_path / f"{name}.py").write_text(text.format(number))
        module = __import__(name)
        module.Task.__module__ = module.Base.__module__ = "own_tasks"
        monkeypatch.setitem(sys.modules, "own_tasks", module)
        module.Task.describe = lambda self: "task"
        keys.append(key(module.Task()))
    assert keys[0] != keys[1]


def test_an_object_can_describe_itself():
    class Own:
        def describe(self):
            return {"version": 2}

    assert describe_value(Own())["is"] == {"version": 2}
