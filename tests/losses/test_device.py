"""Off the CPU no loss of masks reads a value back, so none makes the device wait."""

from __future__ import annotations

import pytest
import torch

from tests.losses.test_registry import batch, modes, names
from transferseg.losses import LOSSES, DeepSupervisionLoss, boundary_loss


def step(name, mode, device):
    """A loss with the options of its mode, and its gradient; what they read is there before."""
    logits, target = batch(mode, size=(16, 24), dtype=torch.float32)
    target[..., 0] = 255
    weights = {} if mode == "binary" else {"class_weight": [1.0, 2.0, 0.5]}
    loss = LOSSES[name](mode, **weights).to(device)
    if name == "boundary":  # scipy makes the distances, on the CPU: they are given
        far = torch.linspace(-3, 3, logits.numel()).reshape(logits.shape).to(device)

        def loss(logits, target):
            return boundary_loss(logits, target, mode=mode, distances=far)

    logits, target = logits.to(device).requires_grad_(), target.to(device)

    def run():
        value = loss(logits, target)
        return value, *torch.autograd.grad(value, logits)

    return run


@names
@modes
def test_nothing_is_read_back(name, mode):
    """On the meta device there are no values: whatever would synchronise fails there."""
    value, gradient = step(name, mode, "meta")()
    assert value.is_meta
    assert value.shape == ()
    assert gradient.shape == batch(mode, size=(16, 24))[0].shape


def test_nothing_of_several_depths_is_read_back():
    logits, target = batch("multilabel", size=(8, 8))
    depths = [x.to("meta").requires_grad_() for x in (logits, logits[..., ::2, ::2])]
    loss = DeepSupervisionLoss(LOSSES["bce_dice"]("multilabel"))(depths, target.to("meta"))
    loss.backward()
    assert depths[1].grad.shape == depths[1].shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@names
@modes
def test_a_gpu_waits_for_nothing_and_gives_the_same(name, mode):
    run = step(name, mode, "cuda")
    run()  # what is loaded and chosen once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, expected in zip(found, step(name, mode, "cpu")(), strict=True):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-5, atol=1e-7)
