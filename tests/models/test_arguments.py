"""Encoders of other widths and details: arguments of timm's builder, in JSON."""

import pytest
import timm
import torch

import tests.models.tiny_timm  # noqa: F401 - registers its models
import transferseg as ts
from tests.models.randomise import randomise
from tests.models.tiny_timm import _stage
from transferseg.errors import SpecError
from transferseg.models import Encoder, create_classifier, encoder_capabilities, freeze

RESNET = {"channels": [8, 16, 32, 64], "stem_width": 4, "stem_type": "deep"}
HRNET = {
    "stem_width": 16,
    "stage1": _stage(1, "BOTTLENECK", 1, [8]),
    "stage2": _stage(1, "BASIC", 1, [4, 8]),
    "stage3": _stage(1, "BASIC", 1, [4, 8, 16]),
    "stage4": _stage(2, "BASIC", 1, [4, 8, 16, 32]),
}
SWIN = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 3}
VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 64}


def built(name, arguments, **options):
    return Encoder(name, options={"arguments": arguments, **options})


def tuples(value):
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("name", "arguments", "indices"),
    [
        ("resnet18", RESNET, None),
        ("hrnet_w18_small", HRNET, [1, 2, 3, 4]),
        ("mobilenetv2_035", {"pad_type": "same", "bn_eps": 0.1}, None),
        ("convnext_atto", {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, None),
        ("regnetx_002", {"w0": 16, "depth": 8}, None),
    ],
)
def test_maps_equal_those_of_timms_model_with_the_same_arguments(name, arguments, indices):
    encoder = randomise(built(name, arguments))
    theirs = timm.create_model(name, num_classes=0, **tuples(arguments)).eval()
    theirs.incre_modules = None  # of HRNet: part of its classifier
    missing, unexpected = theirs.load_state_dict(encoder.model.state_dict(), strict=False)
    assert (unexpected, set(missing) <= set(encoder.pruned)) == ([], True)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        chosen = {"indices": indices} if indices else {}
        wanted = theirs.forward_intermediates(image, intermediates_only=True, **chosen)
        for ours, map_ in zip(encoder(image), wanted, strict=True):
            torch.testing.assert_close(ours, map_, rtol=1e-5, atol=1e-5)


def test_details_that_no_weight_shows_are_taken():
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    maps = []
    for arguments in ({}, {"bn_eps": 0.1}, {"pad_type": "same"}):
        encoder = randomise(built("mobilenetv2_035", arguments))
        with torch.no_grad():
            maps.append(encoder(image)[-1])
    assert not torch.allclose(maps[0], maps[1], rtol=0.01)
    assert not torch.allclose(maps[0], maps[2], rtol=0.01)


def test_transformers_take_their_sizes():
    found = encoder_capabilities("swin_tiny_patch4_window7_224", SWIN)
    assert (found.channels, found.strides) == ((8, 16, 32, 64), (4, 8, 16, 32))
    swin = built("swin_tiny_patch4_window7_224", SWIN)
    assert swin.model.layers[0].blocks[0].window == (3, 3)
    found = encoder_capabilities("vit_small_patch16_224", VIT)
    assert (found.plain.depth, found.plain.width, found.plain.patch) == (4, 32, 16)
    vit = built("vit_small_patch16_224", VIT, pyramid="multilevel", layers=[0, 1, 2, 3])
    assert vit.model.pos_embed.shape == (1, 17, 32)
    assert [f.shape[1] for f in vit(torch.randn(1, 3, 50, 70))] == [32] * 4


def test_capabilities_are_of_the_arguments():
    narrow = encoder_capabilities("resnet18", RESNET)
    assert narrow is encoder_capabilities("resnet18", {**RESNET, "channels": (8, 16, 32, 64)})
    assert narrow.channels == (8, 8, 16, 32, 64)
    assert narrow.output_strides == (8, 16, 32)
    squeezed = encoder_capabilities("resnet18", {**RESNET, "block_args": {"attn_layer": "se"}})
    assert (squeezed.output_strides, dict(squeezed.refusals).keys()) == ((32,), {8, 16})
    with pytest.raises(SpecError, match="output stride 8"):
        Encoder("resnet18", output_stride=8, options={
            "arguments": {**RESNET, "block_args": {"attn_layer": "se"}}})  # fmt: skip


