import pytest
import segmentation_models_pytorch as smp
import torch

import transferseg as ts
from tests.models.randomise import randomise
from tests.references.compare import difference, load, relative
from transferseg.errors import SpecError
from transferseg.models.decoders.deeplabv3plus import DeepLabV3PlusDecoder

OPTIONS = {"output_stride": 8, "dilation": "mmseg", "channels": 12}
NAMES = {
    r"^decode_head\.image_pool\.": "decoder.aspp.image_pool.",
    r"^decode_head\.aspp_modules\.": "decoder.aspp.branches.",
    r"^decode_head\.bottleneck\.": "decoder.",
}
PLUS_NAMES = {
    **NAMES,
    r"^decode_head\.bottleneck\.": "decoder.bottleneck.",
    r"^decode_head\.c1_bottleneck\.": "decoder.reduce.",
    r"^decode_head\.sep_bottleneck\.": "decoder.convs.",
    r"\.(depth|point)wise_conv\.": r".\1wise.",
}
IMAGE = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_deeplabv3_in_the_bottleneck_layout_equals_mmsegmentations():
    options = {**OPTIONS, "layout": "bottleneck"}
    model, reference = load("tiny_deeplabv3_r18", "deeplabv3", "resnet18", NAMES, **options)
    assert difference(model, reference) < 1e-5


def test_deeplabv3plus_equals_mmsegmentations():
    options = {**OPTIONS, "low_channels": 6}
    model, reference = load(
        "tiny_deeplabv3plus_r18", "deeplabv3plus", "resnet18", PLUS_NAMES, **options
    )
    assert difference(model, reference) < 1e-5


@pytest.mark.parametrize(
    ("encoder", "output_stride"),
    [("resnet18", 8), ("resnet18", 16), ("resnet34", 8), ("resnext50_32x4d", 8)],
)
def test_deeplabv3_equals_smps(encoder, output_stride):
    theirs = randomise(
        smp.DeepLabV3(encoder, encoder_weights=None, encoder_output_stride=output_stride, classes=2)
    )
    options = {"output_stride": output_stride, "rates": [12, 24, 36], "align_corners": True}
    ours = ts.create_model("deeplabv3", encoder, classes=2, dilation="smp", **options).eval()
    renames = {"encoder.": "encoder.model.", "segmentation_head.0.": "head."}
    ours.load_state_dict(renamed(theirs, renames))
    with torch.no_grad():
        assert relative(ours(IMAGE), theirs(IMAGE)) < 1e-5
        # The style is what makes them equal.
        other = ts.create_model("deeplabv3", encoder, classes=2, **options).eval()
        other.load_state_dict(ours.state_dict())
        assert relative(other(IMAGE), theirs(IMAGE)) > 1e-3


@pytest.mark.parametrize(
    ("encoder", "output_stride"), [("resnet18", 16), ("resnet18", 8), ("resnext50_32x4d", 16)]
)
def test_deeplabv3plus_in_the_projection_layout_equals_smps(encoder, output_stride):
    theirs = randomise(
        smp.DeepLabV3Plus(
            encoder, encoder_weights=None, encoder_output_stride=output_stride, classes=2
        )
    )
    ours = ts.create_model(
        "deeplabv3plus",
        encoder,
        classes=2,
        output_stride=output_stride,
        dilation="smp",
        layout="projection",
        rates=[12, 24, 36],
        align_corners=True,
    )
    renames = {
        "encoder.": "encoder.model.",
        "segmentation_head.0.": "head.",
        "decoder.aspp.0.": "decoder.aspp.",
        "decoder.aspp.1.": "decoder.bottleneck.0.",
        "decoder.aspp.2.": "decoder.bottleneck.1.",
        "decoder.block1.0.": "decoder.reduce.conv.",
        "decoder.block1.1.": "decoder.reduce.bn.",
        "decoder.block2.": "decoder.convs.",
    }
    ours.load_state_dict(renamed(theirs, renames))
    with torch.no_grad():
        assert relative(ours.eval()(IMAGE), theirs(IMAGE)) < 1e-5


def renamed(model, renames):
    state = {}
    for key, value in model.state_dict().items():
        for before, after in renames.items():
            if key.startswith(before):
                key = after + key.removeprefix(before)
                break
        state[key] = value
    return state


@pytest.mark.parametrize("architecture", ["deeplabv3", "deeplabv3plus"])
@pytest.mark.parametrize(("layout", "dropout"), [("projection", 0.5), ("bottleneck", 0.1)])
def test_the_dropout_follows_the_layout(architecture, layout, dropout):
    for options, wanted in (({}, dropout), ({"dropout": 0.3}, 0.3)):
        model = ts.create_model(architecture, "resnet10t", classes=2, layout=layout, **options)
        found = [
            module.p
            for module in model.decoder.modules()
            if isinstance(module, torch.nn.modules.dropout._DropoutNd)
        ]
        assert found == [wanted]


def test_the_bottleneck_layout_keeps_its_options_when_saved(tmp_path):
    options = {"layout": "bottleneck", "channels": 8, "rates": [2, 3, 4], "align_corners": True}
    model = randomise(ts.create_model("deeplabv3", "resnet10t", classes=2, **options))
    model.save_pretrained(tmp_path)
    loaded = ts.Segmenter.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), model(IMAGE))


def test_deeplabv3plus_gives_the_size_of_the_map_at_stride_4():
    for encoder in ("resnet10t", "vgg11", "test_convnext"):
        model = ts.create_model("deeplabv3plus", encoder, classes=2, channels=8).eval()
        with torch.no_grad():
            features = model.encoder(IMAGE)
            assert model.decoder(features, (64, 96)).shape == (1, 8, 16, 24)


@pytest.mark.parametrize(("stride", "rate"), [(8, 12), (16, 6), (32, 3)])
def test_atrous_rates_follow_the_stride(stride, rate):
    model = ts.create_model("deeplabv3plus", "resnet10t", classes=2, output_stride=stride)
    convolutions = [m for m in model.decoder.modules() if isinstance(m, torch.nn.Conv2d)]
    dilations = [m.dilation[0] for m in convolutions if m.dilation[0] > 1]
    assert dilations == [rate, 2 * rate, 3 * rate]


@pytest.mark.parametrize("architecture", ["deeplabv3", "deeplabv3plus"])
@pytest.mark.parametrize("rates", [[6, 12], [], [0, 6, 12]])
def test_rates_that_cannot_be(architecture, rates):
    with pytest.raises(SpecError, match=f"{architecture} needs three rates from 1"):
        ts.create_model(architecture, "resnet10t", classes=2, rates=rates)


def test_other_wrong_options():
    for name in ("deeplabv3", "deeplabv3plus"):
        with pytest.raises(SpecError, match=f"of '{name}' 'botleneck'.*'bottleneck'"):
            ts.create_model(name, "resnet10t", classes=2, layout="botleneck")
    with pytest.raises(SpecError, match="needs channels from 1"):
        ts.create_model("deeplabv3plus", "resnet10t", classes=2, low_channels=0)
    with pytest.raises(SpecError, match=r"above the deepest.*strides \[2, 32\]"):
        DeepLabV3PlusDecoder((8, 16), (2, 32))
