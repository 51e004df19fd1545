"""Attention gates: the published formula, and the hand-off from a U-Net that keeps its function."""

import math

import numpy as np
import pytest
import torch

import transferseg as ts
from tests.models.brain_unet import RENAME, BrainUNet
from tests.models.randomise import randomise
from transferseg.errors import SpecError
from transferseg.models.decoders.attention_unet import AttentionGate

PARTS = ("encoder", "decoder", "head")
OPEN = 1 / (1 + math.exp(-2))
CHANNELS = {
    "resnet10t": [16, 16, 8, 8, 8],
    "vgg11": [16, 16, 8, 8, 8],
    "plain": [16, 16, 8, 8],
}


def model(architecture, encoder="resnet10t", seed=0, **options):
    options = {"classes": ["a", "b"], "in_channels": 1, "channels": CHANNELS[encoder], **options}
    return randomise(ts.create_model(architecture, encoder, **options), seed=seed)


def handed_over(encoder="resnet10t"):
    source, target = model("unet", encoder), model("attention_unet", encoder, seed=1)
    return source, target, ts.transfer_weights(source, target, parts=PARTS)


def assert_same(ours, theirs, limit=1e-5):
    """To rounding, which grows with the values: relative to the largest."""
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < limit


def bilinear(image, height, width):
    """Samples at pixel centres, the border repeated; (C, H, W) -> (C, height, width)."""
    for axis, wanted in ((1, height), (2, width)):
        given = image.shape[axis]
        at = ((np.arange(wanted) + 0.5) * given / wanted - 0.5).clip(0, given - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, given - 1)
        part = (at - low).reshape([-1 if k == axis else 1 for k in range(3)])
        image = image.take(low, axis) * (1 - part) + image.take(high, axis) * part
    return image


@pytest.mark.parametrize("size", [(4, 6), (7, 10), (5, 3)])
def test_the_gate_is_the_papers_formula(size):
    gate = randomise(AttentionGate(4, 3)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, *size, dtype=torch.float64, generator=generator)
    coarse = (math.ceil(size[0] / 2), math.ceil(size[1] / 2))
    g = torch.randn(1, 3, *coarse, dtype=torch.float64, generator=generator)
    w_x, w_g, b_g = (v.detach().numpy() for v in (gate.w_x.weight, gate.w_g.weight, gate.w_g.bias))
    psi, b_psi = gate.psi.weight.detach().numpy()[0, :, 0, 0], gate.psi.bias.item()
    rows, columns = size[0] // 2, size[1] // 2
    tiles = x[0, :, : 2 * rows, : 2 * columns].numpy().reshape(4, rows, 2, columns, 2)
    skip = np.einsum("oiab,iyaxb->oyx", w_x, tiles)
    gating = np.einsum("oi,iyx->oyx", w_g[..., 0, 0], g[0].numpy()) + b_g[:, None, None]
    q = np.einsum("o,oyx->yx", psi, np.maximum(skip + bilinear(gating, rows, columns), 0)) + b_psi
    alpha = bilinear(1 / (1 + np.exp(-q))[None], *size)
    np.testing.assert_allclose(gate.coefficients(x, g)[0].detach().numpy(), alpha, rtol=1e-9)
    np.testing.assert_allclose(gate(x, g)[0].detach().numpy(), alpha * x[0].numpy(), rtol=1e-9)


def test_every_skip_has_a_gate_steered_from_one_block_below():
    decoder = model("attention_unet", "vgg11").decoder
    assert list(decoder.gates) == ["16", "8", "4", "2", "1"]
    assert [g.w_g.in_channels for g in decoder.gates.values()] == [512, 16, 16, 8, 8]
    assert [g.w_x.in_channels for g in decoder.gates.values()] == [512, 512, 256, 128, 64]
    assert list(model("attention_unet").decoder.gates) == ["16", "8", "4", "2"]


@pytest.mark.parametrize("encoder", sorted(CHANNELS))
def test_a_unet_hands_over_its_function(encoder):
    source, target, report = handed_over(encoder)
    for size in ((64, 64), (61, 83)):
        image = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            assert_same(target(image), source(image))
    loaded = sum(value.numel() for value in source.decoder.state_dict().values())
    assert report.coverage["decoder"].loaded_values == loaded
    gates = [key for key in target.state_dict() if ".gates." in key]
    assert sorted(report.plan.left) == sorted(gates)
    assert "gates at their function-preserving start (channels in twins" in report.to_text()
    skips = len(target.decoder.gates)
    assert f"adapted {skips} by gated_skip_slice" in report.to_text()


@pytest.mark.parametrize("encoder", sorted(CHANNELS))
def test_in_training_mode_too_the_function_is_kept(encoder):
    source, target, _ = handed_over(encoder)
    image = torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert_same(target.train()(image), source.train()(image), 1e-6)
        assert_same(target.eval()(image), source.eval()(image), 1e-6)


