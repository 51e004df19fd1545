"""The U-Net of 2015: equal to the published brain-MRI network, and usable as any other encoder."""

import numpy as np
import pytest
import torch

import transferseg as ts
from tests.models.brain_unet import RENAME, BrainUNet
from tests.models.randomise import randomise
from transferseg.errors import SpecError
from transferseg.models import Encoder
from transferseg.models.decoders.deeplabv3 import DeepLabV3Decoder
from transferseg.models.decoders.unet import UNetDecoder, _fit

PARTS = ("encoder", "decoder", "head")


def plain(architecture="unet", encoder="plain", **options):
    return ts.create_model(architecture, encoder, **{"classes": ["lesion"], **options})


def test_unet_over_plain_equals_the_brain_mri_network():
    theirs = randomise(BrainUNet())
    ours = plain().eval()
    report = ts.transfer_weights(theirs, ours, parts=PARTS, rename=RENAME)
    report.raise_if_below(encoder=1.0, decoder=1.0, head=1.0)
    assert {"encoder1.enc1conv1.weight", "upconv4.bias", "decoder4.dec4norm2.running_var"} <= {
        move.source for move in report.plan.moves
    }
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-5, atol=1e-5)


def test_the_widths_and_the_alias():
    shapes = {k: v.shape for k, v in plain(encoder="plain").state_dict().items()}
    assert shapes == {k: v.shape for k, v in plain(encoder="plain_32").state_dict().items()}
    wide = plain(encoder="plain_64")
    assert wide.encoder.channels == (64, 128, 256, 512, 1024)
    assert [up.out_channels for up in wide.decoder.ups] == [512, 256, 128, 64]
    assert wide.head.kernel_size == (1, 1)


@pytest.mark.parametrize("architecture", ["unet", "attention_unet", "deeplabv3"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 41)])
def test_logits_have_the_size_of_the_image_and_every_parameter_a_gradient(architecture, size):
    model = plain(architecture, classes=3, in_channels=1)
    logits = model(torch.randn(2, 1, *size))
    assert logits.shape == (2, 3, *size)
    logits.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_poolings_round_up_so_that_the_border_is_seen():
    encoder = randomise(Encoder("plain", in_channels=1))
    image = torch.zeros(1, 1, 33, 33)
    before = encoder(image)[-1]
    assert before.shape[-2:] == (3, 3)
    image[..., 32, 32] = 5.0
    assert not torch.allclose(encoder(image)[-1], before)


