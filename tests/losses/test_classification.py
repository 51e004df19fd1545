"""Classification losses with missing labels: torch is the oracle; what differs is named."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F

from transferseg.errors import SpecError
from transferseg.losses import MulticlassLoss, MultilabelLoss, multiclass_loss, multilabel_loss

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


WEIGHT = [0.5, 2.0, 3.0]
weights = pytest.mark.parametrize("class_weight", [None, WEIGHT])
smoothings = pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])


def exclusive(seed=0, images=7, soft=False, dtype=torch.float32):
    """Logits and label rows of three classes; class indices too, unless soft."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 3, generator=generator, dtype=dtype)
    if soft:
        return logits, torch.rand(images, 3, generator=generator, dtype=dtype).softmax(1), None
    index = torch.randint(0, 3, (images,), generator=generator)
    return logits, F.one_hot(index, 3).to(dtype), index


def torch_loss(logits, target, class_weight, smoothing):
    weight = None if class_weight is None else torch.tensor(class_weight)
    return F.cross_entropy(logits, target, weight=weight, label_smoothing=smoothing)


@weights
@smoothings
def test_one_hot_rows_equal_torch_on_class_indices(class_weight, smoothing):
    logits, label, index = exclusive()
    loss = MulticlassLoss(class_weight=class_weight, label_smoothing=smoothing)
    theirs = torch_loss(logits, index, class_weight, smoothing)
    torch.testing.assert_close(loss(logits, label), theirs)
    torch.testing.assert_close(loss(logits, label.long()), theirs)
    torch.testing.assert_close(loss(logits, label.bool()), theirs)


@smoothings
def test_soft_rows_equal_torch_on_probabilities(smoothing):
    logits, label, _ = exclusive(soft=True)
    ours = multiclass_loss(logits, label, label_smoothing=smoothing)
    torch.testing.assert_close(ours, torch_loss(logits, label, None, smoothing))


@pytest.mark.parametrize("soft", [False, True])
@smoothings
def test_a_weighted_mean_divides_by_the_weights(soft, smoothing):
    """Disagreement with torch, on purpose: with probabilities it divides by the number of rows."""
    logits, label, _ = exclusive(soft=soft)
    ours = multiclass_loss(logits, label, class_weight=WEIGHT, label_smoothing=smoothing)
    theirs = torch_loss(logits, label, WEIGHT, smoothing)
    total = (label * torch.tensor(WEIGHT)).sum()
    torch.testing.assert_close(ours * total, theirs * len(label))
    assert ours.item() != pytest.approx(theirs.item())


@weights
@smoothings
def test_a_row_with_a_nan_counts_in_no_sum_and_gets_no_gradient(class_weight, smoothing):
    logits, label, index = exclusive()
    label[1], label[4, 2], logits[4, 0] = NAN, NAN, NAN
    known = torch.tensor([True, False, True, True, False, True, True])
    logits.requires_grad_()
    loss = multiclass_loss(logits, label, class_weight=class_weight, label_smoothing=smoothing)
    theirs = torch_loss(logits[known], index[known], class_weight, smoothing)
    torch.testing.assert_close(loss, theirs)
    (expected,) = torch.autograd.grad(theirs, logits)
    loss.backward()
    torch.testing.assert_close(logits.grad, expected)
    assert logits.grad[~known].abs().sum() == 0
    assert (logits.grad[known].abs().sum(1) > 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    ("label", "class_weight"),
    [(torch.full((2, 3), NAN), None), (torch.full((2, 3), NAN), WEIGHT),
     (torch.tensor([[1.0, 0.0, 0.0]] * 2), [0.0, 1.0, 1.0])],
)  # fmt: skip
def test_nothing_that_counts_is_zero_with_a_graph(label, class_weight, smoothing):
    """Disagreement with torch, on purpose: there the mean over nothing is NaN or infinite."""
    logits, _, _ = exclusive(images=2)
    logits.requires_grad_()
    loss = multiclass_loss(logits, label, class_weight=class_weight, label_smoothing=smoothing)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_precision_of_the_exclusive_loss():
    logits, label, index = exclusive(dtype=torch.float64)
    weight = torch.tensor(WEIGHT, dtype=torch.float64)
    ours = multiclass_loss(logits, label, class_weight=weight)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, F.cross_entropy(logits, index, weight=weight))
    half = logits.half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = multiclass_loss(half, label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, multiclass_loss(half.float(), label))


@weights
def test_gradcheck_of_the_exclusive_loss(class_weight):
    logits, label, _ = exclusive(soft=True, dtype=torch.float64)
    label[2] = NAN
    logits.requires_grad_()

    def loss(x):
        return multiclass_loss(x, label, class_weight=class_weight, label_smoothing=0.1)

    assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize(
    ("logits", "label", "options", "match"),
    [
        ((2, 3), (2, 4), {}, r"\(2, 3\) float32 and \(2, 4\) float32"),
        ((2, 3, 1), (2, 3, 1), {}, "2 axes"),
        ((2, 3), (2,), {}, r"label \(2,\) float32\. Class indices become rows with torch"),
        ((2, 1), (2, 1), {}, "two or more, got logits .* Use multilabel_loss"),
        ((2, 3), (2, 3), {"label_smoothing": 1.5}, "between 0 and 1, got 1.5"),
        ((2, 3), (2, 3), {"class_weight": [1.0, 2.0]}, r"class_weight needs one value a class"),
    ],
)
def test_wrong_use_of_the_exclusive_loss(logits, label, options, match):
    with pytest.raises(SpecError, match=match):
        multiclass_loss(torch.zeros(logits), torch.zeros(label), **options)


def test_the_module_keeps_its_options():
    loss = pickle.loads(pickle.dumps(MulticlassLoss(class_weight=[2.0, 1.0], label_smoothing=0.1)))
    assert repr(loss) == "MulticlassLoss(class_weight=[2.0, 1.0], label_smoothing=0.1)"
    assert repr(MulticlassLoss()) == "MulticlassLoss(class_weight=None, label_smoothing=0.0)"
    assert not loss.state_dict()
    with pytest.raises(SpecError, match="between 0 and 1"):
        MulticlassLoss(label_smoothing=-0.1)