def test_the_plain_encoder_takes_its_width():
    assert encoder_capabilities("plain", {"width": 4}).channels == (4, 8, 16, 32, 64)
    assert built("plain", {"width": 4}).model.channels == (4, 8, 16, 32, 64)
    for wrong in ({"width": 0}, {"width": "8"}, {"widht": 8}):
        with pytest.raises(SpecError, match="one argument, width, a whole number from 1"):
            encoder_capabilities("plain", wrong)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet18", {"chanels": [8] * 4}, "no argument 'chanels'.*Did you mean 'channels'"),
        ("hrnet_w18_small", {"stage5": {}}, "'hrnet_w18_small' has no argument 'stage5'"),
        ("test_vit", {"embed_dims": 8}, "no argument 'embed_dims'.*Did you mean 'embed_dim'"),
        ("mobilenetv2_035", {"padding": "same"}, "no argument 'padding'"),
        ("vgg11_bn", {"norm_layer": "batchnorm2d"}, "timm fixes argument 'norm_layer'"),
        ("resnet18", {"channels": [8]}, "cannot build 'resnet18' with {'channels': "),
        ("resnet18", {"pretrained": True}, "'pretrained' .* not taken: give weights="),
        ("resnet18", {"num_classes": 3}, "timm's classifier"),
        ("resnet18", {"in_chans": 1}, "give in_channels="),
        ("resnet18", {"output_stride": 8}, "give output_stride= beside the options"),
        ("resnet18", {"features_only": True}, "always gives feature maps"),
        ("test_vit", {"dynamic_img_size": True}, "always follows the size of the image"),
        ("tiny_swin", {"always_partition": True}, "the encoder option 'style' decides"),
        ("resnet18", {"stem_type": None}, "'stem_type' of encoder 'resnet18' is null"),
        ("resnet18", {"norm_layer": torch.nn.BatchNorm2d}, "must be JSON values"),
        ("resnet18", ["channels"], "must be a dict of values by name"),
    ],
)
def test_arguments_that_cannot_be(name, arguments, message):
    with pytest.raises(SpecError, match=message):
        encoder_capabilities(name, arguments)
    with pytest.raises(SpecError):
        ts.create_classifier(name, classes=2, encoder_options={"arguments": arguments})


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("resnet18", RESNET, r"bn1\.bias"),
        ("resnet18", {"layers": [1, 1, 1, 1]}, r"layer1\.1\.bn1\.bias"),
        ("tiny_swin", {"num_heads": [2, 4, 8, 16]}, "relative_position_bias_table"),
        ("test_vit", {"class_token": False, "global_pool": "avg"}, "cls_token"),
    ],
)
def test_weights_of_another_shape_are_refused_before_they_are_fetched(name, arguments, key):
    with pytest.raises(SpecError, match=f"do not fit the arguments .*: .*{key}.* would differ"):
        ts.create_model("fcn", name, classes=2, weights="default",
                        encoder_options={"arguments": arguments})  # fmt: skip


def test_weights_that_timm_resamples_are_fetched(monkeypatch):
    """Of another image size: the shapes differ, and timm makes them fit."""
    own = randomise(timm.create_model("test_vit", num_classes=0))
    monkeypatch.setattr(
        "timm.models._builder.load_pretrained",
        lambda model, **_: model.load_state_dict(
            timm.models.vision_transformer.checkpoint_filter_fn(own.state_dict(), model)
        ),
    )
    encoder = Encoder("test_vit", pretrained=True, options={"arguments": {"img_size": 96}})
    assert torch.equal(encoder.model.blocks[0].attn.qkv.weight, own.blocks[0].attn.qkv.weight)
    assert encoder.model.pos_embed.shape == (1, 37, 64)


def test_arguments_are_saved_and_loaded(tmp_path):
    options = {"arguments": RESNET}
    model = ts.create_model("unet", "resnet18", classes=2, in_channels=4, encoder_options=options,
                            output_stride=16)  # fmt: skip
    assert randomise(model).spec.encoder_options == options
    model.save_pretrained(tmp_path)
    loaded = ts.Segmenter.from_pretrained(tmp_path)
    image = torch.randn(1, 4, 50, 70)
    assert torch.equal(loaded(image), model(image))
    classifier = create_classifier("resnet18", classes=2, in_channels=4, weights=tmp_path,
                                   encoder_options=options)  # fmt: skip
    assert classifier.head.in_features == 64
    report = ts.transfer_weights(classifier, model, parts="encoder")
    report.raise_if_below(encoder=1.0)
    freeze(model, "encoder.stages[0]")
    held = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert {name.split(".")[2] for name in held} == {"conv1", "bn1"}


def test_drop_path_drops_in_training_alone():
    encoder = built("tiny_swin", {"drop_path_rate": 0.5})
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    encoder.train()
    assert not torch.equal(encoder(image)[-1], encoder(image)[-1])
    encoder.eval()
    assert torch.equal(encoder(image)[-1], encoder(image)[-1])
