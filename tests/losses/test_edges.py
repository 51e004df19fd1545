"""Every loss of masks at the edges: nothing, one pixel, odd dtypes and layouts, odd use."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from transferseg.errors import SpecError
from transferseg.losses import LOSSES

MODES = ["binary", "multiclass", "multilabel"]
modes = pytest.mark.parametrize("mode", MODES)
names = pytest.mark.parametrize("name", sorted(LOSSES))
HARD = ("lovasz", "boundary")  # no soft targets
ANALYTIC = sorted(set(LOSSES) - {"focal", "lovasz", "boundary"})  # of the one pass


def batch(mode, *, images=2, size=(4, 6), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    classes = 1 if mode == "binary" else 3
    logits = 2 * torch.randn(images, classes, *size, generator=generator, dtype=torch.float64)
    if mode == "multiclass":
        return logits.to(dtype), torch.randint(0, 3, (images, *size), generator=generator)
    return logits.to(dtype), torch.randint(0, 2, (images, classes, *size), generator=generator)


def gradient_of(loss, logits, target):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


@names
@modes
@pytest.mark.parametrize(
    ("images", "size"), [(0, (4, 6)), (0, (64, 64)), (2, (0, 6)), (2, (64, 0))]
)
def test_a_batch_of_nothing_is_zero_with_a_graph(name, mode, images, size):
    logits, target = batch(mode, images=images, size=size)
    value, gradient = gradient_of(LOSSES[name](mode), logits, target)
    assert value.item() == 0
    assert gradient.shape == logits.shape


@names
@modes
def test_one_pixel(name, mode):
    """Next to ignored ones it has the loss that it has alone."""
    logits, target = batch(mode, images=1, size=(1, 1), seed=3)
    loss = LOSSES[name](mode)
    value, gradient = gradient_of(loss, logits, target)
    wide = torch.cat([logits, torch.full_like(logits, torch.inf)], dim=-1)
    beside, wide_gradient = gradient_of(
        loss, wide, torch.cat([target, torch.full_like(target, 255)], dim=-1)
    )
    torch.testing.assert_close(beside, value)
    torch.testing.assert_close(wide_gradient[..., :1], gradient)
    assert torch.equal(wide_gradient[..., 1:], torch.zeros_like(gradient))
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_())


@names
@modes
def test_the_dtype_of_the_target_does_not_matter(name, mode):
    logits, target = batch(mode, dtype=torch.float32)
    integers = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
    integers += (torch.int8, torch.int16, torch.int32)
    others = (torch.bool, torch.float16, torch.bfloat16, torch.float64)
    expected = LOSSES[name](mode)(logits, target)
    for dtype in integers + (others if mode != "multiclass" else ()):
        assert torch.equal(LOSSES[name](mode)(logits, target.to(dtype)), expected), dtype


@names
@pytest.mark.parametrize(
    ("label", "dtype"),
    [(3, torch.uint8), (3, torch.uint16), (-1, torch.int8), (-100, torch.int16),
     (300, torch.int16), (254, torch.uint8), (-1, torch.int64)],
)  # fmt: skip
def test_a_label_outside_the_classes_is_loud(name, label, dtype):
    """In every dtype, also where it would count from the end or wrap to a class or to 255."""
    logits, target = batch("multiclass")
    target[1, 2, 3] = label
    with pytest.raises((RuntimeError, IndexError), match=r"out of bounds|out of range"):
        LOSSES[name]("multiclass")(logits, target.to(dtype))


@names
@modes
@pytest.mark.parametrize("ignore_index", [-1, -100, 1, 0, 7])
def test_any_value_can_be_the_ignored_one(name, mode, ignore_index):
    """Below 0, one of the classes, beyond them: as if it were 255."""
    logits, target = batch(mode)
    if ignore_index not in (0, 1):
        target[..., :2] = ignore_index
    ours = gradient_of(LOSSES[name](mode, ignore_index=ignore_index), logits, target)
    usual = torch.where(target == ignore_index, 255, target)
    torch.testing.assert_close(ours, gradient_of(LOSSES[name](mode), logits, usual))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(HARD)))
@pytest.mark.parametrize("mode", ["binary", "multilabel"])
def test_soft_targets_with_ignored_entries(name, mode):
    logits, target = batch(mode)
    soft = 0.1 + 0.8 * target.double()
    loss = LOSSES[name](mode)
    cut = loss(logits[..., 2:], soft[..., 2:])
    soft[..., :2] = 255
    torch.testing.assert_close(loss(logits, soft), cut)


@names
@modes
def test_no_gradient_goes_to_the_target(name, mode):
    logits, target = batch(mode)
    if mode == "multiclass":
        if name not in ANALYTIC:
            pytest.skip("class indices have no gradient")
        target = torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    target = target.double().requires_grad_()
    LOSSES[name](mode)(logits.requires_grad_(), target).backward()
    assert target.grad is None
    assert logits.grad.abs().sum() > 0


@names
@modes
def test_any_memory_layout(name, mode):
    logits, target = batch(mode)
    target[..., 0] = 255
    loss = LOSSES[name](mode)
    expected, gradient = gradient_of(loss, logits, target)
    last = logits.to(memory_format=torch.channels_last)
    torch.testing.assert_close(gradient_of(loss, last, target), (expected, gradient))
    turned, mask = logits.mT.contiguous().mT, target.mT.contiguous().mT
    torch.testing.assert_close(gradient_of(loss, turned, mask), (expected, gradient))
    twice = logits.repeat_interleave(2, dim=-1)[..., ::2], target.repeat_interleave(2, -1)[..., ::2]
    torch.testing.assert_close(gradient_of(loss, *twice), (expected, gradient))


@names
@modes
def test_modules_copy_and_run_without_gradients(name, mode):
    logits, target = batch(mode)
    weight = {} if mode == "binary" else {"class_weight": [1.0, 2.0, 3.0]}
    loss = LOSSES[name](mode, **weight)
    twin = copy.deepcopy(loss)
    expected = loss(logits, target)
    assert torch.equal(twin(logits, target), expected)
    assert (twin.class_weight is None) == (mode == "binary")
    twin.load_state_dict(loss.state_dict())
    with torch.inference_mode():
        assert torch.equal(loss(logits.clone(), target.clone()), expected)


@names
def test_nothing_is_kept_after_the_step(name):
    mode = "multilabel"
    logits, target = batch(mode)
    logits.requires_grad_()
    loss = LOSSES[name](mode)
    gc.disable()
    try:
        value = loss(logits, target)
        value.backward()
        held = weakref.ref(logits)
        del logits, value
        assert held() is None  # no cycle, no cache
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ANALYTIC)
def test_other_derivatives_are_refused(name):
    logits, target = batch("binary")
    loss = LOSSES[name]("binary")
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, target), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(loss)(logits.detach(), target)


@modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_not_rounded_to_the_logits(mode, dtype):
    """Of half precision logits: 1e-8, one over the number of pixels, would be 0 in float16."""
    logits, target = batch(mode, dtype=dtype)
    small = [1e-8] if mode == "binary" else [1e-8, 3e-8, 2e-8]
    options = {"pos_weight" if mode == "binary" else "class_weight": small}
    loss = LOSSES["bce_dice"](mode, dice_weight=0.0, **options)
    found, expected = loss(logits, target), loss(logits.double(), target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    if mode == "multilabel":
        fine = LOSSES["bce_dice"](mode, dice_weight=0.0, pos_weight=[1.001, 3.003, 1e5])
        expected = fine(logits.double(), target).item()
        assert fine(logits, target).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_weights_of_one_class_are_refused(name):
    """A weighted mean over one class is the mean: the option would do nothing."""
    with pytest.raises(SpecError, match=r"class_weight.* for modes"):
        LOSSES[name]("binary", class_weight=[2.0])
    function = LOSSES[name]._function
    with pytest.raises(SpecError, match=r"class_weight.* for modes"):
        function(*batch("binary"), mode="binary", class_weight=[2.0])


@pytest.mark.parametrize("weight", [[1.0, -2.0, 1.0], torch.tensor([1.0, torch.nan, 1.0])])
def test_weights_below_zero_are_refused(weight):
    for name in LOSSES:
        with pytest.raises(SpecError, match="class_weight must be finite and 0 or more"):
            LOSSES[name]("multilabel", class_weight=weight)
    with pytest.raises(SpecError, match="pos_weight must be finite and 0 or more"):
        LOSSES["bce_dice"]("multilabel", pos_weight=weight)
    if not isinstance(weight, torch.Tensor):
        with pytest.raises(SpecError, match="class_weight must be finite and 0 or more"):
            LOSSES["dice"]._function(*batch("multilabel"), mode="multilabel", class_weight=weight)


@names
def test_the_ignored_value_is_an_integer(name):
    """NaN equals no target: the pixels would count."""
    logits, target = batch("binary")
    with pytest.raises(SpecError, match="ignore_index must be an integer or None, got nan"):
        LOSSES[name]("binary", ignore_index=torch.nan)(logits, target)


def test_building_on_the_meta_device():
    with torch.device("meta"):
        loss = LOSSES["dice"]("multilabel", class_weight=[1.0, 2.0])
    assert loss.class_weight.is_meta
