import pytest
import torch

import transferseg as ts
from tests.references.compare import difference, load
from transferseg.errors import SpecError
from transferseg.models.decoders.upernet import UPerNetDecoder

NAMES = {
    r"^decode_head\.psp_modules\.": "decoder.pooling.pools.",
    r"^decode_head\.bottleneck\.": "decoder.pooling.bottleneck.",
    r"^decode_head\.lateral_convs\.": "decoder.laterals.",
    r"^decode_head\.fpn_convs\.": "decoder.convs.",
    r"^decode_head\.fpn_bottleneck\.": "decoder.bottleneck.",
}


def test_upernet_equals_mmsegmentations():
    model, reference = load("tiny_upernet_r18", "upernet", "resnet18", NAMES, channels=12)
    assert difference(model, reference) < 1e-5


@pytest.mark.parametrize("encoder", ["resnet10t", "vgg11", "test_convnext", "hrnet_w18_small"])
def test_the_four_deepest_maps_are_read(encoder):
    model = ts.create_model("upernet", encoder, classes=2, channels=8)
    decoder = model.decoder
    read = [lateral.conv.in_channels for lateral in decoder.laterals]
    assert (*read, decoder.pooling.pools[0][1].conv.in_channels) == model.encoder.channels[-4:]
    features = model.encoder(torch.randn(2, 3, 64, 96))
    assert decoder(features, (64, 96)).shape == (2, 8, 16, 24)


def test_over_a_dilated_encoder_the_deep_maps_keep_their_size():
    model = ts.create_model("upernet", "resnet10t", classes=2, channels=8, output_stride=8).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 50, 70)).shape == (1, 2, 50, 70)


def test_an_encoder_of_three_maps_is_refused():
    with pytest.raises(SpecError, match=r"reads 4 feature maps.* has 3, at strides \[8, 16, 32\]"):
        UPerNetDecoder((8, 16, 32), (8, 16, 32))
