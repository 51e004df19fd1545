from __future__ import annotations

import math

import pytest
import torch

from transferseg.errors import TrainingError
from transferseg.training import SCHEDULES, Schedule, constant, cosine, plateau, polynomial


def rates(schedule, steps, total, lr=0.2):
    """Learning rates of `steps` updates, as a torch scheduler sets them."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = schedule(optimizer, total)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_is_its_formula():
    expected = [0.2 * (k + 1) / 4 for k in range(3)]
    expected += [
        0.2 * (0.1 + 0.9 * (1 + math.cos(math.pi * min(k - 3, 17) / 17)) / 2) for k in range(3, 25)
    ]
    assert rates(cosine(warmup_steps=3, final=0.1), 25, 20) == pytest.approx(expected, abs=1e-12)


def test_polynomial_is_its_formula():
    expected = [0.2 * (0.05 + 0.95 * (1 - k / 10) ** 0.9) for k in range(11)]
    found = rates(polynomial(power=0.9, final=0.05), 11, 10)
    assert found == pytest.approx(expected, abs=1e-12)
    assert rates(polynomial(), 11, 10)[-1] == 0.0


def test_constant_after_warmup():
    assert rates(constant(warmup_steps=1), 4, 1) == pytest.approx([0.1, 0.2, 0.2, 0.2])
    assert rates(constant(), 3, 0) == [0.2, 0.2, 0.2]


def test_cosine_agrees_with_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12, eta_min=0.02)
    expected = []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        oracle.step()
    assert rates(cosine(final=0.1), 12, 12) == pytest.approx(expected)


def test_every_group_keeps_its_own_rate():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups, lr=5.0)
    scheduler = polynomial(power=1.0)(optimizer, 4)
    optimizer.step()
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.75, 0.075])


@pytest.mark.parametrize(("mode", "scores"), [("max", [1, 2, 2, 2, 2]), ("min", [2, 1, 1, 1, 1])])
def test_plateau_waits_out_its_patience(mode, scores):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = plateau(factor=0.5, patience=1, mode=mode)(optimizer, 0)
    found = []
    for score in scores:
        scheduler.step(score)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == [1.0, 1.0, 1.0, 0.5, 0.5]


def test_schedules_are_values():
    assert cosine(final=0.1) == cosine(final=0.1) != cosine()
    assert eval(repr(cosine(warmup_steps=2)), {"Schedule": Schedule}) == cosine(warmup_steps=2)
    for name, make in SCHEDULES.items():
        assert make.__name__ == name
        assert hash(make()) == hash(make())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: cosine(warmup_steps=-1), "warmup_steps"),
        (lambda: cosine(final=1.5), "final"),
        (lambda: polynomial(power=0.0), "power"),
        (lambda: plateau(factor=1.0), "factor"),
        (lambda: plateau(patience=-1), "patience"),
        (lambda: plateau(minimum=-0.1), "minimum"),
        (lambda: plateau(mode="best"), "unknown mode 'best'"),
        (lambda: Schedule("cosin"), "Did you mean 'cosine'"),
        (lambda: rates(cosine(warmup_steps=5), 1, 5), "5 warm-up updates leave nothing of 5"),
    ],
)
def test_errors_say_what_was_given(make, match):
    with pytest.raises(TrainingError, match=match):
        make()
