import pytest
import torch
import torchvision

import transferseg as ts
from tests.models.families import FAMILIES
from tests.models.randomise import randomise
from transferseg.errors import SpecError
from transferseg.models import Encoder, capabilities, encoder_capabilities, list_encoders
from transferseg.models.variant import Variant

DILATED = ["resnet10t", "resnet18", "test_resnet", "resnet18d", "vgg11", "vgg11_bn", "regnetx_002"]
PAPER = ["vgg16", "resnet50", "resnext50_32x4d"]  # the backbones of Merand 2021

# members of timm's other families that claim a stride below 32, where they do
OTHERS = [("test_convnext", 16), ("inception_next_atto", 16), ("repvgg_a0", 8),
          ("resnetv2_18", 8)]  # fmt: skip


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [*((n, s) for n in (*DILATED, *PAPER, "mobilenetv2_035") for s in (8, 16)), *OTHERS],
)
def test_dilated_features_subsampled_equal_the_undilated_ones(name, output_stride):
    plain = randomise(Encoder(name, in_channels=1))
    dilated = Encoder(name, in_channels=1, output_stride=output_stride).eval()
    dilated.load_state_dict(plain.state_dict())
    image = torch.randn(1, 1, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for stride, before, after in zip(
            dilated.strides, plain(image), dilated(image), strict=True
        ):
            assert after.shape[-1] == 128 // stride
            step = after.shape[-1] // before.shape[-1]
            assert relative(after[..., ::step, ::step], before) < 1e-5


def test_every_stride_8_map_is_computed_from_dilated_neighbours_and_not_repeated():
    encoder = randomise(Encoder("vgg11", output_stride=8))
    deepest = encoder(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))[-1]
    assert not torch.allclose(deepest[..., ::2, ::2], deepest[..., 1::2, 1::2])


@pytest.mark.parametrize("build", [torchvision.models.vgg11, torchvision.models.resnet18])
def test_features_equal_torchvision_of_the_same_names(build):
    theirs = randomise(build(weights=None))
    ours = Encoder(build.__name__).eval()
    state = {f"model.{k}": v for k, v in theirs.state_dict().items()}
    ours.load_state_dict({k: state[k] for k in ours.state_dict()})
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    if build is torchvision.models.vgg11:
        wanted = theirs.features(image)
    else:
        body = torch.nn.Sequential(*list(theirs.children())[:-2])
        wanted = body(image)
    assert relative(ours(image)[-1].detach(), wanted.detach()) < 1e-6


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        "vgg11",
        "test_efficientnet",
        "test_vit",
        "tiny_swin",
        "tiny_swinv2",
        "tiny_hrnet",
    ],
)
@pytest.mark.parametrize("in_channels", [1, 3, 5])
def test_input_channels_and_described_features(name, in_channels):
    encoder = Encoder(name, in_channels=in_channels).eval()
    features = encoder(torch.randn(2, in_channels, 64, 96))
    assert [f.shape[1] for f in features] == list(encoder.channels)
    assert [96 // f.shape[-1] for f in features] == list(encoder.strides)
    shapes = {key: value.shape for key, value in encoder.state_dict().items()}
    assert [shapes[key][1] for key in encoder.stem_keys()] == [in_channels]


@pytest.mark.parametrize(
    "name",
    ["resnet10t", "vgg11", "mobilenetv2_035", "test_vit", "test_vit2", "test_vit3", "test_vit4",
     "tiny_dinov2", "tiny_deit_distilled", "tiny_swin", "tiny_swinv2", "tiny_hrnet"],
)  # fmt: skip
def test_no_parameter_is_dead(name):
    encoder = Encoder(name)
    sum(f.square().sum() for f in encoder(torch.randn(2, 3, 64, 64))).backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_that_stops_early_gives_the_same_maps_up_to_there(family):
    encoder = randomise(Encoder(FAMILIES[family].tiny))
    image = torch.randn(1, 3, 70, 90, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for until in (0, len(encoder.channels) - 2):
            early = encoder(image, until=until)
            assert len(early) > until
            assert all(map(torch.equal, early, encoder(image)))


@pytest.mark.parametrize(
    ("name", "options", "unread"),
    [
        ("test_resnet", {}, "layer4"),
        ("mobilenetv2_035", {"style": "smp"}, "blocks.3"),
        ("efficientnet_lite0", {"style": "smp"}, "blocks.3"),
    ],
)
def test_what_lies_below_the_last_map_read_is_not_computed(name, options, unread):
    model = ts.create_model("psp_smp", name, classes=2, stride=8, encoder_options=options)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        whole = model.eval().encoder(image)
        early = model.encoder(image, until=model.until)
    assert len(whole) > len(early) == 3
    assert all(map(torch.equal, early, whole))
    module = model.encoder.model.get_submodule(unread)
    module.register_forward_hook(lambda *_: pytest.fail(f"{unread} ran"))
    model.train()(image).sum().backward()


def test_refusals_say_what_can_be_done():
    assert encoder_capabilities("seresnet18").output_strides == (
        32,
    )  # its attention pools globally
    with pytest.raises(SpecError, match=r"'seresnet18' .* output stride 8 .*differ.*\[32\]"):
        Encoder("seresnet18", output_stride=8)
    with pytest.raises(SpecError, match=r"strides \[16, 16.*not a pyramid that ends at stride 32"):
        encoder_capabilities("xcit_nano_12_p16_224")
    with pytest.raises(SpecError, match=r"Did you mean .*'resnet50'"):
        encoder_capabilities("resnet5o")
    with pytest.raises(SpecError, match="not a stride of encoders"):
        Encoder("resnet10t", output_stride=4)
    with pytest.raises(SpecError, match="unknown dilation style 'torch'"):
        Encoder("resnet10t", dilation="torch")


def test_list_encoders_are_timms():
    assert {"resnet50", "vgg16", "resnext50_32x4d"} <= set(list_encoders())


def test_what_timm_calls_the_head_of_a_selecsls_stays_where_its_maps_come_from():
    with pytest.raises(SpecError, match=r"selecsls42' gives feature maps at strides .*, 64\]"):
        encoder_capabilities("selecsls42")


@pytest.mark.parametrize(
    "error", [TypeError("no iterator"), KeyError("norm"), ZeroDivisionError("0")]
)
def test_a_model_that_fails_in_its_own_way_is_refused_by_name(monkeypatch, error):
    def fail(*given):
        raise error

    monkeypatch.setattr(capabilities, "intermediates", fail)
    describe = capabilities._describe.__wrapped__  # what it knows already is not asked again
    with pytest.raises(SpecError, match=f"encoder 'resnet10t' .* {type(error).__name__}"):
        describe(Variant("resnet10t"))
