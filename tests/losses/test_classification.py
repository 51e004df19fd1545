"""Multi-label classification with missing labels."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F

from transferseg.errors import SpecError
from transferseg.losses import MultilabelLoss, multilabel_loss

NAN = torch.nan


def test_equals_torch_on_the_known_labels():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([[1, 0, NAN], [NAN, NAN, NAN], [0, 1, 1], [1, NAN, 0.3]])
    known = ~label.isnan()
    theirs = F.binary_cross_entropy_with_logits(logits[known], label[known])
    torch.testing.assert_close(multilabel_loss(logits, label), theirs)
    weight = torch.tensor([2.0, 3.0, 4.0])
    theirs = F.binary_cross_entropy_with_logits(
        logits[known], label[known], pos_weight=weight.expand_as(label)[known]
    )
    torch.testing.assert_close(MultilabelLoss(pos_weight=[2.0, 3.0, 4.0])(logits, label), theirs)


def test_missing_labels_give_no_gradient():
    logits = torch.tensor([[0.5, NAN]], requires_grad=True)
    multilabel_loss(logits, torch.tensor([[1.0, NAN]])).backward()
    assert logits.grad[0, 1] == 0
    assert logits.grad[0, 0] < 0


def test_all_missing_is_zero_with_a_graph():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = multilabel_loss(logits, torch.full((2, 3), NAN))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_integer_labels_and_half_precision():
    logits = torch.full((2, 3), 2.0, dtype=torch.float16)
    loss = multilabel_loss(logits, torch.ones(2, 3).long())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, multilabel_loss(logits.float(), torch.ones(2, 3)))


def test_gradcheck():
    logits = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([[1, NAN], [0, 1], [NAN, NAN]])
    assert torch.autograd.gradcheck(lambda x: multilabel_loss(x, label), logits)


@pytest.mark.parametrize("shape", [(2, 4), (2,), (2, 3, 1)])
def test_wrong_shapes_name_both(shape):
    with pytest.raises(SpecError) as error:
        multilabel_loss(torch.zeros(2, 3), torch.zeros(shape))
    assert "(2, 3)" in str(error.value)
    assert str(shape) in str(error.value)


def test_pickle_and_repr():
    loss = pickle.loads(pickle.dumps(MultilabelLoss(pos_weight=[2.0])))
    assert repr(loss) == "MultilabelLoss(pos_weight=[2.0])"
    assert repr(MultilabelLoss()) == "MultilabelLoss(pos_weight=None)"
