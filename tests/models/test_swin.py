"""Swin and Swin V2 at any size; the oracle is timm's own model, built for the size."""

import re

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

import tests.models.tiny_timm  # noqa: F401 - registers its models
import transferseg as ts
from tests.models.randomise import randomise
from transferseg.models import Encoder, encoder_capabilities

# grids of 4 pixels: exact windows; a longer side; sides that pad; one side as small as the window
LARGER = [(96, 96), (192, 128), (128, 160), (96, 176)]
# maps smaller than the window of 3, along both sides or one
SMALLER = [(32, 32), (64, 96), (32, 160)]


def timms(encoder, name, size):
    """timm's model for this size with the encoder's weights, tables cut to smaller windows."""
    theirs = timm.create_model(name, img_size=size, num_classes=0).eval()
    state = dict(encoder.model.state_dict())
    for key, value in theirs.state_dict().items():
        if key.endswith("relative_position_bias_table"):
            height, width = theirs.get_submodule(key.rpartition(".")[0]).window_size
            table = state[key].view(5, 5, -1)
            rows, columns = slice(3 - height, 2 + height), slice(3 - width, 2 + width)
            state[key] = table[rows, columns].reshape(value.shape)
        elif key.startswith("norm."):
            state[key] = value
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("name", ["tiny_swin", "tiny_swinv2"])
@pytest.mark.parametrize("size", [*LARGER, *SMALLER])
def test_features_equal_timms_model_built_for_the_size(name, size):
    encoder = randomise(Encoder(name))
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = timms(encoder, name, size).forward_intermediates(image, intermediates_only=True)
        given = encoder(image)
    for ours, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_shift_of_a_map_larger_than_the_window_is_not_dropped():
    encoder = randomise(Encoder("tiny_swin"))
    last = encoder.model.layers[3].blocks[1]
    x = torch.randn(1, 6, 6, 128, generator=torch.Generator().manual_seed(0))
    shifted, last.shift = last(x), (0, 0)
    assert not torch.allclose(shifted, last(x), atol=1e-3)


def test_padding_of_a_small_map_has_no_say():
    """The two columns beyond a map of one column would otherwise take part in the softmax."""
    block = randomise(Encoder("tiny_swin")).model.layers[0].blocks[0]
    x = torch.randn(1, 3, 1, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = block.norm1(x).view(1, 3, 16)
        query, key, value = block.attn.qkv(tokens).view(3, 3, 16).unbind(1)
        position = torch.arange(3)
        table = block.attn.relative_position_bias_table.view(5, 5)[:, 2]
        logits = query @ key.T / 4 + table[position[:, None] - position + 2]
        attended = block.attn.proj(logits.softmax(-1) @ value).view(x.shape)
        wanted = x + attended
        wanted = wanted + block.mlp(block.norm2(wanted))
        torch.testing.assert_close(block(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_swin", "tiny_swinv2"])
def test_the_weights_are_timms_and_no_forward_changes_them(name):
    encoder = Encoder(name).eval()
    whole = timm.create_model(name).state_dict()
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    assert {key: value.shape for key, value in before.items()} == {
        key: value.shape for key, value in whole.items() if key not in encoder.pruned
    }
    assert set(encoder.pruned) == {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}
    for size in ((160, 96), (32, 45)):
        encoder(torch.randn(1, 3, *size))
    after = encoder.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_odd_sizes_are_padded_to_the_patch_alone():
    assert encoder_capabilities("tiny_swin").multiple == 4
    encoder = Encoder("tiny_swin").eval()
    sizes = [tuple(f.shape[-2:]) for f in encoder(torch.randn(1, 3, 97, 131))]
    assert sizes == [(25, 33), (13, 17), (7, 9), (4, 5)]


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "swin_s3_base_224", "swinv2_tiny_window16_256",
             "swinv2_large_window12to24_192to384"]
)  # fmt: skip
def test_published_sizes_are_known_without_their_weights(name):
    found = encoder_capabilities(name)
    assert (found.strides, found.output_strides, found.multiple) == ((4, 8, 16, 32), (32,), 4)
    with torch.device("meta"):
        theirs = timm.create_model(name, features_only=True).feature_info
    assert found.channels == tuple(theirs.channels())


def test_unet_equals_smp():
    theirs = randomise(smp.Unet("tu-tiny_swin", encoder_weights=None, classes=2))
    ours = ts.create_model("unet", "tiny_swin", classes=2).eval()
    state = {
        re.sub(r"layers_(\d)", r"layers.\1", key).replace("segmentation_head.0.", "head."): value
        for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(state)
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-5, atol=1e-5)


def test_a_whole_timm_checkpoint_fills_the_encoder(tmp_path):
    whole = timm.create_model("tiny_swinv2", num_classes=7).state_dict()
    torch.save(whole, tmp_path / "swin.pth")
    model = ts.create_model("unet", "tiny_swinv2", classes=2, weights=tmp_path / "swin.pth")
    for key, value in model.encoder.model.state_dict().items():
        assert torch.equal(value, whole[key])
