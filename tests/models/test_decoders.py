"""What the decoders have in common beside the contract of every architecture."""

import pytest
import torch

import transferseg as ts
from transferseg.errors import SpecError
from transferseg.models import DECODERS
from transferseg.models.decoders import check_options
from transferseg.models.decoders.blocks import joined

HEADS = ["fcn", "psp", "deeplabv3", "deeplabv3plus", "upernet"]


@pytest.mark.parametrize(
    ("architecture", "options", "read"),
    [
        ("fcn", {}, [4]),
        ("fcn", {"maps": 2}, [3, 4]),
        ("psp", {}, [4]),
        ("deeplabv3", {}, [4]),
        ("deeplabv3", {"maps": 3}, [2, 3, 4]),
        ("deeplabv3plus", {}, [1, 4]),
        ("deeplabv3plus", {"maps": 2}, [1, 3, 4]),
        ("upernet", {}, [1, 2, 3, 4]),
        ("psp_smp", {}, [4]),
        ("psp_smp", {"stride": 8}, [2]),
        ("upernet_smp", {}, [1, 2, 3, 4]),
    ],
)
def test_a_decoder_says_which_maps_it_reads(architecture, options, read):
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(2, 4 * 2**i, 32 // 2**i, 48 // 2**i, generator=generator).requires_grad_()
        for i in range(5)
    ]
    decoder = DECODERS[architecture](
        [f.shape[1] for f in features], (2, 4, 8, 16, 32), channels=8, **options
    )
    decoder(features, (64, 96)).square().sum().backward()
    assert [i for i, f in enumerate(features) if f.grad is not None] == read
    assert sorted(index % 5 for index in decoder.reads) == read


def test_joined_maps_lie_over_one_another():
    """Two maps of one linear picture: where the resizing need not guess, they agree."""
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    half = (ramp[..., ::2, ::2] + ramp[..., 1::2, 1::2]) / 2
    both = joined([ramp, half], align_corners=False)
    assert both.shape == (1, 2, 32, 32)
    assert torch.equal(both[:, :1], ramp)
    torch.testing.assert_close(both[:, 1:, :, 1:-1], ramp[..., 1:-1])


@pytest.mark.parametrize("architecture", HEADS)
def test_over_hrnet_all_branches_are_read_and_no_parameter_is_dead(architecture):
    model = ts.create_model(architecture, "hrnet_w18_small", classes=2, channels=16)
    assert model.decoder.reads[-4:] == (-4, -3, -2, -1)
    features = model.encoder(torch.randn(2, 3, 64, 64))
    assert model.decoder(features, (64, 64)).shape == (2, 16, 16, 16)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("architecture", ["fcn", "psp", "upernet", "deeplabv3plus"])
def test_whole_channels_are_dropped_in_training_alone(architecture):
    torch.manual_seed(0)
    model = ts.create_model(architecture, "resnet10t", classes=2, channels=64, dropout=0.5)
    image = torch.randn(2, 3, 64, 64)
    dropped = []
    for mode in (True, False):
        model.train(mode)
        features = model.decoder(model.encoder(image), (64, 64))
        dropped.append(float((features == 0).all(dim=(2, 3)).float().mean()))
    assert 0.3 < dropped[0] < 0.7
    assert dropped[1] < 0.1


@pytest.mark.parametrize("architecture", HEADS)
@pytest.mark.parametrize("options", [{"channels": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_values_out_of_range(architecture, options):
    with pytest.raises(SpecError, match=rf"{architecture} needs channels from 1, a dropout from 0"):
        ts.create_model(architecture, "resnet10t", classes=2, **options)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("unet", {"channels": 256}, "channels must be 5 whole numbers from 1, .* got 256"),
        ("unet", {"channels": [8, 8, 8, 8, 1.5]}, "got .8, 8, 8, 8, 1.5"),
        ("unet", {"num_convs": 1.5}, "num_convs=1.5"),
        ("unet", {"dropout": "a"}, "dropout='a'"),
        ("unet", {"upsampling": 3}, "unknown upsampling 3"),
        ("unet", {"skips": "no"}, "skips of 'unet' must be true or false, got 'no'"),
        ("unet", {"attention": ["scse"]}, "unknown attention of 'unet'"),
        ("unet", {"stride": 12}, r"no map has stride 12 .* \[2, 4, 8, 16, 32\]"),
        ("unet", {"stride": 8, "channels": [8] * 5}, r"channels must be 3 whole numbers from 1"),
        ("fcn", {"channels": [256]}, r"got channels=\[256\]"),
        ("fcn", {"channels": 8.5}, "got channels=8.5"),
        ("fcn", {"maps": "1"}, "maps='1'"),
        ("fcn", {"num_convs": 1.5}, "num_convs=1.5"),
        ("fcn", {"kernel_size": 3.0}, "kernel_size=3.0"),
        ("psp", {"pools": 6}, "a list of whole numbers; got 6"),
        ("upernet", {"pools": [1.5]}, r"a list of whole numbers; got \[1.5\]"),
        ("deeplabv3", {"rates": 12}, "three rates from 1, a list of whole numbers; got 12"),
        ("deeplabv3", {"layout": ["projection"]}, "Did you mean 'projection'"),
        ("deeplabv3plus", {"low_channels": 1.5}, "whole numbers; got low_channels=1.5"),
    ],
)
def test_values_of_another_type(architecture, options, message):
    def build():
        check_options(architecture, options)
        DECODERS[architecture]((8, 8, 8, 8, 8), (2, 4, 8, 16, 32), **options)

    with pytest.raises(SpecError, match=message):
        build()
