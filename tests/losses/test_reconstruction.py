"""Reconstruction: numbers, precision, refusals."""

from __future__ import annotations

import pickle

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from transferseg.errors import SpecError
from transferseg.losses import (
    ReconstructionLoss,
    reconstruction_loss,
    structural_similarity,
)


@pytest.mark.parametrize(("kind", "expected"), [("l2", (4 + 1 + 0 + 9) / 4), ("l1", 6 / 4)])
def test_by_hand(kind, expected):
    output = torch.tensor([[[[2.0, 1.0], [0.0, -3.0]]]])
    assert reconstruction_loss(output, torch.zeros_like(output), kind=kind).item() == expected
    assert ReconstructionLoss(kind)(output, torch.zeros_like(output)).item() == expected


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_gradcheck(kind):
    output = torch.randn(2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: reconstruction_loss(x, target, kind=kind), output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kind", "expected"), [("l1", 300.0), ("l2", 90000.0)])
def test_finite_at_4096_in_half_precision(kind, expected, dtype):
    """The square of 300 overflows float16, and so does the sum of one over the pixels."""
    output = torch.full((1, 1, 4096, 4096), 300.0, dtype=dtype, requires_grad=True)
    loss = reconstruction_loss(output, torch.zeros(()).expand(output.shape), kind=kind)
    assert loss.dtype == torch.float32
    assert loss.item() == expected
    loss.backward()
    assert output.grad.dtype == dtype
    assert output.grad.sum(dtype=torch.float32).isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ssim_is_finite_at_4096_in_half_precision(dtype):
    """Of a constant image no window has a variance, so that the means alone are compared."""
    output = torch.full((1, 1, 4096, 4096), 300.0, dtype=dtype, requires_grad=True)
    target = torch.zeros(()).expand(output.shape)
    loss = reconstruction_loss(output, target, kind="ssim", data_range=300.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.item(), 1 - 3.0**2 / (300.0**2 + 3.0**2), rtol=1e-4, atol=0)
    loss.backward()
    assert output.grad.sum(dtype=torch.float32).isfinite()


def test_wrong_shapes_and_dtypes():
    with pytest.raises(SpecError, match=r"\(1, 1, 2, 2\) float32 and \(1, 1, 2, 3\) float32"):
        reconstruction_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 3))
    with pytest.raises(SpecError, match="normalised image"):
        reconstruction_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(SpecError, match="floating dtype"):
        reconstruction_loss(torch.zeros(1, 1, 2, 2).long(), torch.zeros(1, 1, 2, 2))
    with pytest.raises(SpecError, match="unknown kind of reconstruction loss 'mse'"):
        ReconstructionLoss("mse")


def test_pickle_and_repr():
    loss = pickle.loads(pickle.dumps(ReconstructionLoss("l1")))
    assert loss.kind == "l1"
    assert repr(loss) == "ReconstructionLoss('l1')"


@pytest.mark.parametrize("shape", [(2, 1, 11, 11), (3, 3, 20, 31)])
@pytest.mark.parametrize("data_range", [1.0, 4.0])
def test_ssim_equals_torchmetrics(shape, data_range):
    """Within the image; torchmetrics' mean takes its reflection beyond the border too."""
    generator = torch.Generator().manual_seed(0)
    output = torch.rand(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    target = (output + 0.3 * torch.rand(shape, generator=generator)).detach()
    _, everywhere = structural_similarity_index_measure(
        output, target, data_range=data_range, return_full_image=True
    )
    theirs = everywhere[..., 5:-5, 5:-5].mean((1, 2, 3))
    ours = structural_similarity(output, target, data_range=data_range)
    torch.testing.assert_close(ours, theirs)
    loss = ReconstructionLoss("ssim", data_range=data_range)(output, target)
    torch.testing.assert_close(loss, 1 - theirs.mean())
    (expected,) = torch.autograd.grad(theirs.mean(), output)
    (gradient,) = torch.autograd.grad(loss, output)
    torch.testing.assert_close(gradient, -expected)


def test_ssim_by_hand():
    """Flat images: means alone."""
    black, grey = torch.zeros(1, 1, 12, 12), torch.full((1, 1, 12, 12), 0.5)
    assert structural_similarity(grey, grey, data_range=1.0).item() == pytest.approx(1)
    expected = 0.0001 / (0.25 + 0.0001)
    found = structural_similarity(black, grey, data_range=1.0)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    half = structural_similarity(black.half(), grey.half(), data_range=1.0)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, found)


def test_ssim_gradcheck():
    generator = torch.Generator().manual_seed(0)
    output = torch.rand(1, 1, 11, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.rand(1, 1, 11, 12, generator=generator, dtype=torch.float64)
    loss = ReconstructionLoss("ssim", data_range=1.0)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), output)
    assert repr(loss) == "ReconstructionLoss('ssim', data_range=1.0)"


def test_ssim_refusals():
    image = torch.zeros(1, 1, 12, 12)
    with pytest.raises(SpecError, match="needs data_range"):
        ReconstructionLoss("ssim")
    with pytest.raises(SpecError, match="data_range is for kind"):
        reconstruction_loss(image, image, kind="l1", data_range=1.0)
    with pytest.raises(SpecError, match="at least 11x11 pixels"):
        structural_similarity(image[..., 2:], image[..., 2:], data_range=1.0)


@pytest.mark.parametrize("kind", ["l1", "l2", "ssim"])
def test_a_batch_of_nothing_is_zero_with_a_graph(kind):
    """Disagreement with torch, on purpose: there the mean over nothing is NaN."""
    output = torch.zeros(0, 1, 12, 12, requires_grad=True)
    loss = ReconstructionLoss(kind, data_range=1.0 if kind == "ssim" else None)
    value = loss(output, torch.zeros(0, 1, 12, 12))
    value.backward()
    assert value.item() == 0
    assert output.grad.shape == output.shape
