"""Soft Dice: hand-computed numbers, the policy of empty ground truth, agreement with smp."""

from __future__ import annotations

import monai.losses
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.errors import SpecError
from transferseg.losses import dice_loss, mean_dice_loss


def logit(probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).logit()


def test_binary_by_hand():
    logits = logit([[[[0.9, 0.2, 0.4, 0.1]]]])
    target = torch.tensor([[[[1, 0, 1, 0]]]])
    squared = 1 - 2 * 1.3 / (2 + 0.81 + 0.04 + 0.16 + 0.01)
    plain = 1 - 2 * 1.3 / (2 + 1.6)
    assert dice_loss(logits, target, mode="binary").item() == pytest.approx(squared, abs=1e-6)
    given_plain = dice_loss(logits, target, mode="binary", squared=False)
    assert given_plain.item() == pytest.approx(plain, abs=1e-6)


def test_multiclass_by_hand():
    # two pixels: probabilities (0.7, 0.2, 0.1) of class 0 and (0.1, 0.6, 0.3) of class 1
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]], dtype=torch.float64).log()
    logits = logits.T.reshape(1, 3, 1, 2)
    target = torch.tensor([[[0, 1]]])
    first = 1 - 2 * 0.7 / (1 + 0.49 + 0.01)
    second = 1 - 2 * 0.6 / (1 + 0.04 + 0.36)
    third = (0.01 + 0.09) / (2 + 0.81 + 0.49)  # absent: Dice of the complement
    expected = torch.tensor([[first, second, third]], dtype=torch.float64)
    loss = dice_loss(logits, target, mode="multiclass")
    torch.testing.assert_close(loss, expected, atol=2e-6, rtol=0)
    skipped = mean_dice_loss(logits, target, mode="multiclass", empty="skip")
    assert skipped.item() == pytest.approx((first + second) / 2, abs=2e-6)


def test_multilabel_classes_are_independent_binaries():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    target = torch.rand(2, 3, 4, 5, generator=generator) > 0.5
    loss = dice_loss(logits, target, mode="multilabel")
    for index in range(3):
        one = slice(index, index + 1)
        alone = dice_loss(logits[:, one], target[:, one], mode="binary")
        torch.testing.assert_close(loss[:, one], alone)


def test_soft_targets_reach_zero_at_equality():
    probabilities = [[[[0.3, 0.8, 0.5]]]]
    loss = dice_loss(logit(probabilities), torch.tensor(probabilities), mode="binary")
    assert loss.item() == pytest.approx(0, abs=1e-5)


def test_over_the_batch_sums_before_dividing():
    logits = logit([[[[0.9, 0.2]]], [[[0.6, 0.3]]]])
    target = torch.tensor([[[[1, 0]]], [[[1, 0]]]])
    loss = dice_loss(logits, target, mode="binary", per_image=False)
    side_by_side = torch.cat([logits[0], logits[1]], dim=-1)[None]
    joined = torch.cat([target[0], target[1]], dim=-1)[None]
    assert loss.shape == (1,)
    torch.testing.assert_close(loss, dice_loss(side_by_side, joined, mode="binary")[0])
    assert loss.item() != pytest.approx(dice_loss(logits, target, mode="binary").mean().item())


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("ignore_index", [None, 255])
def test_smp_agrees_where_every_class_is_present(mode, ignore_index):
    """Where they agree: plain denominators, over the batch, no empty class."""
    generator = torch.Generator().manual_seed(1)
    classes = 1 if mode == "binary" else 3
    logits = torch.randn(4, classes, 6, 7, generator=generator)
    if mode == "multiclass":
        target = torch.randint(0, 3, (4, 6, 7), generator=generator)
    else:
        target = torch.randint(0, 2, (4, classes, 6, 7), generator=generator)
    if ignore_index is not None:
        target[..., :2] = ignore_index
    ours = mean_dice_loss(
        logits, target, mode=mode, squared=False, per_image=False, ignore_index=ignore_index
    )
    theirs = smp.losses.DiceLoss(mode, ignore_index=ignore_index)(logits, target)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("squared", [True, False])
