"""Lambda times the squared L2 norm, the third term of Khadka's equation, as weight decay."""

from __future__ import annotations

import copy

import pytest
import torch

from transferseg.losses import BCEDiceLoss
from transferseg.training import OPTIMIZERS


def trained(model, optimizer, penalty):
    generator = torch.Generator().manual_seed(1)
    loss = BCEDiceLoss("binary")
    for _ in range(5):
        image = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
        value = loss(model(image), image[:, :1] > 0)
        value = value + penalty * sum(weight.square().sum() for weight in model.parameters())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.mark.parametrize(("name", "equal"), [("sgd", True), ("adam", True), ("adamw", False)])
def test_twice_lambda_is_the_decay_of_sgd_and_adam_and_not_of_adamw(name, equal):
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 1, 3, padding=1, dtype=torch.float64)
    lam, build = 0.05, OPTIMIZERS[name]
    twin = copy.deepcopy(model)
    plain = build(model, lr=0.01, weight_decay=0.0, decay_norms_and_biases=True)
    decayed = build(twin, lr=0.01, weight_decay=2 * lam, decay_norms_and_biases=True)
    first, second = trained(model, plain, lam), trained(twin, decayed, 0.0)
    assert torch.allclose(first, second, rtol=1e-6, atol=1e-9) == equal
