"""Reconstruction: numbers, precision, refusals."""

from __future__ import annotations

import pickle

import pytest
import torch

from transferseg.errors import SpecError
from transferseg.losses import ReconstructionLoss, reconstruction_loss


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
def test_half_precision_large(dtype):
    output = torch.full((1, 1, 1024, 1024), 300.0, dtype=dtype)  # its square overflows float16
    loss = reconstruction_loss(output, torch.zeros(1, 1, 1024, 1024))
    assert loss.dtype == torch.float32
    assert loss.item() == 90000.0


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