def test_plain_encoders_are_listed_and_say_what_they_can():
    assert ts.list_encoders("plain*") == ["plain", "plain_32", "plain_64"]
    assert "plain" in ts.list_encoders()
    capabilities = ts.encoder_capabilities("plain")
    assert (capabilities.strides, capabilities.output_strides) == ((1, 2, 4, 8, 16), (16,))
    encoder = Encoder("plain_64", in_channels=2)
    features = encoder(torch.randn(1, 2, 64, 96))
    assert [f.shape[1] for f in features] == list(encoder.channels)
    assert [96 // f.shape[-1] for f in features] == list(encoder.strides)
    assert encoder.get_parameter(encoder.stem_keys()[0]).shape[1] == 2
    with pytest.raises(SpecError, match=r"output stride 8 \(plain encoders are not dilated\).*16"):
        Encoder("plain", output_stride=8)
    with pytest.raises(SpecError, match=r"works on output strides \[32, 16\], got 8"):
        plain(output_stride=8)
    with pytest.raises(SpecError, match="no weights of encoder 'plain' to download"):
        plain(weights="default")
    with pytest.raises(SpecError, match=r"Did you mean .*'plain_32'"):
        plain(encoder="plain32")
    assert plain(in_channels=4).spec.input == ts.InputSpec(4, mean=(0.5,) * 4, std=(0.5,) * 4)


def test_a_stride_that_encoder_and_architecture_do_not_share(monkeypatch):
    monkeypatch.setattr(DeepLabV3Decoder, "output_strides", (32,))
    with pytest.raises(SpecError, match=r"output strides \[32\], but encoder 'plain' gives \[16\]"):
        plain("deeplabv3")


def test_saved_and_loaded_models_are_equal(tmp_path):
    model = randomise(plain(in_channels=1))
    model.save_pretrained(tmp_path)
    image = torch.randn(1, 1, 40, 56)
    assert torch.equal(ts.Segmenter.from_pretrained(tmp_path)(image), model(image))


def test_classifier_and_autoencoder_hand_over_to_the_unet():
    classifier = randomise(ts.create_classifier("plain", classes=3, in_channels=1))
    autoencoder = randomise(ts.create_autoencoder("plain", in_channels=1), seed=1)
    unet = randomise(plain(in_channels=1), seed=2)
    image = torch.randn(2, 1, 45, 70)
    ts.transfer_weights(classifier, unet).raise_if_below(encoder=1.0)
    assert torch.equal(unet.encoder(image)[-1], classifier.encoder(image)[-1])
    ts.transfer_weights(autoencoder, unet, parts=("encoder", "decoder"))
    assert autoencoder(image).shape == image.shape
    with torch.no_grad():
        theirs = autoencoder.decoder(autoencoder.encoder(image), (45, 70))
        ours = unet.decoder(unet.encoder(image), (45, 70))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_transposed_convolutions_that_repeat_their_input_equal_nearest():
    widths, strides = [8] * 5, [2, 4, 8, 16, 32]
    nearest = randomise(UNetDecoder(widths, strides, channels=widths))
    transposed = UNetDecoder(widths, strides, channels=widths, upsampling="transposed").eval()
    repeat = torch.eye(8)[..., None, None].expand(8, 8, 2, 2)
    ups = {f"ups.{k}.weight": repeat for k in range(5)}
    ups |= {f"ups.{k}.bias": torch.zeros(8) for k in range(5)}
    transposed.load_state_dict({**nearest.state_dict(), **ups})
    features = [torch.randn(1, 8, 64 // s, 96 // s) for s in strides]
    torch.testing.assert_close(transposed(features, (64, 96)), nearest(features, (64, 96)))


@pytest.mark.parametrize("size", [(2, 3), (3, 4), (4, 4), (3, 6), (5, 3)])
def test_what_comes_up_is_cut_or_goes_on_as_at_the_border(size):
    x = np.arange(24.0).reshape(1, 2, 3, 4)
    longer = np.pad(x, ((0, 0), (0, 0), (0, 2), (0, 2)), mode="edge")
    wanted = torch.tensor(longer[..., : size[0], : size[1]])
    assert torch.equal(_fit(torch.tensor(x), *size), wanted)


@pytest.mark.parametrize("encoder", ["resnet10t", "vgg11"])
def test_transposed_convolutions_over_other_encoders_take_odd_sizes(encoder):
    options = {"channels": [16, 16, 8, 8, 8], "upsampling": "transposed"}
    model = ts.create_model("unet", encoder, classes=2, in_channels=1, **options).eval()
    assert model(torch.randn(1, 1, 33, 47)).shape == (1, 2, 33, 47)
    autoencoder = ts.create_autoencoder(encoder, in_channels=1, **options)
    report = ts.transfer_weights(autoencoder, model, parts=("encoder", "decoder"))
    assert report.coverage["decoder"].loaded_tensors == report.coverage["decoder"].tensors
    with pytest.raises(SpecError, match="Did you mean 'transposed'"):
        ts.create_model("unet", encoder, classes=2, upsampling="transpose")


def test_unet_over_an_encoder_dilated_to_stride_16():
    model = ts.create_model("unet", "resnet10t", classes=2, output_stride=16).eval()
    assert [block.conv2[0].out_channels for block in model.decoder.blocks] == [128, 64, 32, 16]
    assert (model.decoder.skip_strides, model.head.kernel_size) == ([8, 4, 2], (3, 3))
    assert model(torch.randn(1, 3, 33, 47)).shape == (1, 2, 33, 47)
