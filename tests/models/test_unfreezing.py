"""Parts that begin to train at an epoch: which ones follows from the epoch alone."""

from __future__ import annotations

import pickle

import pytest

from transferseg.errors import SpecError
from transferseg.models import Unfreezing, freeze, frozen

from .test_freezing import unet

GRADUAL = {2: "encoder.stages[3:]", 4: ("encoder.stages[1:]", "head"), 5: ["encoder"]}


def state(model):
    return frozen(model), [(name, module.training) for name, module in model.named_modules()]


def test_unfreezing_follows_from_the_epoch_alone():
    gradual = Unfreezing(GRADUAL)
    wanted = {}
    for epoch in range(7):
        model = unet().train()
        gradual.apply(model, epoch)
        wanted[epoch] = state(model)
    model = unet().train()
    for epoch in (0, 0, 3, 6, 1, 4, 2, 5, 0):
        gradual.apply(model, epoch)
        assert state(model) == wanted[epoch]
    names = [name for name, _ in model.named_parameters()]
    encoder = [name for name in names if name.startswith("encoder.")]
    late = [n for n in encoder if n.startswith(("encoder.model.layer3.", "encoder.model.layer4."))]
    stem = [n for n in encoder if n.startswith(("encoder.model.conv1.", "encoder.model.bn1."))]
    held = {epoch: list(found[0]) for epoch, found in wanted.items()}
    assert held[0] == held[1] == [*encoder, "head.weight", "head.bias"]
    assert held[2] == held[3] == [n for n in held[0] if n not in late]
    assert held[4] == stem
    assert held[5] == held[6] == []


def test_unfreezing_leaves_what_it_does_not_name():
    model = unet()
    freeze(model, "decoder")
    gradual = Unfreezing({1: "encoder"})
    gradual.apply(model, 0)
    assert len(frozen(model)) == len(names_but_head(model))
    gradual.release(model)
    assert all(name.startswith("decoder.") for name in frozen(model))
    assert frozen(model)


def names_but_head(model):
    return [name for name, _ in model.named_parameters() if not name.startswith("head.")]


def test_unfreezing_as_a_value():
    gradual = Unfreezing({3: "encoder", 0: ["head", "decoder"]})
    assert gradual.parts == {0: ("head", "decoder"), 3: ("encoder",)}
    assert gradual == Unfreezing({0: ("head", "decoder"), 3: ("encoder",)})
    assert pickle.loads(pickle.dumps(gradual)) == gradual
    assert gradual.every(5) == Unfreezing({0: ("head", "decoder"), 15: "encoder"})


@pytest.mark.parametrize(
    "parts", [{}, {-1: "head"}, {1.5: "head"}, {"3": "head"}, {1: ()}, {True: "head"}]
)
def test_unfreezing_that_makes_no_sense(parts):
    with pytest.raises(SpecError, match="unfreezing"):
        Unfreezing(parts)


def test_unfreezing_names_are_checked_before_anything_changes():
    model = unet()
    with pytest.raises(SpecError, match="'haed' names no parameter"):
        Unfreezing({1: "encoder", 2: "haed"}).apply(model, 0)
    assert frozen(model) == ()
