"""Streaming reconstruction errors: numpy is the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error

from transferseg.errors import DataError, SpecError
from transferseg.metrics import ReconstructionError


def images(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, 1, *size, generator=generator) for _ in "ot")


def counted(output, target):
    error = ReconstructionError()
    error.update(output, target)
    return error


def test_equals_numpy_over_images_of_several_sizes():
    small, large = images(3, (4, 4)), images(2, (8, 6), seed=1)
    error = counted(*small) + counted(*large)
    differences = [
        (o - t).double().numpy() for pair in (small, large) for o, t in zip(*pair, strict=True)
    ]
    per_image, pooled = error.scores(), error.scores("pooled")
    assert per_image.l1 == pytest.approx(np.mean([np.abs(d).mean() for d in differences]))
    assert per_image.l2 == pytest.approx(np.mean([(d**2).mean() for d in differences]))
    every = np.concatenate([d.ravel() for d in differences])
    assert pooled.l1 == pytest.approx(np.abs(every).mean())
    assert pooled.l2 == pytest.approx((every**2).mean())
    assert per_image.l1 != pytest.approx(pooled.l1)
    assert (per_image.scheme, pooled.scheme, pooled.images) == ("per_image", "pooled", 5)


@pytest.mark.parametrize("scheme", ["per_image", "pooled"])
def test_order_does_not_matter(scheme):
    output, target = images(6, (3, 3))
    straight = counted(output, target).scores(scheme)
    backwards = ReconstructionError()
    for index in reversed(range(6)):
        backwards.update(output[index : index + 1], target[index : index + 1])
    assert backwards.scores(scheme) == straight


def test_half_precision_does_not_overflow():
    output = torch.full((1, 1, 64, 64), 300.0, dtype=torch.float16)
    scores = counted(output, torch.zeros_like(output)).scores()
    assert (scores.l1, scores.l2) == (300.0, 90000.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_model_shows(value):
    output, target = images(2, (3, 3))
    output[0, 0, 0, 0] = value
    scores = counted(output, target).scores()
    assert not math.isfinite(scores.l2)
    assert scores.to_dict()["l2"] is None


def test_wrong_use():
    with pytest.raises(SpecError, match=r"\(2, 1, 4, 4\) float32 and \(2, 1, 4, 5\) float32"):
        counted(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5))
    with pytest.raises(SpecError, match="floating dtype"):
        counted(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2).long())
    with pytest.raises(SpecError, match="unknown scheme 'mean'"):
        counted(*images(1, (2, 2))).scores("mean")
    with pytest.raises(DataError, match="no image has been counted"):
        ReconstructionError().scores()


def test_text():
    scores = counted(torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 1, 2, 2)).scores("pooled")
    assert str(scores) == "pooled over 1 image: L1 0.5000, L2 0.2500"
    assert scores.to_dict() == {"scheme": "pooled", "images": 1, "l1": 0.5, "l2": 0.25}


@pytest.mark.parametrize("size", [(4, 4), (9, 7)])
def test_equals_torchmetrics(size):
    output, target = images(3, size)
    scores = counted(output, target).scores()
    assert scores.l1 == pytest.approx(mean_absolute_error(output, target).item())
    assert scores.l2 == pytest.approx(mean_squared_error(output, target).item())
    assert counted(target, target).scores().l2 == 0


def test_one_infinite_error_leaves_the_other_as_it_is():
    """A difference of 1e25 squared is beyond float32, itself it is not."""
    small, large = images(1, (2, 2)), images(1, (8, 8))
    error = counted(*small) + counted(large[0] * 0 + 1e25, large[1] * 0)
    pooled = error.scores("pooled")
    assert pooled.l2 == math.inf
    assert pooled.l1 == pytest.approx(1e25 * 64 / 68)
    assert error.scores().l1 == pytest.approx(1e25 / 2)


def test_a_row_is_the_same_in_any_batch_and_on_any_number_of_threads():
    """Two processes, or a last batch of one, give to the bit what one process gives."""
    output, target = images(4, (256, 200))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = counted(output, target).rows
        alone = [counted(output[i : i + 1], target[i : i + 1]).rows for i in range(4)]
        torch.set_num_threads(1)
        slowly = [counted(output[i : i + 1], target[i : i + 1]).rows for i in range(4)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(torch.cat(slowly), together)
