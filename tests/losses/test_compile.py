"""torch.compile: one graph, the eager values, no new compilation for new values."""

from __future__ import annotations

import shutil

import pytest
import torch

from transferseg.losses import (
    LOSSES,
    BCEDiceLoss,
    DeepSupervisionLoss,
    MulticlassLoss,
    MultilabelLoss,
    ReconstructionLoss,
    bce_dice_loss,
    boundary_loss,
    reconstruction_loss,
    signed_distances,
)


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


@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_lies_under_ignored_pixels_stays_there(mode, value):
    """Compiled, the gradient of independent classes is masked at its end: nothing may be NaN."""
    loss = BCEDiceLoss(mode)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    logits, target = batch(mode)
    expected = gradient_of(loss, logits, target)
    logits[..., :3] = value
    found = gradient_of(compiled, logits, target)
    torch.testing.assert_close(found, expected)
    assert not found[1][..., :3].any()


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler on the CPU")
def test_inductor_gives_the_eager_values():
    loss = BCEDiceLoss("multilabel", pos_weight=[2.0, 1.0, 0.5])
    logits, target = batch("multilabel")
    compiled = torch.compile(loss, fullgraph=True)
    with torch.amp.autocast("cpu", dtype=torch.bfloat16):
        found = gradient_of(compiled, logits, target)
    torch.testing.assert_close(found, gradient_of(loss, logits, target))
    for scale in (0.0, 1e-20, 60.0, 1e20):  # where exponentials are 1, 0 and in between
        found = gradient_of(compiled, scale * logits, target)
        torch.testing.assert_close(found, gradient_of(loss, scale * logits, target))
        assert found[0].isfinite()
        assert found[1].isfinite().all()


class Everything(torch.nn.Module):
    """The sum of every loss: one compilation for all of them."""

    def __init__(self):
        super().__init__()
        modes = {"bce_dice": "multiclass", "focal": "multiclass", "lovasz": "multiclass"}
        chosen = sorted(set(LOSSES) - {"boundary", "dice"})
        self.masks = torch.nn.ModuleList(
            LOSSES[name](modes.get(name, "multilabel"), class_weight=[1.0, 2.0, 0.5])
            for name in chosen
        )
        self.binary = LOSSES["dice"]("binary")
        self.deep = DeepSupervisionLoss(LOSSES["focal"]("multilabel", alpha=0.3))
        self.image = ReconstructionLoss("ssim", data_range=4.0)
        self.labels = MultilabelLoss(pos_weight=[1.0, 2.0, 3.0])
        self.label = MulticlassLoss(class_weight=[1.0, 2.0, 3.0])

    def forward(self, logits, target):
        masks, maps, rows = target
        total = self.binary(logits[:, :1], masks[:, :1])
        for loss in self.masks:
            total = total + loss(logits, masks[:, 1] if loss.mode == "multiclass" else masks)
        total = total + self.deep([logits, logits[..., ::2, ::2]], masks)
        total = total + boundary_loss(logits, masks, mode="multilabel", distances=maps)
        weights = {"class_weight": [1.0, 2.0, 3.0], "pos_weight": [2.0, 1.0, 1.0]}
        total = total + bce_dice_loss(logits, masks, mode="multilabel", **weights)
        total = total + self.image(logits, maps) + reconstruction_loss(logits, maps, kind="l1")
        scores = logits.mean((2, 3))
        return total + self.labels(scores, rows) + self.label(scores, rows)


def masks_of(size, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, *size, generator=generator)
    masks = torch.randint(0, 2, logits.shape, generator=generator)
    maps = signed_distances(masks, mode="multilabel", classes=3)
    return logits, (masks, maps, masks.amax((2, 3)).float())


def test_every_loss_is_one_graph_of_any_size():
    """Without a graph break, and without another compilation for another size."""
    loss = Everything()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="eager")
    gradient_of(compiled, *masks_of((14, 12), 0))
    recent = torch.__version__ >= "2.9"  # torch 2.5 compiles again for another size
    with torch._dynamo.config.patch(error_on_recompile=recent):
        for size in ((14, 12), (18, 26)):
            batch = masks_of(size, 1)
            torch.testing.assert_close(gradient_of(compiled, *batch), gradient_of(loss, *batch))
