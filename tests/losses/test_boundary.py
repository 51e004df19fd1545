"""Boundary loss: distances by brute force, numbers by hand, what has no contour."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transferseg.errors import SpecError
from transferseg.losses import boundary_loss, signed_distances


def brute_force(mask, counted, spacing):
    """Distance of every pixel to every other one."""
    places = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), -1) * spacing
    inside, outside = places[mask & counted], places[~mask & counted]
    out = np.zeros(mask.shape)
    if not (len(inside) and len(outside)):
        return out
    for place in np.ndindex(mask.shape):
        if counted[place]:
            others = outside if mask[place] else inside
            nearest = np.sqrt(((others - places[place]) ** 2).sum(-1)).min()
            out[place] = 1 - nearest if mask[place] else nearest
    return out


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_distances_by_brute_force(mode, spacing):
    generator = torch.Generator().manual_seed(0)
    classes = 1 if mode == "binary" else 3
    shape = (2, 6, 5) if mode == "multiclass" else (2, classes, 6, 5)
    target = torch.randint(0, 2, shape, generator=generator)  # class 2 is absent in multiclass
    target[torch.rand(shape, generator=generator) < 0.2] = 255
    maps = signed_distances(target, mode=mode, classes=classes, spacing=spacing)
    for image in range(2):
        for k in range(classes):
            labels = target[image] if mode == "multiclass" else target[image, k]
            mask = (labels == (k if mode == "multiclass" else 1)).numpy()
            expected = brute_force(mask, (labels != 255).numpy(), spacing)
            np.testing.assert_allclose(maps[image, k].numpy(), expected, rtol=1e-6)


def test_distances_given_are_those_computed():
    mask = torch.zeros(1, 1, 5, 5)
    mask[..., 1:3, 1:4] = 1
    logits = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    maps = signed_distances(mask, mode="binary", classes=1, spacing=(2.0, 1.0))
    given = boundary_loss(logits, mask, mode="binary", distances=maps)
    torch.testing.assert_close(given, (logits.sigmoid() * maps).mean())
    computed = boundary_loss(logits, mask, mode="binary", spacing=(2.0, 1.0))
    torch.testing.assert_close(computed, given)
    with pytest.raises(SpecError, match=r"distances must have the logits' shape"):
        boundary_loss(logits, mask, mode="binary", distances=maps[..., 1:])


def test_a_mistake_costs_what_it_is_away():
    mask = torch.zeros(1, 1, 1, 9)
    mask[..., 0] = 1
    losses = []
    for wrong in range(1, 9):
        logits = 40 * (2 * mask - 1)
        logits[..., wrong] = 40
        losses.append(9 * boundary_loss(logits, mask, mode="binary").item())
    assert losses == pytest.approx(list(range(1, 9)))


@pytest.mark.parametrize("value", [0, 1])
def test_without_a_contour_there_is_no_loss(value):
    logits = torch.ones(1, 1, 4, 4, requires_grad=True)
    loss = boundary_loss(logits, torch.full((1, 1, 4, 4), value), mode="binary")
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
