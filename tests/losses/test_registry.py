"""Every loss of masks keeps the contracts of the room."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.losses import LOSSES, boundary_loss

MODES = ["binary", "multiclass", "multilabel"]
modes = pytest.mark.parametrize("mode", MODES)
names = pytest.mark.parametrize("name", sorted(LOSSES))
POLICIES = sorted(set(LOSSES) - {"focal", "boundary"})  # those two know no empty class


def batch(mode, *, images=3, size=(4, 6), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    classes = 1 if mode == "binary" else 3
    logits = torch.randn(images, classes, *size, generator=generator, dtype=torch.float64)
    if mode == "multiclass":
        return logits.to(dtype), torch.randint(0, 3, (images, *size), generator=generator)
    return logits.to(dtype), torch.randint(0, 2, (images, classes, *size), generator=generator)


@names
@modes
def test_gradcheck(name, mode):
    logits, target = batch(mode, images=2, size=(2, 3))
    target[0] = 0  # an empty image
    target[1, ..., 0] = 255
    loss = LOSSES[name](mode)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_())


@names
@modes
def test_a_scalar_in_at_least_float32_with_and_without_autocast(name, mode):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        logits, target = batch(mode, dtype=dtype)
        value = LOSSES[name](mode)(logits, target)
        assert value.shape == ()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(LOSSES[name](mode)(logits, target), value)
        full = LOSSES[name](mode)(logits.double(), target)
        assert value.item() == pytest.approx(full.item(), rel=1e-5)


@names
@modes
@settings(deadline=None, max_examples=8, derandomize=True)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(3)))
def test_the_order_of_the_images_does_not_matter(name, mode, seed, order):
    logits, target = batch(mode, seed=seed)
    loss = LOSSES[name](mode)
    torch.testing.assert_close(loss(logits[order], target[order]), loss(logits, target))


@names
@modes
@settings(deadline=None, max_examples=8, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    fill=st.sampled_from([0.0, 1e30, torch.inf, torch.nan]),
)
def test_padding_with_ignored_pixels_changes_nothing(name, mode, seed, pads, fill):
    logits, target = batch(mode, seed=seed)
    loss = LOSSES[name](mode, ignore_index=255)
    padded = torch.nn.functional.pad(logits, pads, value=fill).requires_grad_()
    value = loss(padded, torch.nn.functional.pad(target, pads, value=255))
    torch.testing.assert_close(value.detach(), loss(logits, target))
    value.backward()
    left, right, top, bottom = pads
    inner = padded.grad[..., top : top + 4, left : left + 6]
    plain = logits.requires_grad_()
    (expected,) = torch.autograd.grad(loss(plain, target), plain)
    torch.testing.assert_close(inner, expected)
    assert padded.grad.abs().sum().item() == pytest.approx(inner.abs().sum().item())
    assert right + bottom + left + top == 0 or padded.grad.isfinite().all()


@names
@modes
def test_nothing_that_counts_is_zero_without_a_gradient(name, mode):
    logits, target = batch(mode)
    logits = torch.full_like(logits, torch.inf).requires_grad_()
    value = LOSSES[name](mode)(logits, torch.full_like(target, 255))
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", POLICIES)
def test_empty_ground_truth_by_policy(name):
    """Penalised: more false positives cost more. Skipped: the region's part costs nothing."""
    target = torch.zeros(1, 1, 4, 4)
    options = {"bce_weight": 0.0} if name == "bce_dice" else {}
    penalise, skip = (LOSSES[name]("binary", empty=e, **options) for e in ("penalise", "skip"))
    levels = [penalise(torch.full_like(target, x), target).item() for x in (-40.0, 0.0, 40.0)]
    assert levels == sorted(set(levels))
    assert levels[0] == pytest.approx(0, abs=5e-5)  # the root of a focal loss is cut at eps
    logits = torch.full_like(target, 3.0).requires_grad_()
    skip(logits, target).backward()
    assert skip(logits, target).item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


#: Both dtypes for each loss.
AT_4096 = [
    (name, mode, dtype)
    for name in sorted(LOSSES)
    for mode, dtype in (
        ("binary", "float16"), ("multiclass", "float16"), ("multilabel", "bfloat16")
    )
]  # fmt: skip


def batch_4096(mode, dtype):
    """All pixels alike, and of the last class: of several, class 0 is absent."""
    values = [0.5] if mode == "binary" else [0.5, 1.5]
    logits = torch.tensor(values, dtype=dtype)[:, None, None].repeat(1, 1, 4096, 4096)
    target = torch.ones(1, 4096, 4096, dtype=torch.uint8)
    if mode != "multiclass":
        target = torch.stack([torch.zeros_like(target), target], dim=1)[:, -len(values) :]
    return logits, target


def check_4096(loss, logits, target):
    """Finite, with the value of 64x64 pixels in float64."""
    logits.requires_grad_()
    value = loss(logits, target)
    value.backward()
    small = loss(logits.detach()[..., :64, :64].double(), target[..., :64, :64])
    assert value.item() == pytest.approx(small.item(), rel=1e-4)
    assert logits.grad.sum(dtype=torch.float32).isfinite()  # so each is, and none is NaN
    assert logits.grad.dtype == logits.dtype


@pytest.mark.parametrize(("name", "mode", "dtype"), AT_4096)
def test_finite_at_4096_in_half_precision(name, mode, dtype):
    """A sum in half precision is infinite after 65,504 pixels.

    The distances of the boundary loss are given, and as far as the image is wide: making them is
    scipy's part, in float64.
    """
    loss = LOSSES[name](mode)
    if name == "boundary":
        far = torch.full((1, 1, 4096, 4096), 4096.0)

        def loss(x, y):
            maps = far[..., : y.shape[-2], : y.shape[-1]].expand_as(x)
            return boundary_loss(x, y, mode=mode, distances=maps)

    check_4096(loss, *batch_4096(mode, getattr(torch, dtype)))


@names
@modes
def test_options_travel(name, mode):
    logits, target = batch(mode)
    target[..., 0] = 7
    loss = LOSSES[name](mode, ignore_index=7)
    again = pickle.loads(pickle.dumps(loss))
    assert repr(again) == repr(loss)
    assert "ignore_index=7" in repr(loss)
    assert torch.equal(again(logits, target), loss(logits, target))
    assert loss.state_dict() == {}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_class_of_weight_zero_has_no_part(name):
    """The background left out, in losses whose classes do not share pixels."""
    logits, target = batch("multilabel")
    weight = "dice_class_weight" if name == "bce_dice" else "class_weight"
    options = {"class_weight": [0.0, 1.0, 2.0]} if name == "bce_dice" else {}
    loss = LOSSES[name]("multilabel", **options, **{weight: [0.0, 1.0, 2.0]})
    rest = LOSSES[name](
        "multilabel", **{n: w[1:] for n, w in options.items()}, **{weight: [1.0, 2.0]}
    )
    torch.testing.assert_close(loss(logits, target), rest(logits[:, 1:], target[:, 1:]))
