"""The compound loss: numbers, gradients, half precision, ignored pixels, the module."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from transferseg.errors import SpecError
from transferseg.losses import (
    BCEDiceLoss,
    bce_dice_loss,
    bce_dice_terms,
    binary_cross_entropy,
    cross_entropy,
    mean_dice_loss,
)

MODES = ["binary", "multiclass", "multilabel"]


def batch(mode, *, size=(4, 5), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    classes = 1 if mode == "binary" else 3
    logits = torch.randn(2, classes, *size, generator=generator, dtype=torch.float64).to(dtype)
    if mode == "multiclass":
        return logits, torch.randint(0, classes, (2, *size), generator=generator)
    return logits, torch.randint(0, 2, (2, classes, *size), generator=generator)


def test_by_hand():
    logits = torch.tensor([[[[0.8, 0.25]]]], dtype=torch.float64).logit()
    target = torch.tensor([[[[1, 0]]]])
    bce = -(math.log(0.8) + math.log(0.75)) / 2
    dice = 1 - 2 * 0.8 / (1 + 0.64 + 0.0625)
    loss = bce_dice_loss(logits, target, mode="binary", bce_weight=0.5, dice_weight=2.0)
    assert loss.item() == pytest.approx(0.5 * bce + 2 * dice, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ignore_index", [None, 255])
def test_is_the_sum_of_its_public_parts(mode, ignore_index):
    logits, target = batch(mode)
    if ignore_index is not None:
        target[..., 0] = ignore_index
    terms = bce_dice_terms(logits, target, mode=mode, ignore_index=ignore_index)
    entropy = cross_entropy if mode == "multiclass" else binary_cross_entropy
    bce = entropy(logits, target, ignore_index=ignore_index)
    dice = mean_dice_loss(logits, target, mode=mode, ignore_index=ignore_index)
    torch.testing.assert_close(terms, {"loss": bce + dice, "bce": bce, "dice": dice})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("empty", ["penalise", "skip"])
def test_gradcheck(mode, squared, per_image, empty):
    logits, target = batch(mode, size=(2, 3))
    target[0] = 0  # an empty image
    target[1, ..., 0] = 255
    weights = {"class_weight": [1.0, 2.0, 3.0]} if mode == "multiclass" else {}
    loss = BCEDiceLoss(
        mode, squared=squared, per_image=per_image, empty=empty, ignore_index=255, **weights
    )
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_large_and_all_foreground(mode, dtype):
    classes = 1 if mode == "binary" else 2
    logits = torch.full((1, classes, 1024, 1024), 0.5, dtype=dtype)
    logits[:, -1] = 3.0
    target = torch.ones((1, 1024, 1024) if mode == "multiclass" else logits.shape).long()
    logits.requires_grad_()
    with torch.amp.autocast("cpu", dtype=torch.bfloat16):
        loss = bce_dice_loss(logits, target, mode=mode)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, bce_dice_loss(logits.float(), target, mode=mode))
    # every pixel is alike, so one of them gives the value (the gradient check is in float64)
    one = bce_dice_loss(
        logits.detach()[..., :1, :1].double(), target[..., :1, :1], mode=mode, eps=1e-12
    )
    assert loss.item() == pytest.approx(one.item(), rel=1e-4)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_dtype(mode, dtype):
    logits, target = batch(mode, dtype=dtype)
    assert bce_dice_loss(logits, target, mode=mode).dtype == dtype
    # the target's own dtype does not matter
    same = bce_dice_loss(logits, target.to(torch.uint8), mode=mode)
    assert torch.equal(same, bce_dice_loss(logits, target, mode=mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("empty", ["penalise", "skip"])
def test_ignored_pixels_count_nowhere(mode, per_image, empty):
    logits, target = batch(mode)
    cut = torch.narrow(logits, 3, 1, 4), target[..., 1:]
    target[..., 0] = 255
    loss = BCEDiceLoss(mode, per_image=per_image, empty=empty, ignore_index=255)
    torch.testing.assert_close(loss(logits, target), loss(*cut))
    wild = logits.clone()
    wild[..., 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30]).unsqueeze(0)
    wild.requires_grad_()
    value = loss(wild, target)
    value.backward()
    torch.testing.assert_close(value, loss(logits, target))
    assert torch.equal(wild.grad[..., 0], torch.zeros_like(wild.grad[..., 0]))
    assert (wild.grad[..., 1:] != 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("empty", ["penalise", "skip"])
@pytest.mark.parametrize("value", [-1e4, 0.0, 1e4])
def test_empty_masks_stay_finite(mode, empty, value):
    logits, target = batch(mode, dtype=torch.float32)
    logits = torch.full_like(logits, value).requires_grad_()
    loss = bce_dice_loss(logits, torch.zeros_like(target), mode=mode, empty=empty)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_descent_finds_the_mask():
    logits, target = batch("binary")
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        loss = bce_dice_loss(logits, target, mode="binary")
        loss.backward()
        optimizer.step()
    assert torch.equal((logits > 0).long(), target)
    assert loss < 0.05


def test_terms_are_detached_but_the_loss():
    logits, target = batch("binary")
    terms = BCEDiceLoss("binary").terms(logits.requires_grad_(), target)
    assert list(terms) == ["loss", "bce", "dice"]
    assert [term.requires_grad for term in terms.values()] == [True, False, False]


def test_module_keeps_every_option():
    options = {
        "bce_weight": 0.3, "dice_weight": 0.7, "squared": False, "per_image": False,
        "ignore_index": 2, "class_weight": [1.0, 2.0, 3.0], "empty": "skip", "eps": 1e-3,
    }  # fmt: skip
    logits, target = batch("multiclass")
    loss = BCEDiceLoss("multiclass", **options)
    expected = bce_dice_loss(logits, target, mode="multiclass", **options)
    torch.testing.assert_close(loss(logits, target), expected)
    copy = pickle.loads(pickle.dumps(loss))
    assert torch.equal(copy(logits, target), loss(logits, target))
    assert repr(copy) == repr(loss)
    assert repr(loss) == (
        "BCEDiceLoss('multiclass', bce_weight=0.3, dice_weight=0.7, squared=False, "
        "per_image=False, ignore_index=2, class_weight=[1.0, 2.0, 3.0], pos_weight=None, "
        "dice_class_weight=None, label_smoothing=0.0, "
        "empty='skip', eps=0.001)"
    )
    assert loss.state_dict() == {}


def test_pos_weight_reaches_the_loss():
    logits, target = batch("multilabel")
    weighted = BCEDiceLoss("multilabel", pos_weight=[2.0, 3.0, 4.0], dice_weight=0.0)
    expected = binary_cross_entropy(logits, target, pos_weight=[2.0, 3.0, 4.0])
    torch.testing.assert_close(weighted(logits, target), expected)


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("multi_label", {}, "Did you mean 'multilabel'"),
        ("binary", {"bce_weight": -1.0}, "bce_weight must be finite and 0 or more, got -1.0"),
        ("binary", {"dice_weight": math.nan}, "dice_weight must be finite"),
        ("binary", {"class_weight": [1.0]}, "class_weight and dice_class_weight are for modes"),
        ("multiclass", {"pos_weight": [1.0]}, "pos_weight is for modes 'binary'"),
        ("binary", {"empty": "zero"}, "unknown empty policy 'zero'"),
        ("binary", {"eps": -1.0}, "eps must be above 0"),
    ],
)
def test_wrong_options(mode, options, message):
    with pytest.raises(SpecError, match=message):
        BCEDiceLoss(mode, **options)


def test_typos_are_refused():
    with pytest.raises(TypeError, match="per_img"):
        BCEDiceLoss("binary", per_img=True)
