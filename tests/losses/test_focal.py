"""Focal loss: value and gradient against the formulas, down to pixels that are certain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transferseg.errors import SpecError
from transferseg.losses import FocalLoss, binary_cross_entropy, focal_loss

SCORES = np.array([-200.0, -40.0, -15.0, -2.0, 0.0, 2.0, 15.0, 40.0, 200.0])


def oracle(x, y, gamma):
    """The mean over pixels and its slope to each logit, of targets 0 and 1, by hand in NumPy."""
    s = np.where(y == 1, x, -x)
    entropy, error = np.logaddexp(0, -s), np.exp(-np.logaddexp(0, s))
    slope = -(error**gamma) * (gamma * (1 - error) * entropy + error)
    return (error**gamma * entropy).mean(), np.where(y == 1, slope, -slope) / x.size


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.99, 1.0, 1.5, 2.0, 5.0])
@pytest.mark.parametrize("mode", ["binary", "multiclass"])
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 1e-7), (torch.float64, 1e-14)])
def test_value_and_gradient_are_the_formulas(gamma, mode, dtype, exact):
    """Where a probability rounds to its target the power's slope would be infinite below 1."""
    x, y = np.tile(SCORES, 2), np.repeat([0, 1], len(SCORES))
    value, slope = oracle(x, y, gamma)
    logits = torch.tensor(x, dtype=dtype).reshape(1, 1, 2, -1)
    target = torch.from_numpy(y).reshape(1, 1, 2, -1)
    if mode == "multiclass":
        logits, target = torch.cat([torch.zeros_like(logits), logits], dim=1), target[:, 0]
    logits.requires_grad_()
    loss = focal_loss(logits, target, mode=mode, gamma=gamma)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-6)
    found = logits.grad[0, -1].flatten().double().numpy()
    np.testing.assert_allclose(found, slope, rtol=1e-5, atol=exact)
    if mode == "multiclass":
        other = logits.grad[0, 0].flatten().double().numpy()
        np.testing.assert_allclose(other, -slope, rtol=1e-5, atol=exact)


def test_a_soft_target_that_is_hit_has_a_gradient_of_zero():
    """The slope is infinite on both sides; the loss is lowest there."""
    logits = torch.zeros(1, 1, 1, 2, requires_grad=True)
    target = torch.tensor([[[[0.5, 1.0]]]])
    loss = focal_loss(logits, target, mode="binary", gamma=0.5)
    loss.backward()
    assert logits.grad[0, 0, 0, 0].item() == 0
    assert logits.grad[0, 0, 0, 1].item() < 0
    beside = logits.detach() + torch.tensor([0.01, 0.0])
    assert focal_loss(beside, target, mode="binary", gamma=0.5) > loss


def test_a_small_gamma_is_nearly_the_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 2, logits.shape, generator=generator)
    found = focal_loss(logits, target, mode="binary", gamma=1e-6)
    entropy = binary_cross_entropy(logits, target)
    assert found.item() == pytest.approx(entropy.item(), rel=1e-5)


@pytest.mark.parametrize("gamma", [-0.5, float("nan"), float("inf")])
def test_a_gamma_that_does_not_exist(gamma):
    with pytest.raises(SpecError, match="gamma must be finite and 0 or more"):
        FocalLoss("binary", gamma=gamma)
