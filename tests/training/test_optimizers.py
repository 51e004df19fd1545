from __future__ import annotations

import pytest
import torch
from torch import nn

from transferseg.errors import TrainingError
from transferseg.training import OPTIMIZERS, adamw, sgd, weight_decay_groups

from .tiny import net


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_norms_and_biases_have_no_decay(name):
    model = net()
    optimizer = OPTIMIZERS[name](model, lr=0.1, weight_decay=0.3)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {n: decay[id(p)] for n, p in model.named_parameters()} == {
        "first.weight": 0.3,
        "first.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "last.weight": 0.3,
        "last.bias": 0.0,
    }
    assert {g["lr"] for g in optimizer.param_groups} == {0.1}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_decay_everywhere_when_asked(name):
    groups = OPTIMIZERS[name](net(), weight_decay=0.3, decay_norms_and_biases=True).param_groups
    assert [g["weight_decay"] for g in groups] == [0.3]
    assert len(groups[0]["params"]) == 6


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_goes_down(name):
    model = nn.Linear(3, 1)
    optimizer = OPTIMIZERS[name](model, lr=0.05)
    x, y = torch.randn(32, 3), torch.randn(32, 1)
    losses = []
    for _ in range(30):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_decoupled_decay_shrinks_only_matrices():
    model = net()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = adamw(model, lr=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if name.endswith("weight") and "norm" not in name else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_frozen_parameters_are_held_for_later():
    model = net()
    model.first.requires_grad_(False)
    assert sum(len(g["params"]) for g in sgd(model).param_groups) == 6


def test_modules_name_parameters_without_decay():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(2, 2))
            self.other = nn.Parameter(torch.zeros(2, 2))

        def no_weight_decay(self):
            return {"table", "gone"}

    model = nn.Sequential(Tokens())
    groups = weight_decay_groups(model, weight_decay=0.1)
    assert [(g["params"][0] is model[0].table, g["weight_decay"]) for g in groups] == [
        (False, 0.1),
        (True, 0.0),
    ]


def test_own_groups_keep_their_options_and_order():
    model = net()
    parts = [
        {"params": list(model.first.parameters()) + list(model.norm.parameters()), "lr": 0.01},
        {"params": model.last.parameters()},
    ]
    groups = adamw(model, lr=0.1, weight_decay=0.2, groups=parts).param_groups
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (0.01, 0.2, 1),
        (0.01, 0.0, 3),
        (0.1, 0.2, 1),
        (0.1, 0.0, 1),
    ]


def test_groups_must_cover_the_model():
    model = net()
    with pytest.raises(TrainingError, match=r"4 parameters .* first 'first.weight'"):
        adamw(model, groups=[{"params": model.last.parameters()}])
    with pytest.raises(TrainingError, match=r"'last.weight' is in two groups"):
        adamw(model, groups=[{"params": model.parameters()}, {"params": model.last.parameters()}])
    with pytest.raises(TrainingError, match=r"the model does not have"):
        adamw(model, groups=[{"params": net().parameters()}])
    with pytest.raises(TrainingError, match=r"no parameters"):
        adamw(nn.ReLU())
    with pytest.raises(TrainingError, match=r"weight_decay must be 0 or more"):
        adamw(model, weight_decay=-1.0)
