"""Cross-entropy: torch is the oracle; what differs is named."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from transferseg.errors import SpecError
from transferseg.losses import binary_cross_entropy, cross_entropy


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_by_hand():
    logits = torch.tensor([[[[0.8, 0.25]]]], dtype=torch.float64).logit()
    loss = binary_cross_entropy(logits, torch.tensor([[[[1, 0]]]]))
    assert loss.item() == pytest.approx(-(math.log(0.8) + math.log(0.75)) / 2)
    logits = torch.tensor([[[[0.2]], [[0.5]], [[0.3]]]], dtype=torch.float64).log()
    assert cross_entropy(logits, torch.tensor([[[1]]])).item() == pytest.approx(-math.log(0.5))


@pytest.mark.parametrize("pos_weight", [None, [0.5, 2.0, 3.0]])
def test_binary_equals_torch(generator, pos_weight):
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    target = torch.rand(2, 3, 4, 5, generator=generator)  # soft
    weight = None if pos_weight is None else torch.tensor(pos_weight).reshape(3, 1, 1)
    theirs = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
    torch.testing.assert_close(binary_cross_entropy(logits, target, pos_weight=pos_weight), theirs)


@pytest.mark.parametrize("class_weight", [None, [0.5, 2.0, 3.0]])
@pytest.mark.parametrize("ignore_index", [None, 1, 255])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_multiclass_equals_torch(generator, class_weight, ignore_index, smoothing):
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    target = torch.randint(0, 3, (2, 4, 5), generator=generator)
    if ignore_index == 255:
        target[:, :2] = 255
    theirs = F.cross_entropy(
        logits, target,
        weight=None if class_weight is None else torch.tensor(class_weight),
        ignore_index=-100 if ignore_index is None else ignore_index,
        label_smoothing=smoothing,
    )  # fmt: skip
    ours = cross_entropy(
        logits, target, class_weight=class_weight, ignore_index=ignore_index,
        label_smoothing=smoothing,
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs)


def test_binary_ignores_entries_of_one_class(generator):
    logits = torch.randn(1, 2, 2, 3, generator=generator)
    target = torch.randint(0, 2, (1, 2, 2, 3), generator=generator)
    target[0, 1, 0] = 255
    keep = target != 255
    theirs = F.binary_cross_entropy_with_logits(logits[keep], target[keep].float())
    torch.testing.assert_close(binary_cross_entropy(logits, target, ignore_index=255), theirs)


def test_all_ignored_is_zero_with_a_graph():
    """Disagreement with torch, on purpose: there the mean over nothing is NaN."""
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    target = torch.full((1, 2, 2), 255)
    assert F.cross_entropy(logits, target, ignore_index=255).isnan()
    loss = cross_entropy(logits, target, ignore_index=255, class_weight=[1.0, 2.0])
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum() == 0


def test_minus_100_is_ignored_only_when_asked():
    """Disagreement with torch, on purpose: there -100 is skipped unless another index is given."""
    logits, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, -100]]])
    assert F.cross_entropy(logits, target).isfinite()
    with pytest.raises(RuntimeError, match="out of bounds"):
        cross_entropy(logits, target)
    assert cross_entropy(logits, target, ignore_index=-100).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("weight", [[1.0], [[1.0, 2.0]], 2.0])
def test_weights_need_one_value_a_class(weight):
    with pytest.raises(SpecError, match=r"class_weight needs one value a class, shape \(2,\)"):
        cross_entropy(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long(), class_weight=weight)
    with pytest.raises(SpecError, match=r"pos_weight needs one value a class, shape \(2,\)"):
        binary_cross_entropy(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), pos_weight=weight)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weight", [None, [0.5, 2.0, 3.0]])
def test_probabilities_with_weights_have_a_weighted_mean(generator, class_weight, smoothing):
    """Disagreement with torch, on purpose: there the weighted sum is over the number of pixels."""
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    target = torch.rand(2, 3, 4, 5, generator=generator).softmax(1)
    weight = torch.tensor(class_weight or [1.0] * 3)
    theirs = F.cross_entropy(logits, target, weight=weight, label_smoothing=smoothing)
    total = (target * weight[:, None, None]).sum()
    ours = cross_entropy(
        logits, target, class_weight=class_weight, label_smoothing=smoothing, ignore_index=None
    )
    torch.testing.assert_close(ours * total, theirs * 40)
    hard = target.argmax(1)
    rows = F.one_hot(hard, 3).movedim(-1, 1).float()
    options = {"class_weight": class_weight, "label_smoothing": smoothing}
    torch.testing.assert_close(
        cross_entropy(logits, rows, **options), cross_entropy(logits, hard, **options)
    )


def test_a_class_that_is_masked_out_by_its_logit_costs_nothing(generator):
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    logits[:, 2] = -torch.inf
    logits.requires_grad_()
    target = torch.randint(0, 2, (2, 4, 5), generator=generator)
    loss = cross_entropy(logits, target)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))
    loss.backward()
    assert logits.grad.isfinite().all()
