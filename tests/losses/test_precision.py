"""No loss computes in half precision, or by an operation that a setting may round to it."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.losses.test_registry import HALVES, batch, modes, names
from transferseg.losses import (
    LOSSES,
    DeepSupervisionLoss,
    MulticlassLoss,
    MultilabelLoss,
    ReconstructionLoss,
)

#: What moves or converts values and computes none.
MOVES = {"_reshape_alias", "_to_copy", "alias", "as_strided", "clone", "copy_", "detach",
         "empty_like", "expand", "new_empty_strided", "select", "slice", "split", "transpose",
         "unsqueeze", "view"}  # fmt: skip
#: What `torch.backends.cudnn.allow_tf32` and `torch.set_float32_matmul_precision` round.
ROUNDED = {"_convolution", "addbmm", "addmm", "addmv", "baddbmm", "bmm", "convolution",
           "convolution_backward", "dot", "mkldnn_convolution", "mm", "mv", "vdot"}  # fmt: skip


class Watch(TorchDispatchMode):
    """The names of the operations that ran, and of those that were given half precision."""

    def __init__(self):
        super().__init__()
        self.ran, self.halves = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        self.ran.add(name)
        read = {key: value for key, value in (kwargs or {}).items() if key != "out"}
        for value in tree_leaves((args, read)):
            if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16):
                self.halves.add(name)
        return func(*args, **(kwargs or {}))


def check(loss, given, target, dtype):
    """Forward, under autocast, and backward."""
    some = [each.requires_grad_() for each in (given if isinstance(given, list) else [given])]
    with Watch() as watch:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(given, target)
        value.backward()
    assert watch.halves - MOVES == set()
    assert watch.ran & ROUNDED == set()
    for each in some:
        assert each.grad.dtype == dtype
        assert each.grad.abs().sum() > 0


def test_the_watch_sees_what_it_looks_for():
    half = torch.ones(2, 2, dtype=torch.float16, requires_grad=True)
    with Watch() as watch:
        half.sum().backward()
        torch.ones(2, 2) @ torch.ones(2, 2)
        torch.nn.functional.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2))
    assert "sum" in watch.halves - MOVES
    assert watch.ran & ROUNDED == {"mm", "convolution"}


@names
@modes
@HALVES
def test_masks(name, mode, dtype):
    """So that no sum is infinite at any size: one in half precision is after 65,504 pixels."""
    logits, target = batch(mode, dtype=dtype)
    target[..., 0] = 255
    weights = {} if mode == "binary" else {"class_weight": [1.0, 2.0, 3.0]}
    check(LOSSES[name](mode, **weights), logits, target, dtype)


@HALVES
@pytest.mark.parametrize("name", ["bce_dice", "focal"])
def test_logits_of_several_depths(name, dtype):
    logits, target = batch("multilabel", size=(8, 8), dtype=dtype)
    depths = [logits, logits[..., ::2, ::2].clone()]
    check(DeepSupervisionLoss(LOSSES[name]("multilabel")), depths, target, dtype)


@HALVES
@pytest.mark.parametrize("loss", [MulticlassLoss(label_smoothing=0.1), MultilabelLoss()])
def test_labels(loss, dtype):
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, -2.0]], dtype=dtype)
    check(loss, logits, torch.eye(3)[:2], dtype)


@HALVES
@pytest.mark.parametrize("kind", ["l1", "l2", "ssim"])
def test_images(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    output, target = torch.rand(2, 2, 1, 14, 13, generator=generator)
    loss = ReconstructionLoss(kind, data_range=1.0 if kind == "ssim" else None)
    check(loss, output.to(dtype), target, dtype)
