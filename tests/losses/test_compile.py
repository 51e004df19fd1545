"""torch.compile: one graph, the eager values, no new compilation for new values."""

from __future__ import annotations

import shutil

import pytest
import torch

from transferseg.losses import BCEDiceLoss


def batch(mode, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, 16, 16)
    logits = 3 * torch.randn(shape, generator=generator)
    target = torch.randint(0, 3 if mode == "multiclass" else 2, shape, generator=generator)
    target = target[:, 0].contiguous() if mode == "multiclass" else target.float()
    target[..., :3] = 255
    return logits.to(dtype), target


def gradient_of(loss, logits, target):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("mode", "dtype"), [("multiclass", torch.bfloat16), ("multilabel", torch.float32)]
)
def test_one_graph_with_the_eager_values(mode, dtype):
    """Traced by dynamo and differentiated by AOTAutograd, as every backend gets it."""
    options = {"label_smoothing": 0.1, "class_weight": [1.0, 2.0, 0.5], "empty": "penalise"}
    loss = BCEDiceLoss(mode, **options)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    logits, target = batch(mode, dtype)
    torch.testing.assert_close(
        gradient_of(compiled, logits, target), gradient_of(loss, logits, target)
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        logits, target = batch(mode, dtype, seed=1)
        for mask in (target, torch.where(target == 255, target, 0)):  # and an absent class
            torch.testing.assert_close(
                gradient_of(compiled, logits, mask), gradient_of(loss, logits, mask)
            )


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler on the CPU")
def test_inductor_gives_the_eager_values():
    loss = BCEDiceLoss("multilabel", pos_weight=[2.0, 1.0, 0.5])
    logits, target = batch("multilabel")
    compiled = torch.compile(loss, fullgraph=True)
    with torch.amp.autocast("cpu", dtype=torch.bfloat16):
        found = gradient_of(compiled, logits, target)
    torch.testing.assert_close(found, gradient_of(loss, logits, target))