def test_empty_ground_truth_is_penalised_by_what_is_predicted(squared):
    """Disagreement with smp, on purpose: there the loss is 0 with false positives everywhere."""
    target = torch.zeros(1, 1, 4, 4)
    levels = [
        dice_loss(torch.full_like(target, value), target, mode="binary", squared=squared).item()
        for value in (-40.0, -2.0, 0.0, 2.0, 40.0)
    ]
    assert levels[0] == pytest.approx(0, abs=1e-12)
    assert levels == sorted(levels)
    assert levels[2] == pytest.approx(0.25 / 1.25 if squared else 0.5 / 1.5)
    assert levels[-1] == pytest.approx(1)
    assert smp.losses.DiceLoss("binary")(torch.full_like(target, 40.0), target).item() == 0


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_empty_ground_truth_pushes_every_false_positive_down(mode, squared):
    classes = 1 if mode == "binary" else 2
    logits = torch.randn(1, classes, 3, 3, generator=torch.Generator().manual_seed(2))
    logits.requires_grad_()
    target = torch.zeros(1, 3, 3).long() if mode == "multiclass" else torch.zeros(1, classes, 3, 3)
    loss = dice_loss(logits, target, mode=mode, squared=squared)
    loss[0, -1].backward()  # in multiclass, class 1 is the empty one
    assert (logits.grad[:, -1] > 0).all()  # descent lowers the logit


def test_skip_gives_zero_without_gradient_and_leaves_the_mean():
    logits = torch.zeros(2, 1, 1, 2, requires_grad=True)
    target = torch.tensor([[[[1, 1]]], [[[0, 0]]]])
    loss = dice_loss(logits, target, mode="binary", empty="skip")
    torch.testing.assert_close(loss, torch.tensor([[0.2], [0.0]]))
    mean_dice_loss(logits, target, mode="binary", empty="skip").backward()
    assert logits.grad[1].abs().sum() == 0
    assert logits.grad[0].abs().sum() > 0


@pytest.mark.parametrize("empty", ["penalise", "skip"])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_all_ignored_is_zero_with_zero_gradient(mode, per_image, empty):
    classes = 1 if mode == "binary" else 3
    logits = torch.full((2, classes, 2, 2), torch.inf, requires_grad=True)
    target = torch.full((2, 2, 2) if mode == "multiclass" else (2, classes, 2, 2), 255)
    loss = mean_dice_loss(
        logits, target, mode=mode, per_image=per_image, ignore_index=255, empty=empty
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.sampled_from(["penalise", "skip"]))
def test_between_zero_and_one(seed, squared, per_image, empty):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 3, 3, generator=generator) * 30
    target = torch.randint(0, 5, (2, 3, 3), generator=generator)
    loss = dice_loss(
        logits, target, mode="multiclass", squared=squared, per_image=per_image, empty=empty,
        ignore_index=4,
    )  # fmt: skip
    assert loss.shape == ((2, 4) if per_image else (4,))
    assert ((loss >= -1e-6) & (loss <= 1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"empty": "penalize"}, "Did you mean 'penalise'"),
        ({"eps": 0.0}, "eps must be above 0"),
        ({"mode": "multi-class"}, "Did you mean 'multiclass'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(SpecError, match=message):
        dice_loss(
            torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), **({"mode": "binary"} | options)
        )


def test_label_out_of_range_is_loud():
    with pytest.raises(RuntimeError, match="out of bounds"):
        dice_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 7]]]), mode="multiclass")


@pytest.mark.parametrize("mode", ["binary", "multilabel"])
@pytest.mark.parametrize("squared", [True, False])
def test_monai_agrees_per_image_where_every_class_is_present(mode, squared):
    generator = torch.Generator().manual_seed(1)
    shape = (4, 1 if mode == "binary" else 3, 6, 7)
    logits = torch.randn(shape, generator=generator)
    target = torch.randint(0, 2, shape, generator=generator)
    theirs = monai.losses.DiceLoss(sigmoid=True, squared_pred=squared)(logits, target.float())
    ours = mean_dice_loss(logits, target, mode=mode, squared=squared)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_monai_on_an_empty_mask():
    """Disagreement with MONAI, on purpose: there nearly 1 with nearly no gradient, whatever p."""
    target, gradients = torch.zeros(1, 1, 64, 64), []
    for value in (-3.0, 0.0):
        logits = torch.full_like(target, value).requires_grad_()
        theirs = monai.losses.DiceLoss(sigmoid=True)(logits, target)
        assert theirs.item() == pytest.approx(1, abs=1e-6)
        (gradient,) = torch.autograd.grad(theirs, logits)
        gradients.append(gradient.sum().item())
        ours = mean_dice_loss(logits, target, mode="binary", squared=False)
        (gradient,) = torch.autograd.grad(ours, logits)
        assert gradient.sum().item() > 1e4 * gradients[-1]


def test_few_false_positives_keep_their_digits():
    """The sum of p^2 far below that of p: 1e-16 beside 1e-8, which float32 cannot subtract."""
    logits, target = torch.full((1, 1, 64, 64), -18.0), torch.zeros(1, 1, 64, 64)
    expected = dice_loss(logits.double(), target, mode="binary").item()
    assert 0 < expected < 1e-15
    found = dice_loss(logits, target, mode="binary").item()
    assert found == pytest.approx(expected, rel=1e-5, abs=0)
