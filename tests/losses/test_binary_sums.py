"""The one pass of independent classes: rows of squares, layouts, its memory, its compiled form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.losses.composition import bce_dice
from transferseg.losses import bce_dice_loss, bce_dice_terms
from transferseg.losses.binary_sums import (
    Slopes,
    Wanted,
    block_gradient,
    block_sums,
    traced_gradient,
    traced_sums,
)
from transferseg.losses.blocks import Room

LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.mT.contiguous().mT,
    "cropped": lambda t: torch.nn.functional.pad(t, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    "every_other": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
    "expanded": lambda t: t[:1, :1].expand_as(t),
}


def batch(size, *, classes=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, classes, *size)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return logits, torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def gradient_of(function, logits, target, **options):
    logits = logits.detach().requires_grad_()
    terms = function(logits, target, mode="multilabel", **options)
    (gradient,) = torch.autograd.grad(terms["loss"], logits)
    return {name: value.detach() for name, value in terms.items()} | {"gradient": gradient}


@pytest.mark.parametrize("logits_layout", LAYOUTS)
@pytest.mark.parametrize("target_layout", LAYOUTS)
def test_squares_of_rows_in_any_layout(logits_layout, target_layout):
    """Of 8x24 pixels: three rows of 64; the target is read only, and not written to."""
    logits, soft = batch((8, 24))
    x, y = LAYOUTS[logits_layout](logits), LAYOUTS[target_layout](soft)
    before = y.clone()
    found = gradient_of(bce_dice_terms, x, y, pos_weight=[2.0, 1.0, 0.5])
    expected = gradient_of(bce_dice, x.clone(), before, pos_weight=[2.0, 1.0, 0.5])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(y, before)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 999),
    pixels=st.sampled_from([1, 2, 7, 8, 9, 63, 64, 65, 128, 192, 500, 512, 1023, 1024, 1536]),
    squared=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.2]),
    ignored=st.booleans(),
    pos_weight=st.sampled_from([None, [0.5, 2.0]]),
)
def test_any_number_of_pixels(seed, pixels, squared, smoothing, ignored, pos_weight):
    """Rows and products of halves end where they do: no pixel is lost or taken twice."""
    logits, target = batch((1, pixels), classes=2, seed=seed)
    if ignored:
        target[..., : pixels // 2] = 255
    options = {"squared": squared, "label_smoothing": smoothing, "pos_weight": pos_weight}
    torch.testing.assert_close(
        gradient_of(bce_dice_terms, logits, target, **options),
        gradient_of(bce_dice, logits, target, **options),
        rtol=1e-9, atol=1e-11,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ignored", [-100, -1, 2, 3, 255])
def test_one_ignored_pixel_among_zeros_is_found(dtype, ignored):
    """The smallest norm that a row which holds the value can have: all else in it is 0."""
    logits, _ = batch((32, 32), dtype=dtype)
    target = torch.zeros_like(logits)
    target[1, 2, 20, 5] = ignored
    logits[1, 2, 20, 5] = torch.nan
    found = gradient_of(bce_dice_terms, logits, target, ignore_index=ignored)
    expected = gradient_of(bce_dice, logits, target, ignore_index=ignored)
    torch.testing.assert_close(found, expected)
    assert found["gradient"][1, 2, 20, 5] == 0


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("side", [8, 512])
def test_a_gradient_is_the_callers_own(mode, side):
    """It may be written over, and backward may run again; also where it is 4 MiB and more."""
    logits, target = batch((side, side), classes=1 if mode == "binary" else 2)
    target = target.argmax(1) if mode == "multiclass" else target.round()
    logits.requires_grad_()
    loss = bce_dice_loss(logits[:1], target[:1], mode=mode)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    kept = first.clone()
    first.mul_(0).add_(7)
    (again,) = torch.autograd.grad(loss, logits)
    assert torch.equal(again, kept)
    assert kept[0].abs().sum() > 0
    assert torch.equal(kept[1], torch.zeros_like(kept[1]))


def test_a_target_that_changes_before_the_backward_is_refused():
    logits, target = batch((4, 4))
    loss = bce_dice_loss(logits.requires_grad_(), target, mode="multilabel")
    target.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_what_is_compiled_keeps_its_digits_at_every_logit(dtype, weighted, squared):
    """One pixel a row: no sum hides what one of them loses; against formulas in float64."""
    large = [1e-30, 1e-8, 1e-3, 0.5, 1.0, 5.0, 17.0, 20.5, 80.0, 87.0, 100.0, 700.0, 1e4, 1e20]
    x = torch.tensor([0.0, *large, *(-value for value in large)], dtype=dtype)[:, None, None]
    extra = torch.tensor([[1.5]], dtype=dtype) if weighted else None
    wanted = Wanted(None, 0.0, True, True, squared)
    wide = x.double()
    for value in (0.0, 0.3, 1.0):
        y = torch.full_like(x, value)
        exact_y, weight = y.double(), 1 + (extra.double() if weighted else 0)
        p = wide.sigmoid()
        entropy = (1 - exact_y) * -torch.nn.functional.logsigmoid(-wide)
        entropy = entropy - weight * exact_y * torch.nn.functional.logsigmoid(wide)
        truth = exact_y**2 if squared else exact_y
        square = p * p if squared else p * 0
        expected = torch.stack([entropy, p, square, p * exact_y, truth, p * 0 + 1])[..., 0]
        # 1 + exp(-|x|) is rounded before its logarithm: see `_log_of_products`
        bounds = {"rtol": 1e-12, "atol": 1e-15}
        if dtype == torch.float32:
            bounds = {"rtol": 2e-6, "atol": 2e-7}
        for sums in (traced_sums, lambda *given: block_sums(*given, Room())[0]):
            torch.testing.assert_close(sums(x, y, extra, wanted).double(), expected, **bounds)
        one = torch.ones(*x.shape[:2], 1, dtype=dtype)
        by = Slopes(one, one, 2 * one, one)
        slope = (1 + exact_y + (2 * p if squared else 0)) * p * (1 - p)
        slope = slope + (1 - exact_y) * p - weight * exact_y * (1 - p)
        written = torch.empty_like(x)
        block_gradient(written, x, y, extra, by, wanted, Room())
        for gradient in (traced_gradient(x, y, extra, by, wanted), written):
            torch.testing.assert_close(gradient.double(), slope, **bounds)
