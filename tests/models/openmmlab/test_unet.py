"""MMSegmentation's U-Net with its FCN head: our own, over the plain encoder."""

import pytest
import torch

import transferseg as ts
from tests.references.compare import difference, load
from tests.references.names import FCN, UNET
from transferseg.errors import SpecError
from transferseg.transfer.openmmlab import skips_last

OPTIONS = {"upsampling": "bilinear", "num_convs": 1, "dropout": 0.1}
NARROW = {"arguments": {"width": 8}}
SKIPS = {r"^decoder\.blocks\.\d\.conv1\.0\.": skips_last}


def test_unet_equals_mmsegmentations():
    name, names = "tiny_unet_s5_d16_fcn", UNET | FCN
    options = {**OPTIONS, "auxiliary": False}  # theirs reads a map of the decoder
    model, reference = load(name, "unet", "plain", names, NARROW, SKIPS, **options)
    assert difference(model, reference) < 1e-5
    assert model.head.kernel_size == (1, 1)


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("plain", {**OPTIONS, "encoder_options": NARROW}),
        ("resnet10t", {**OPTIONS, "channels": [16, 16, 8, 8, 8]}),
    ],
)
def test_bilinear_upsampling_over_any_encoder(encoder, options):
    model = ts.create_model("unet", encoder, classes=2, **options)
    logits = model(torch.randn(2, 3, 37, 50))
    assert logits.shape == (2, 2, 37, 50)
    logits.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    autoencoder = ts.create_autoencoder(encoder, **options).eval()
    parts = ("encoder", "decoder")
    ts.transfer_weights(autoencoder, model.eval(), parts=parts)
    image = torch.randn(1, 3, 37, 50)
    with torch.no_grad():
        wanted = autoencoder.decoder(autoencoder.encoder(image), (37, 50))
        given = model.decoder(model.encoder(image), (37, 50))
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"num_convs": -1}, {"dropout": 1.0}])
def test_wrong_options(options):
    with pytest.raises(SpecError, match="num_convs, a whole number from 0, and a dropout"):
        ts.create_model("unet", "plain", classes=2, **options)
