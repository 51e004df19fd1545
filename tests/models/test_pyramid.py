"""The pyramids of plain ViTs against NumPy, at patches of 8, 14, 16 and 32."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from scipy.special import erf

from tests.models.randomise import randomise
from transferseg.models.pyramid import PYRAMIDS, MultiLevelPyramid, SimplePyramid


def maps(count, shape=(2, 8, 5, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def pointwise(x, weight, bias=None):
    y = np.einsum("bchw,oc->bohw", x, weight[:, :, 0, 0])
    return y if bias is None else y + bias[None, :, None, None]


def conv3x3(x, weight, bias=None):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.stack([[correlate(image, kernel, "valid")[0] for kernel in weight] for image in padded])
    return y if bias is None else y + bias[None, :, None, None]


def bilinear(x, axis, scale):
    """Half-pixel centres, the border's value beyond it."""
    size = x.shape[axis]
    position = np.clip((np.arange(int(size * scale)) + 0.5) / scale - 0.5, 0, size - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, size - 1)
    share = (position - low).reshape([-1 if a == axis else 1 for a in range(4)])
    return x.take(low, axis) * (1 - share) + x.take(high, axis) * share


def layer_norm(x, weight, bias):
    centred = x - x.mean(1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6)
    return scaled * weight[None, :, None, None] + bias[None, :, None, None]


def doubled(x, weight, bias):
    """A transposed convolution of kernel 2 and stride 2."""
    batch, _, height, width = x.shape
    y = np.einsum("bchw,coij->bohiwj", x, weight).reshape(batch, -1, 2 * height, 2 * width)
    return y + bias[None, :, None, None]


@pytest.mark.parametrize("count", [1, 4])
def test_multilevel_is_lateral_resize_convolution(count):
    pyramid = randomise(MultiLevelPyramid(8, 6, maps=count, patch=16)).double()
    given = maps(count)
    state = {key: value.numpy() for key, value in pyramid.state_dict().items()}
    with torch.no_grad():
        levels = pyramid(given)
    for index, (level, scale) in enumerate(zip(levels, (4, 2, 1, 0.5), strict=True)):
        which = index if count == 4 else 0
        lateral = [state[f"lateral_convs.{which}.{part}"] for part in ("weight", "bias")]
        x = pointwise(given[which].numpy(), *lateral)
        x = bilinear(bilinear(x, 2, scale), 3, scale)
        wanted = conv3x3(x, *(state[f"convs.{index}.{part}"] for part in ("weight", "bias")))
        np.testing.assert_allclose(level.numpy(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("count", [1, 4])
def test_simple_is_vitdets(count):
    pyramid = randomise(SimplePyramid(8, 6, maps=count, patch=16)).double()
    given = maps(count)
    with torch.no_grad():
        levels = pyramid(given)
    for index, level in enumerate(levels):
        x = given[index if count == 4 else 0].numpy()
        state = [value.numpy() for value in pyramid.levels[index].state_dict().values()]
        if index == 0:
            x = layer_norm(doubled(x, *state[:2]), *state[2:4])
            x = x * 0.5 * (1 + erf(x / np.sqrt(2)))
            x = doubled(x, *state[4:6])
        elif index == 1:
            x = doubled(x, *state[:2])
        elif index == 3:
            x = x[:, :, :4, :6].reshape(2, 8, 2, 2, 3, 2).max((3, 5))
        reduce, *first, convolve, scale, shift = state[-6:]
        x = layer_norm(pointwise(x, reduce), *first)
        x = layer_norm(conv3x3(x, convolve), scale, shift)
        np.testing.assert_allclose(level.numpy(), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(PYRAMIDS))
@pytest.mark.parametrize(("patch", "sizes"), [(8, (16, 8, 4, 2)), (32, (64, 32, 16, 8))])
def test_other_patches_reach_the_same_strides(name, patch, sizes):
    pyramid = PYRAMIDS[name](16, 4, maps=1, patch=patch)
    assert [level.shape[-1] for level in pyramid([torch.randn(1, 16, 8, 8)])] == list(sizes)


def test_patches_of_14_are_resampled_to_where_stride_16_would_see():
    """Tokens that hold the position of their centre still do, in steps of 16 pixels."""
    pyramid = SimplePyramid(4, 4, maps=1, patch=14)
    centres = (torch.arange(37) + 0.5) * 14
    row = pyramid._resampled(centres.expand(1, 1, 37, 37))[0, 0, 0]
    assert len(row) == 33  # 37 * 14 / 16 is 32.4: the last cell is kept
    torch.testing.assert_close(row[:32], (torch.arange(32) + 0.5) * 16)


@pytest.mark.parametrize("name", sorted(PYRAMIDS))
@pytest.mark.parametrize("count", [1, 4])
def test_only_for_names_what_no_other_level_needs(name, count):
    pyramid = PYRAMIDS[name](8, 4, maps=count, patch=16)
    every = {id(p) for p in pyramid.parameters()}
    shared = 2 if (name, count) == ("multilevel", 1) else 0  # the one lateral's weight and bias
    found = [{id(p) for m in pyramid.only_for(i) for p in m.parameters()} for i in range(4)]
    assert sum(map(len, found)) == len(set().union(*found)) == len(every) - shared
    levels = pyramid([torch.randn(1, 8, 4, 4)] * count)
    for index, level in enumerate(levels):
        pyramid.zero_grad()
        level.sum().backward(retain_graph=True)
        reached = {id(p) for p in pyramid.parameters() if p.grad is not None}
        assert found[index] <= reached
        assert not any(reached & other for i, other in enumerate(found) if i != index)