@pytest.mark.parametrize("encoder", sorted(CHANNELS))
def test_all_of_every_gate_learns_from_the_first_step_and_its_twins_part(encoder):
    _, target, _ = handed_over(encoder)
    ordinary = model("attention_unet", encoder, seed=1)
    image = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    for one in (target, ordinary):
        one.train()(image).square().mean().backward()
    for gate, usual in zip(
        target.decoder.gates.values(), ordinary.decoder.gates.values(), strict=True
    ):
        assert torch.equal(gate.w_x.weight[::2], gate.w_x.weight[1::2])
        for parameter, other in zip(gate.parameters(), usual.parameters(), strict=True):
            assert parameter.grad.norm() > 1e-3 * other.grad.norm() > 0
        # the twins' gradients are one another's opposites: a step takes them apart
        for parameter in (gate.w_x.weight, gate.w_g.weight, gate.w_g.bias):
            first, second = parameter.grad[::2], parameter.grad[1::2]
            torch.testing.assert_close(first, -second, rtol=1e-3, atol=1e-5 * float(first.norm()))
    torch.optim.SGD(target.parameters(), lr=0.01).step()
    for gate in target.decoder.gates.values():
        assert not torch.equal(gate.w_x.weight[::2], gate.w_x.weight[1::2])


@pytest.mark.parametrize("skip", [1, 2, 3, 6, 7, 64])
def test_a_gate_of_any_width_begins_open_and_learns(skip):
    """Of an odd number of channels three make a group, no two of them alike in training."""
    gate = randomise(AttentionGate(skip, 5))
    gate.open()
    generator = torch.Generator().manual_seed(1)
    x, g = (torch.randn(2, c, s, s, generator=generator) for c, s in ((skip, 14), (5, 7)))
    passed = gate(x, g)
    torch.testing.assert_close(passed, OPEN * x, rtol=1e-6, atol=0)
    (passed * torch.randn(passed.shape, generator=generator)).sum().backward()
    rows = gate.w_x.weight.grad.flatten(1)
    assert all(row.norm() > 1e-3 for row in rows)
    assert len({tuple(row) for row in rows.tolist()}) == len(rows) == max(skip // 2, 2)


@pytest.mark.parametrize("encoder", sorted(CHANNELS))
def test_an_autoencoder_hands_over_its_decoder(encoder):
    options = {"in_channels": 1, "channels": CHANNELS[encoder]}
    source = randomise(ts.create_autoencoder(encoder, **options))
    target = model("attention_unet", encoder, seed=1)
    report = ts.transfer_weights(source, target, parts=("encoder", "decoder"))
    image = torch.randn(2, 1, 61, 83, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = source.decoder(source.encoder(image), (61, 83))
        ours = target.decoder(target.encoder(image), (61, 83))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    skips = len(target.decoder.gates)
    assert f"adapted {skips} by zero_skip_slice" in report.to_text()
    target.train()(image).square().mean().backward()
    for index in range(skips):
        slices = target.decoder.blocks[index].conv1[0].weight.grad
        assert slices[:, target.decoder.in_channels[index] :].abs().max() > 0


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_the_brain_mri_network_hands_over_its_function(dtype, limit):
    theirs = randomise(BrainUNet().to(dtype))
    ours = ts.create_model("attention_unet", "plain", classes=["polyp"])
    ours = randomise(ours.to(dtype), seed=1)
    ts.transfer_weights(theirs, ours, parts=PARTS, rename=RENAME)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.no_grad():
        assert_same(ours(image), theirs(image), limit)


def test_an_attention_unet_hands_over_its_gates_as_they_are():
    source, target = model("attention_unet"), model("attention_unet", seed=1)
    report = ts.transfer_weights(source, target, parts=PARTS)
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])
    assert not report.plan.left
    assert "gated_skip_slice" not in report.to_text()


def test_a_new_attention_unet_begins_open_however_large_the_encoders_values_are():
    torch.manual_seed(0)
    new = ts.create_model("attention_unet", "resnet10t", classes=2).eval()
    image = 1e3 * torch.randn(1, 3, 61, 83, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert all(torch.allclose(m, torch.tensor(OPEN)) for m in new.attention_maps(image))
    assert all(parameter.requires_grad for parameter in new.decoder.gates.parameters())
    for gate in new.decoder.gates.values():  # twins, no two pairs of them alike
        assert len({tuple(row) for row in gate.w_x.weight[::2].flatten(1).tolist()}) > 1


def test_attention_maps_are_what_multiplies_the_skips():
    _, target, _ = handed_over("vgg11")
    image = torch.randn(2, 1, 61, 83, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        maps = target.attention_maps(image)
        assert [tuple(m.shape) for m in maps] == [
            (2, 1, 61 // stride, 83 // stride) for stride in (1, 2, 4, 8, 16)
        ]
        assert all(torch.allclose(m, torch.tensor(OPEN)) for m in maps)
        randomise(target.decoder.gates)
        maps = target.attention_maps(image)
        assert all(m.min() >= 0 and m.max() <= 1 and m.std() > 0.01 for m in maps)
        gate, skip = target.decoder.gates["1"], target.encoder(image)[0]
        seen = []
        gate.register_forward_hook(lambda module, given, passed: seen.append(passed))
        target(image)
        torch.testing.assert_close(seen[0], maps[0] * skip)


def test_a_closed_gate_shuts_its_skip_out():
    source, target, _ = handed_over()
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for gate in target.decoder.gates.values():
            gate.psi.bias.fill_(-100)
        for block, main in zip(source.decoder.blocks, source.decoder.in_channels, strict=True):
            block.conv1[0].weight[:, main:] = 0
        assert_same(target(image), source(image))


def test_other_architectures_have_no_attention_maps():
    with pytest.raises(SpecError, match="'unet' has no attention gates; 'attention_unet' has"):
        model("unet").attention_maps(torch.randn(1, 1, 64, 64))
