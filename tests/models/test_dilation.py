import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

import transferseg as ts
from tests.models.randomise import randomise
from tests.references.compare import relative
from transferseg.errors import SpecError
from transferseg.models import Encoder
from transferseg.models.dilation import DenseAvgPool2d

IMAGE = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def dilations(encoder):
    """Of the 3x3 convolutions of the last two stages, in order; "|" between blocks."""
    text = []
    for stage in (encoder.model.layer3, encoder.model.layer4):
        for block in stage:
            found = [
                str(layer.dilation[0])
                for layer in block.modules()
                if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)
            ]
            text.append(" ".join(found))
    return "|".join(text)


@pytest.mark.parametrize(
    ("name", "output_stride", "style", "wanted"),
    [
        ("resnet18", 8, "timm", "1 2|2 2|2 4|4 4"),
        ("resnet18", 8, "smp", "2 2|2 2|4 4|4 4"),
        ("resnet18", 8, "mmseg", "1 1|2 1|2 1|4 1"),
        ("resnet18", 16, "timm", "1 1|1 1|1 2|2 2"),
        ("resnet18", 16, "smp", "1 1|1 1|2 2|2 2"),
        ("resnet18", 16, "mmseg", "1 1|1 1|1 1|2 1"),
        ("resnet18", 32, "mmseg", "1 1|1 1|1 1|1 1"),
        ("resnet26", 8, "timm", "1|2|2|4"),
        ("resnet26", 8, "mmseg", "1|2|2|4"),
        ("resnet26", 8, "smp", "2|2|4|4"),
    ],
)
def test_what_each_style_dilates(name, output_stride, style, wanted):
    encoder = Encoder(name, output_stride=output_stride, dilation=style).eval()
    assert dilations(encoder) == wanted
    with torch.no_grad():
        assert encoder(IMAGE)[-1].shape[-2:] == (64 // output_stride, 96 // output_stride)


@pytest.mark.parametrize(
    ("name", "output_stride"), [("resnet18", 8), ("resnet50", 16), ("resnext50_32x4d", 8)]
)
def test_features_in_smps_style_equal_smps(name, output_stride):
    theirs = randomise(smp.encoders.get_encoder(name, weights=None, output_stride=output_stride))
    ours = Encoder(name, output_stride=output_stride, dilation="smp").eval()
    ours.model.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        for ours_, theirs_ in zip(ours(IMAGE), theirs(IMAGE)[1:], strict=True):
            assert relative(ours_, theirs_) < 1e-5


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("mobilenetv2_035", {"output_stride": 16}, "give dilation='smp'"),
        ("densenet121", {"output_stride": 16}, "smp does not build it dilated"),
        ("resnet18", {}, "style 'smp' is one of tf_efficientnet_b0"),
    ],
)
def test_what_smps_own_encoders_do_not(name, options, told):
    with pytest.raises(SpecError, match=told):
        Encoder(name, options={"style": "smp"}, **options)


def test_the_averages_of_resnet_d_stay_in_timms_style_and_go_in_mmsegs():
    found = {}
    for style in ("timm", "mmseg"):
        encoder = Encoder("resnet18d", output_stride=8, dilation=style)
        stages = (encoder.model.layer2, encoder.model.layer3, encoder.model.layer4)
        found[style] = [type(stage[0].downsample[0]) for stage in stages]
    assert found["timm"] == [nn.AvgPool2d, DenseAvgPool2d, DenseAvgPool2d]
    assert found["mmseg"] == [nn.AvgPool2d, nn.Identity, nn.Identity]


def test_a_style_is_part_of_the_spec(tmp_path):
    options = {"classes": 2, "channels": 8, "output_stride": 8}
    model = randomise(ts.create_model("fcn", "resnet18", dilation="mmseg", **options))
    model.save_pretrained(tmp_path)
    loaded = ts.Segmenter.from_pretrained(tmp_path)
    assert loaded.spec.dilation == "mmseg"
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), model(IMAGE))


def test_styles_that_cannot_be():
    with pytest.raises(SpecError, match="unknown dilation style 'torch'"):
        Encoder("resnet10t", dilation="torch")
    for style in ("smp", "mmseg"):
        with pytest.raises(SpecError, match=rf"{style}.* of ResNets.*'vgg11'.*output_stride=32"):
            Encoder("vgg11", output_stride=8, dilation=style)
        assert Encoder("vgg11", dilation=style).strides[-1] == 32


@pytest.mark.parametrize("name", ["resnet10t", "resnet18", "resnet26"])
def test_stages_of_equal_width_have_no_shortcut_when_dilated_and_are_refused(name):
    """timm gives the last stage a convolution in its shortcut for its stride alone."""
    arguments = {"channels": [8, 16, 32, 32]}
    found = ts.encoder_capabilities(name, arguments)
    why = "timm builds it dilated with other parameters"
    assert found.refusals == ((8, why), (16, why))
    assert found.output_strides == (32,)
    with pytest.raises(SpecError, match=f"output stride 16 .{why}"):
        Encoder(name, output_stride=16, options={"arguments": arguments})
    # where the width grows nothing is lost
    wider = ts.encoder_capabilities(name, {"channels": [8, 16, 32, 64]})
    assert wider.output_strides == (8, 16, 32)
