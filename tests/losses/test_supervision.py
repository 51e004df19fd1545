"""Deep supervision: the weighted sum, resized logits, what is logged, equality with training's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from transferseg.errors import SpecError
from transferseg.losses import BCEDiceLoss, DeepSupervisionLoss, FocalLoss


@pytest.fixture
def depths():
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 3, size, size, generator=generator) for size in (16, 8, 4)]
    return logits, torch.randint(0, 3, (2, 16, 16), generator=generator)


def resized(logits):
    return F.interpolate(logits, size=(16, 16), mode="bilinear", align_corners=False)


def test_is_the_weighted_sum_of_resized_logits(depths):
    logits, target = depths
    loss = FocalLoss("multiclass")
    each = [loss(resized(x), target) for x in logits]
    deep = DeepSupervisionLoss(loss, weights=(1.0, 0.4, 0.2))
    torch.testing.assert_close(deep(logits, target), each[0] + 0.4 * each[1] + 0.2 * each[2])
    halves = DeepSupervisionLoss(loss)(tuple(logits), target)
    torch.testing.assert_close(halves, (4 * each[0] + 2 * each[1] + each[2]) / 7)


def test_terms_are_the_main_ones_and_each_auxiliary_loss(depths):
    logits, target = depths
    loss = BCEDiceLoss("multiclass")
    deep = DeepSupervisionLoss(loss, weights=(1.0, 0.5, 0.5))
    terms = deep.terms([x.requires_grad_() for x in logits], target)
    names = ["loss", "main_loss", "auxiliary_loss_1", "auxiliary_loss_2", "bce", "dice"]
    assert list(terms) == names
    assert [term.requires_grad for term in terms.values()] == [True] + [False] * 5
    expected = loss.terms(logits[0], target)
    torch.testing.assert_close(terms["main_loss"], expected["loss"].detach())
    torch.testing.assert_close(terms["dice"], expected["dice"])
    two = DeepSupervisionLoss(loss, weights=(1.0, 0.4)).terms(logits[:2], target)
    assert list(two) == ["loss", "main_loss", "auxiliary_loss", "bce", "dice"]
    torch.testing.assert_close(two["loss"], two["main_loss"] + 0.4 * two["auxiliary_loss"])
    terms["loss"].backward()
    assert all(x.grad.abs().sum() > 0 for x in logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_resized_in_float32(depths, dtype):
    """As the same values in float64, but for the gradient, which is rounded once, at the end."""
    logits, target = depths
    halves = [x.to(dtype).requires_grad_() for x in logits]
    wide = [x.detach().double().requires_grad_() for x in halves]
    deep = DeepSupervisionLoss(FocalLoss("multiclass"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = deep(halves, target)
    expected = deep(wide, target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    expected.backward()
    for half, exact in zip(halves, wide, strict=True):
        torch.testing.assert_close(
            half.grad, exact.grad.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_finite_at_4096_in_half_precision(dtype):
    """The value of 64x64 pixels in float64: all pixels of a depth are alike."""
    deep = DeepSupervisionLoss(BCEDiceLoss("binary"))
    target = torch.ones(1, 1, 4096, 4096, dtype=torch.uint8)
    depths = [
        torch.full((1, 1, size, size), value, dtype=dtype, requires_grad=True)
        for size, value in ((4096, 0.5), (2048, -1.0))
    ]
    found = deep(depths, target)
    found.backward()
    small = [torch.full((1, 1, 64, 64), value, dtype=torch.float64) for value in (0.5, -1.0)]
    assert found.item() == pytest.approx(deep(small, target[..., :64, :64]).item(), rel=1e-4)
    for logits in depths:
        assert logits.grad.sum(dtype=torch.float32).isfinite()
        assert logits.grad.dtype == dtype


def test_one_tensor_is_the_main_logits(depths):
    logits, target = depths
    loss = BCEDiceLoss("multiclass")
    deep = DeepSupervisionLoss(loss, weights=(0.5, 0.5))
    torch.testing.assert_close(deep(logits[0], target), loss(logits[0], target))
    assert list(deep.terms(logits[0], target)) == ["loss", "bce", "dice"]


def test_weights_that_do_not_fit(depths):
    logits, target = depths
    with pytest.raises(SpecError, match="has 2 weights and was given 3 logits"):
        DeepSupervisionLoss(FocalLoss("multiclass"), weights=(1.0, 0.4))(logits, target)
    with pytest.raises(SpecError, match="finite and 0 or more"):
        DeepSupervisionLoss(FocalLoss("multiclass"), weights=(1.0, -0.4))
    with pytest.raises(SpecError, match="was given no logits"):
        DeepSupervisionLoss(FocalLoss("multiclass"))([], target)
    deep = DeepSupervisionLoss(torch.nn.MSELoss(), weights=[1.0, 0.4])
    assert "weights=(1.0, 0.4)" in repr(deep)
