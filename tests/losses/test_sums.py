"""The one pass: equal to a composition of torch's operations, in every block and layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.losses.composition import bce_dice
from transferseg.errors import SpecError
from transferseg.losses import bce_dice_terms, blocks, jaccard_loss
from transferseg.losses.sums import pixel_sums

MODES = ["binary", "multiclass", "multilabel"]


def batch(mode, *, size=(4, 5), seed=0, soft=False, ignored=True, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    classes = 1 if mode == "binary" else 3
    shape = (2, classes, *size)
    logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    if soft:
        target = torch.rand(shape, generator=generator, dtype=torch.float64)
        target = target / target.sum(1, keepdim=True) if mode == "multiclass" else target
    elif mode == "multiclass":
        target = torch.randint(0, classes, (2, *size), generator=generator)
    else:
        target = torch.randint(0, 2, shape, generator=generator)
    if ignored:
        target[..., : size[-1] // 3] = 255
    return logits, target


def both(logits, target, **options):
    """Terms and gradient of the one pass and of the composition."""
    found = []
    for function in (bce_dice_terms, bce_dice):
        x = logits.detach().clone().requires_grad_()
        terms = function(x, target, **options)
        terms["loss"].backward()
        found.append({**{n: v.detach() for n, v in terms.items()}, "gradient": x.grad})
    return found


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    mode=st.sampled_from(MODES),
    soft=st.booleans(),
    ignored=st.booleans(),
    options=st.fixed_dictionaries(
        {
            "squared": st.booleans(),
            "per_image": st.booleans(),
            "empty": st.sampled_from(["penalise", "skip"]),
            "label_smoothing": st.sampled_from([0.0, 0.3, 1.0]),
            "bce_weight": st.sampled_from([0.0, 0.7]),
            "dice_weight": st.sampled_from([0.0, 1.3]),
        }
    ),
    weights=st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=3, max_size=3),
    empty_class=st.booleans(),
)
def test_equals_the_composition(seed, mode, soft, ignored, options, weights, empty_class):
    logits, target = batch(mode, seed=seed, soft=soft, ignored=ignored)
    if empty_class:
        target = torch.where(target == 255, target, 0)
    if mode != "multiclass":
        options = options | {"pos_weight": [3.0] if mode == "binary" else [3.0, 0.5, 1.0]}
    if mode != "binary":
        options = options | {"class_weight": weights, "dice_class_weight": weights[::-1]}
    ours, theirs = both(logits, target, mode=mode, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [7, 16, 64])
def test_every_way_of_cutting_gives_the_same(monkeypatch, mode, size):
    """Blocks of several images, of several classes, of a part of a row."""
    logits, target = batch(mode, size=(9, 11))
    options = {"mode": mode, "label_smoothing": 0.1}
    whole = both(logits, target, **options)[0]
    for limit in ("ON_CPU", "WHOLE_ON_CPU", "BY_TORCH"):
        monkeypatch.setattr(blocks, limit, size)
    ours, theirs = both(logits, target, **options)
    torch.testing.assert_close(ours, whole)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("shape", "size"), [((5, 2, 3), 13), ((2, 4, 30), 64), ((3, 4, 6), 24)])
@pytest.mark.parametrize("whole_classes", [True, False])
def test_blocks_cover_every_value_once(monkeypatch, shape, size, whole_classes):
    for limit in ("ON_CPU", "WHOLE_ON_CPU", "BY_TORCH"):
        monkeypatch.setattr(blocks, limit, size)
    values = torch.rand(shape)
    seen = blocks.written_by_blocks(
        lambda _, out, part: torch.add(part, 1, out=out), values, whole_classes=whole_classes
    )
    assert torch.equal(seen, values + 1)
    sums = blocks.total_of_blocks(
        lambda _, part: part.sum(-1)[None], values, whole_classes=whole_classes
    )
    torch.testing.assert_close(sums[0], values.sum(-1))


@pytest.mark.parametrize("mode", MODES)
def test_large_masks_in_inference_mode(mode):
    """Real block sizes, several a row."""
    logits, target = batch(mode, size=(700, 800))
    logits = logits.float()
    with torch.inference_mode():
        terms = bce_dice_terms(logits.clone(), target.clone(), mode=mode)
    expected = bce_dice(logits.double(), target, mode=mode)
    for name, value in terms.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=2e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["channels_last", "cropped", "transposed"])
def test_any_memory_layout(mode, layout):
    logits, target = batch(mode, size=(6, 8))
    if layout == "channels_last":
        logits = logits.to(memory_format=torch.channels_last)
    elif layout == "cropped":
        logits, target = logits[..., :-2], target[..., :-2]
    else:
        logits, target = logits.transpose(2, 3), target.transpose(-2, -1)
    x = logits.detach().requires_grad_()
    terms = bce_dice_terms(x, target, mode=mode)
    terms["loss"].backward()
    expected = both(logits.contiguous(), target.contiguous(), mode=mode)[1]
    torch.testing.assert_close(terms["loss"].detach(), expected["loss"])
    torch.testing.assert_close(x.grad, expected["gradient"])


@pytest.mark.parametrize("mode", MODES)
def test_confident_logits_keep_a_value(mode):
    """Where log(sigmoid) rounds to 0, the entropy is still the logit's."""
    logits, target = batch(mode, ignored=False, scale=1.0)
    logits = (logits * 60).float()
    terms = bce_dice_terms(logits, target, mode=mode)
    expected = bce_dice(logits.double(), target, mode=mode)
    assert terms["bce"].item() == pytest.approx(expected["bce"].item(), rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_only_logits_and_target_are_kept(mode):
    """What the graph holds at full size is the two, and the gradient is of the logits' dtype."""
    logits, target = batch(mode, size=(32, 32))
    logits = logits.to(torch.bfloat16).requires_grad_()
    kept = []

    def pack(tensor):
        kept.append((tensor.data_ptr(), tensor.numel()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = bce_dice_terms(logits, target, mode=mode)["loss"]
    large = {pointer for pointer, number in kept if number >= 32 * 32}
    assert large == {logits.data_ptr(), target.data_ptr()}
    loss.backward()
    assert logits.grad.dtype == torch.bfloat16


def test_there_is_no_second_derivative_and_it_says_so():
    logits, target = batch("binary")
    logits.requires_grad_()
    loss = bce_dice_terms(logits, target, mode="binary")["loss"]
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", ["entropy", "region"])
def test_sums_that_are_not_asked_for_are_zero(mode, part):
    logits, target = batch(mode)
    wanted = {"entropy": part == "entropy", "region": part == "region"}
    some = pixel_sums(logits, target, mode=mode, ignore_index=255, squared=True, **wanted)
    whole = pixel_sums(
        logits, target, mode=mode, ignore_index=255, squared=True, entropy=True, region=True
    )
    of_region = ("linear", "square", "overlap", "truth")
    for name in ("entropy", *of_region):
        expected = getattr(whole, name) * (wanted["region" if name in of_region else "entropy"])
        assert torch.equal(getattr(some, name), expected)


@pytest.mark.parametrize("mode", MODES)
def test_sums_that_are_not_asked_for_have_no_slope(mode):
    """Even where none is, and the memory that the gradient could be taken of holds something."""
    logits, target = batch(mode)
    logits.requires_grad_()
    sums = pixel_sums(
        logits, target, mode=mode, ignore_index=255, squared=True, entropy=False, region=False
    )
    total = (sums.entropy + sums.linear + sums.square + sums.overlap).sum()
    for _ in range(8):
        torch.full_like(logits, 7.0)
    (gradient,) = torch.autograd.grad(total, logits)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_soft_targets_of_exclusive_classes_are_floats():
    logits, target = batch("multiclass", soft=True, ignored=False)
    with pytest.raises(SpecError, match="argmax"):
        jaccard_loss(logits, target.round().long(), mode="multiclass")
    assert jaccard_loss(logits, target, mode="multiclass").isfinite()
    with pytest.raises(SpecError, match="label_smoothing must lie between 0 and 1"):
        bce_dice_terms(logits, target, mode="multiclass", label_smoothing=1.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_of_many_bytes_is_that_of_its_images_one_by_one(dtype, layout):
    """Large ones lie in memory that NumPy has got."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 512, 362, generator=generator).to(dtype)
    target = (torch.rand(logits.shape, generator=generator) > 0.5).to(torch.uint8)
    logits = logits.contiguous(memory_format=layout).requires_grad_()
    assert logits.nbytes > 1 << 22
    loss = bce_dice_terms(logits, target, mode="multilabel")["loss"]
    (whole,) = torch.autograd.grad(loss, logits)
    assert (whole.dtype, whole.shape, whole.stride()) == (dtype, logits.shape, logits.stride())
    for index, found in enumerate(whole):
        image = logits.detach()[[index]].requires_grad_()
        loss = bce_dice_terms(image, target[[index]], mode="multilabel")["loss"] / len(logits)
        (own,) = torch.autograd.grad(loss, image)
        torch.testing.assert_close(
            found, own[0], rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=0
        )
