"""The gradient of every option of the family is that of the loss: gradcheck in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from transferseg.losses import LOSSES, boundary_loss, dice_loss, signed_distances

MODES = ["binary", "multiclass", "multilabel"]
REGION = {"per_image": [True, False], "empty": ["penalise", "skip"]}
SWITCHES = {
    "dice": {"squared": [True, False], **REGION},
    "jaccard": {"squared": [True, False], **REGION},
    "tversky": {"alpha": [0.0, 0.3], **REGION},
    "focal_tversky": {"gamma": [1.0, 2.0], **REGION},
    "focal": {"gamma": [0.0, 0.5, 1.0, 1.5], "alpha": [None, 0.25]},
    "lovasz": REGION,
    "boundary": {"spacing": [(1.0, 1.0), (0.5, 2.0)]},
}


def combinations(name):
    switches = SWITCHES[name]
    chosen = itertools.product(*switches.values())
    return [dict(zip(switches, values, strict=True)) for values in chosen]


def batch(mode, soft):
    generator = torch.Generator().manual_seed(5)
    classes = 1 if mode == "binary" else 2
    logits = 2 * torch.randn(2, classes, 2, 2, generator=generator, dtype=torch.float64)
    if soft:
        target = torch.rand(2, classes, 2, 2, generator=generator, dtype=torch.float64)
        target = target.softmax(1) if mode == "multiclass" else target
    else:
        shape = (2, 2, 2) if mode == "multiclass" else logits.shape
        target = torch.randint(0, 2, shape, generator=generator)
    target[0, ..., 1:] = 0  # a class is absent in one image
    target[1, ..., 0] = 255
    return logits.requires_grad_(), target


@pytest.mark.parametrize("name", sorted(SWITCHES))
@pytest.mark.parametrize("mode", MODES)
def test_gradcheck_of_every_combination(name, mode):
    weights = {} if mode == "binary" else {"class_weight": [0.5, 2.0]}
    for options in combinations(name):
        if mode == "multiclass" and options.get("alpha") is not None and name == "focal":
            continue
        soft_too = name not in ("lovasz", "boundary") and (name, mode) != ("focal", "multiclass")
        for soft in (False, True) if soft_too else (False,):
            logits, target = batch(mode, soft)
            loss = LOSSES[name](mode, **options, **weights)
            assert torch.autograd.gradcheck(loss, (logits, target)), (options, soft)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck_of_single_entries_and_of_given_distances(mode):
    logits, target = batch(mode, soft=False)
    assert torch.autograd.gradcheck(lambda x: dice_loss(x, target, mode=mode), logits)
    maps = signed_distances(target, mode=mode, classes=logits.shape[1])
    assert torch.autograd.gradcheck(
        lambda x: boundary_loss(x, target, mode=mode, distances=maps), logits
    )
