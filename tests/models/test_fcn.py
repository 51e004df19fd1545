import pytest
import torch
import torchvision

import transferseg as ts
from tests.models.randomise import randomise
from tests.references.compare import difference, load, relative
from transferseg.errors import SpecError

NAMES = {
    r"^decode_head\.convs\.": "decoder.convs.",
    r"^decode_head\.conv_cat\.": "decoder.concat.",
}


@pytest.mark.parametrize(
    ("name", "encoder"),
    [("tiny_fcn_r18", "resnet18"), ("tiny_fcn_r50", "resnet50")],
)
def test_fcn_equals_mmsegmentations(name, encoder):
    options = {"output_stride": 8, "dilation": "mmseg", "channels": 12}
    model, reference = load(name, "fcn", encoder, NAMES, **options)
    assert difference(model, reference) < 1e-5


def test_fcn_equals_torchvisions():
    theirs = randomise(
        torchvision.models.segmentation.fcn_resnet50(
            weights=None, weights_backbone=None, num_classes=2, aux_loss=True
        )
    )
    options = {"num_convs": 1, "concat": False, "auxiliary": True}
    ours = ts.create_model("fcn", "resnet50", classes=2, **options).eval()
    report = ts.transfer_weights(
        theirs,
        ours,
        parts=("encoder", "decoder", "head", "auxiliary_head"),
        rename={
            r"backbone\.": "encoder.model.",
            r"classifier\.0\.": "decoder.convs.0.conv.",
            r"classifier\.1\.": "decoder.convs.0.bn.",
            r"classifier\.4\.": "head.",
            r"aux_classifier\.0\.": "auxiliary_head.decoder.convs.0.conv.",
            r"aux_classifier\.1\.": "auxiliary_head.decoder.convs.0.bn.",
            r"aux_classifier\.4\.": "auxiliary_head.head.",
        },
    )
    report.raise_if_below(encoder=1.0, decoder=1.0, head=1.0, auxiliary_head=1.0)
    image = torch.randn(1, 3, 49, 65, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, (main, auxiliary) = theirs(image), ours(image, auxiliary=True)
        assert relative(ours(image), wanted["out"]) < 1e-5
        assert relative(auxiliary, wanted["aux"]) < 1e-5
        assert torch.equal(main, ours(image))


def test_the_channels_are_a_quarter_of_what_is_read():
    model = ts.create_model("fcn", "resnet10t", classes=2)
    assert (model.decoder.out_channels, model.spec.output_stride) == (128, 8)
    assert ts.create_model("fcn", "resnet10t", classes=2, maps=2).decoder.out_channels == 192


def test_mmsegmentations_head_over_hrnet_is_one_convolution():
    model = ts.create_model(
        "fcn",
        "hrnet_w18_small",
        classes=2,
        num_convs=1,
        kernel_size=1,
        concat=False,
        dropout=0.0,
        channels=24,
    )
    shapes = {key: tuple(p.shape) for key, p in model.decoder.named_parameters()}
    read = sum(model.encoder.channels[-4:])
    assert shapes == {
        "convs.0.conv.weight": (24, read, 1, 1),
        "convs.0.bn.weight": (24,),
        "convs.0.bn.bias": (24,),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": 0}, "maps from 1 to 5"),
        ({"maps": 6}, "maps from 1 to 5"),
        ({"num_convs": 0}, "num_convs from 1"),
        ({"kernel_size": 2}, "odd kernel_size"),
        ({"pools": [1]}, "unknown option of 'fcn' 'pools'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(SpecError, match=message):
        ts.create_model("fcn", "resnet10t", classes=2, **options)
