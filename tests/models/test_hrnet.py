"""HRNet: its raw branches, none of its parameters dead."""

import timm
import torch

import tests.models.tiny_timm  # noqa: F401 - registers its models
import transferseg as ts
from tests.models.randomise import randomise
from transferseg.models import Encoder, encoder_capabilities


def without_gradient(model):
    return [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_the_maps_are_the_branches_of_timms_network():
    encoder = randomise(Encoder("tiny_hrnet"))
    theirs = timm.create_model(
        "tiny_hrnet", features_only=True, feature_location="", out_indices=(1, 2, 3, 4)
    )
    theirs.load_state_dict(encoder.model.state_dict())
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for ours, wanted in zip(encoder(image), theirs.eval()(image), strict=True):
            assert torch.equal(ours, wanted)
    assert (encoder.channels, encoder.strides) == ((4, 8, 16, 32), (4, 8, 16, 32))


def test_published_widths():
    found = encoder_capabilities("hrnet_w18")
    assert (found.channels, found.strides) == ((18, 36, 72, 144), (4, 8, 16, 32))
    assert (found.multiple, found.parallel, found.output_strides) == (32, True, (32,))


def test_odd_sizes_are_padded_and_the_maps_cropped():
    encoder = Encoder("tiny_hrnet").eval()
    sizes = [tuple(f.shape[-2:]) for f in encoder(torch.randn(1, 3, 97, 131))]
    assert sizes == [(25, 33), (13, 17), (7, 9), (4, 5)]


def test_a_classifier_pools_every_branch():
    model = randomise(ts.create_classifier("tiny_hrnet", classes=3))
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    pooled = torch.cat([feature.mean((2, 3)) for feature in model.encoder(image)], dim=1)
    assert torch.equal(model(image), model.head(pooled))
    model.train()(image).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_autoencoder_trains_nothing_that_it_does_not_read():
    model = ts.create_autoencoder("tiny_hrnet", channels=[8] * 5)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert without_gradient(model) == []
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    prefix = "encoder.model.stage4.1.fuse_layers."
    assert {name[: len(prefix) + 1] for name in frozen} == {f"{prefix}{i}" for i in range(3)}


def test_timms_classifier_fills_the_encoder_and_its_head_is_declared():
    whole = timm.create_model("tiny_hrnet", num_classes=5)
    model = ts.create_model("unet", "tiny_hrnet", classes=2)
    report = ts.transfer_weights(whole, model)
    report.raise_if_below(encoder=1.0)
    unused = {key.split(".")[0] for key in report.plan.unused}
    assert unused == {"incre_modules", "downsamp_modules", "final_layer", "classifier"}
