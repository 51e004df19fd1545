import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader

import transferseg as ts
from tests.models.randomise import randomise
from tests.references.compare import difference, load, relative
from transferseg.errors import SpecError, TrainingError
from transferseg.training.loaders import without_lone_samples

NAMES = {
    r"^decode_head\.psp_modules\.": "decoder.pooling.pools.",
    r"^decode_head\.bottleneck\.": "decoder.pooling.bottleneck.",
}
OPTIONS = {"output_stride": 8, "dilation": "mmseg", "channels": 12}


def test_psp_equals_mmsegmentations():
    model, reference = load("tiny_psp_r18", "psp", "resnet18", NAMES, **OPTIONS)
    assert not reference["align_corners"]
    assert difference(model, reference) < 1e-5


def test_psp_for_769_crops_equals_mmsegmentations():
    name = "tiny_psp_r18_769"
    options = {**OPTIONS, "align_corners": True}
    model, reference = load(name, "psp", "resnet18", NAMES, **options)
    assert reference["align_corners"]
    assert difference(model, reference) < 1e-5
    model, reference = load(name, "psp", "resnet18", NAMES, **OPTIONS)
    assert difference(model, reference) > 1e-3


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_logits_are_resized_as_the_decoder_says(align_corners):
    model = ts.create_model("psp", "resnet10t", classes=2, channels=8, align_corners=align_corners)
    randomise(model)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        low = model.head(model.decoder(model.encoder(image), (64, 64)))
        right, wrong = (
            F.interpolate(low, size=(64, 64), mode="bilinear", align_corners=corners)
            for corners in (align_corners, not align_corners)
        )
        assert torch.equal(model(image), right)
        assert relative(model(image), wrong) > 1e-3


def test_every_grid_is_pooled_and_has_a_norm():
    model = ts.create_model("psp", "resnet10t", classes=2, pools=[1, 4])
    pools = model.decoder.pooling.pools
    assert [pool[0].output_size for pool in pools] == [1, 4]
    assert all(isinstance(pool[1].bn, torch.nn.BatchNorm2d) for pool in pools)
    assert model.decoder.pooling.bottleneck.conv.in_channels == 512 + 2 * 128


@pytest.mark.parametrize("architecture", ["psp", "upernet"])
@pytest.mark.parametrize("pools", [[], [0, 1]])
def test_pools_that_cannot_be(architecture, pools):
    with pytest.raises(SpecError, match=f"{architecture} needs at least one pool"):
        ts.create_model(architecture, "resnet10t", classes=2, pools=pools)


@pytest.mark.parametrize(
    ("architecture", "options", "norm"),
    [
        ("psp", {}, r"decoder\.pooling\.pools\.0\.1\.bn"),
        ("upernet", {}, r"decoder\.pooling\.pools\.0\.1\.bn"),
        ("deeplabv3", {"layout": "bottleneck"}, r"decoder\.aspp\.image_pool\.1\.bn"),
        ("deeplabv3plus", {}, r"decoder\.aspp\.image_pool\.1\.bn"),
    ],
)
def test_batches_of_one_are_an_error_before_the_first_step(architecture, options, norm):
    model = ts.create_model(architecture, "resnet10t", classes=2, channels=8, **options)
    loader = DataLoader([{"image": torch.randn(3, 64, 64)}] * 2, batch_size=1)
    cpu = Accelerator(cpu=True)
    with pytest.raises(TrainingError, match=norm), without_lone_samples(cpu, loader, model):
        pass


def test_fcn_trains_on_batches_of_one():
    model = ts.create_model("fcn", "resnet10t", classes=2, channels=8)
    loader = DataLoader([{"image": torch.randn(3, 64, 64)}] * 2, batch_size=1)
    cpu = Accelerator(cpu=True)
    with without_lone_samples(cpu, loader, model):
        model.train()(torch.randn(1, 3, 64, 64)).sum().backward()
