import re
from functools import partial

import pytest
import torch
import torchvision
from torchvision.models import vgg

import transferseg as ts
from tests.load.files import assert_equal_logits, fed, image, relative, saved
from transferseg.errors import CheckpointError, SpecError, TransferError
from transferseg.load.formats import FORMATS
from transferseg.load.inspection import examine
from transferseg.load.listing import Listing, read_listing
from transferseg.load.loading import build, fill

NONE = {"weights": None, "weights_backbone": None}


def out(output):
    return output["out"]


@pytest.fixture(scope="module")
def fcn(tmp_path_factory):
    path = tmp_path_factory.mktemp("fcn") / "fcn.pth"
    build_fcn = torchvision.models.segmentation.fcn_resnet50
    return saved(build_fcn(**NONE, num_classes=3, aux_loss=True), path), path


def test_a_classifier(tmp_path):
    theirs = saved(torchvision.models.resnet18(num_classes=7), tmp_path / "a.pth")
    model, report = assert_equal_logits(theirs, tmp_path / "a.pth", image())
    assert (report.source_format, model.spec.encoder) == ("torchvision", "resnet18")
    assert any("encoder = 'resnet18' (convention)" in note for note in report.notes)


def test_densenet_is_built_whole(tmp_path):
    theirs = saved(torchvision.models.densenet121(num_classes=3), tmp_path / "a.pth")
    assert_equal_logits(theirs, tmp_path / "a.pth", image())


def test_densenet_in_the_names_of_the_published_files(tmp_path):
    theirs = saved(torchvision.models.densenet121(num_classes=3), tmp_path / "a.pth")
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in theirs.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(old, tmp_path / "a.pth")
    assert_equal_logits(theirs, tmp_path / "a.pth", image())
    unet = ts.create_model("unet", "densenet121", classes=2, weights=tmp_path / "a.pth")
    last = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(unet.encoder.model.get_parameter(last), theirs.get_parameter(last))


def test_another_epsilon_is_refused_by_transfer_too():
    names = ("0.0", "1.0.block.0.0", "1.2.block.0.0")
    keys = {f"features.{name}.weight": torch.ones(1) for name in names}
    with pytest.raises(TransferError, match=r"with \{'bn_eps': 0\.001\}, which timm's"):
        ts.transfer_weights(keys, ts.create_model("unet", "efficientnet_b0", classes=2))


def test_vgg_keeps_its_linear_layers(tmp_path):
    theirs = torchvision.models.VGG(vgg.make_layers(vgg.cfgs["A"]), init_weights=False)
    for index, shape in ((0, (512 * 49, 16)), (3, (16, 16)), (6, (16, 2))):  # 4096 wide: 0.5 GB
        theirs.classifier[index] = torch.nn.Linear(*shape)
    saved(theirs, tmp_path / "a.pth")
    # A map of 3 x 2 positions: torchvision pools it to 7 x 7.
    model, _ = assert_equal_logits(theirs, tmp_path / "a.pth", image(3, 96, 64))
    assert model.spec.decoder == {"head": "vgg", "head_width": 16, "dropout": 0.5}
    model.save_pretrained(tmp_path / "ours")
    assert_equal_logits(theirs, tmp_path / "ours", image(3, 96, 64))
    with pytest.raises(SpecError, match="head_width"):
        build(model.spec.replace(decoder={"head_width": 8}))
    with pytest.raises(SpecError, match="unknown head of a classifier 'vg'"):
        build(model.spec.replace(decoder={"head": "vg"}))


def test_fcn_with_its_auxiliary_head(fcn):
    theirs, path = fcn
    model, report = assert_equal_logits(theirs, path, image(3, 49, 65), out)
    assert (model.spec.architecture, model.spec.output_stride) == ("fcn", 8)
    assert (model.spec.auxiliary, dict(report.plan.unused)) == (True, {})
    assert [c.fraction for c in report.coverage.values()] == [1.0, 1.0, 1.0, 1.0]
    with torch.no_grad():
        _, ours = model(image(3, 49, 65), auxiliary=True)
        assert relative(ours, theirs(image(3, 49, 65))["aux"]) < 1e-5
    with pytest.raises(CheckpointError, match=r"auxiliary=False was asked for.* say True"):
        ts.load_checkpoint(path, auxiliary=False)


def test_deeplabv3(tmp_path):
    build_deeplab = torchvision.models.segmentation.deeplabv3_resnet50
    theirs = build_deeplab(**NONE, num_classes=2, aux_loss=True)
    theirs.aux_classifier[0] = torch.nn.Conv2d(1024, 8, 3, padding=1, bias=False)
    theirs.aux_classifier[1] = torch.nn.BatchNorm2d(8)
    theirs.aux_classifier[4] = torch.nn.Conv2d(8, 2, 1)
    saved(theirs, tmp_path / "a.pth")
    model, report = assert_equal_logits(theirs, tmp_path / "a.pth", image(), out)
    assert model.spec.auxiliary == {"channels": 8}
    with torch.no_grad():
        assert relative(model(image(), auxiliary=True)[1], theirs(image())["aux"]) < 1e-5
    notes = "\n".join(report.notes)
    assert "assumed rates = [12, 24, 36] (convention)" in notes
    with torch.no_grad():
        other, _ = ts.load_checkpoint(tmp_path / "a.pth", rates=[6, 12, 18])
        assert relative(other(image()), theirs(image())["out"]) > 1e-3


def test_keywords_decide_what_is_open_and_nothing_else(fcn):
    _, path = fcn
    asked = {"align_corners": True, "classes": ["sky", "road", "car"], "mode": "multilabel"}
    info = ts.inspect_checkpoint(path, **asked)
    assert info.spec.decoder["align_corners"] is True
    assert (info.spec.classes, info.spec.mode) == (("sky", "road", "car"), "multilabel")
    assert "align_corners = True (keyword): given by the caller" in str(info)
    for wrong, message in (
        ({"classes": 4}, "classes= names 4, but the head has 3 rows"),
        ({"channels": 256}, r"channels=256 was asked for.* say 512"),
        ({"encoder": "resnet18"}, "encoder='resnet18' was asked for"),
        ({"rates": [1, 2, 3]}, "rates= says nothing about such a checkpoint"),
        ({"aling_corners": True}, "aling_corners= says nothing"),
        ({"input_spec": ts.InputSpec(channels=1)}, "input_spec= has 1 channels, .* reads 3"),
    ):
        with pytest.raises(CheckpointError, match=message):
            ts.load_checkpoint(path, **wrong)
    with pytest.raises(SpecError, match="cannot be built with output stride 4"):
        ts.load_checkpoint(path, output_stride=4)


def changed(state, key, value):
    return {**state, key: value}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda s: {k: v for k, v in s.items() if "layer3.1." not in k},
         r"get nothing: encoder\.model\.layer3\.1"),
        (lambda s: changed(s, "classifier.1.bias", s["classifier.1.bias"][:9]),
         r"'classifier\.1\.bias' is \(9,\)"),
        (lambda s: changed(s, "backbone.layer4.3.weight", torch.zeros(2)),
         r"go nowhere: backbone\.layer4\.3\.weight"),
        (lambda s: changed(s, "decoder.convs.0.bn.bias", torch.zeros(512)),
         r"two source keys become one: .*'decoder\.convs\.0\.bn\.bias'"),
        (lambda s: changed(s, "classifier.1.bias", s["classifier.1.bias"] * float("nan")),
         r"'classifier\.1\.bias' holds NaN"),
    ],
)  # fmt: skip
def test_what_does_not_fit_names_the_keys_and_changes_nothing(change, names, fcn):
    theirs, path = fcn
    seen = examine(read_listing(path), {})
    target = build(seen.info.spec)
    before = fed(target)
    state = change(dict(theirs.state_dict()))
    given = {key: value.clone() for key, value in state.items()}
    naming = FORMATS["torchvision"].naming(seen.listing, seen.info.spec)
    with pytest.raises(TransferError, match=names):
        fill(target, state, naming, seen.info)
    after = target.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert list(given) == list(state)
    assert all(torch.equal(given[k].nan_to_num(7), state[k].nan_to_num(7)) for k in given)


def test_a_damaged_file_is_refused_by_its_keys(fcn, tmp_path):
    theirs, _ = fcn
    state = dict(theirs.state_dict())
    del state["classifier.1.bias"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(
        TransferError, match=r"(?s)taken for fcn over resnet50.*decoder\.convs\.0\.bn\.b"
    ):
        ts.load_checkpoint(tmp_path / "a.pth")


def small_vit(**options):
    sizes = {"num_layers": 12, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768}
    return torchvision.models.VisionTransformer(224, 16, **sizes, **options)


@pytest.mark.parametrize(
    ("build", "encoder", "side"),
    [
        (partial(torchvision.models.mobilenet_v2, width_mult=0.35), "mobilenetv2_035", 65),
        (torchvision.models.mobilenet_v3_small, "mobilenetv3_small_100", 65),
        (torchvision.models.mobilenet_v3_large, "mobilenetv3_large_100", 65),
        (torchvision.models.efficientnet_b0, "efficientnet_b0", 65),
        (torchvision.models.efficientnet_v2_s, "efficientnetv2_s", 65),
        (torchvision.models.convnext_tiny, "convnext_tiny", 65),
        (torchvision.models.regnet_y_400mf, "regnety_004", 65),
        (small_vit, "vit_tiny_patch16_224", 224),
    ],
)
def test_classifiers_whose_names_are_not_timms(build, encoder, side, tmp_path):
    theirs = saved(build(num_classes=3), tmp_path / "a.pth")
    model, _ = assert_equal_logits(theirs, tmp_path / "a.pth", image(3, side, side))
    assert (model.spec.encoder, model.spec.decoder) == (encoder, {"head": "timm"})
    assert model.spec.input.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("build", "encoder", "options"),
    [
        (partial(torchvision.models.mobilenet_v2, width_mult=0.35), "mobilenetv2_035", {}),
        (
            torchvision.models.mobilenet_v3_small,
            "mobilenetv3_small_100",
            {"arguments": {"bn_eps": 0.001}},
        ),
    ],
)
def test_their_encoders_go_into_other_models(build, encoder, options, tmp_path):
    theirs = saved(build(num_classes=3), tmp_path / "a.pth")
    whole, _ = ts.load_checkpoint(tmp_path / "a.pth")
    assert whole.spec.encoder_options == options
    asked = {"classes": 1, "encoder_options": options, "weights": tmp_path / "a.pth"}
    model = ts.create_model("unet", encoder, **asked).eval()
    layers = {"mobilenetv2_035": 18, "mobilenetv3_small_100": 13}[encoder]
    with torch.no_grad():
        wanted = theirs.features[:layers](image(3, 65, 65))
        assert relative(model.encoder(image(3, 65, 65))[-1], wanted) < 1e-5


def swin(embed_dim, depths, num_heads, window):
    sizes = {"patch_size": [4, 4], "embed_dim": embed_dim, "window_size": [window, window]}
    options = {"depths": depths, "num_heads": num_heads, "num_classes": 2}
    return torchvision.models.SwinTransformer(**sizes, **options)


@pytest.mark.parametrize(
    ("theirs", "sides", "arguments"),
    [
        (swin(96, [2, 2, 6, 2], [3, 6, 12, 24], 7), [(224, 224)], None),
        # odd maps, maps no larger than a window, sides that the patches do not fill
        (
            swin(16, [2, 2, 2, 2], [1, 2, 2, 4], 4),
            [(64, 64), (132, 97), (32, 200), (129, 258)],
            {"img_size": 128, "patch_size": 4, "window_size": 4, "embed_dim": 16,
             "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4], "mlp_ratio": 4.0,
             "qkv_bias": True},
        ),
    ],
)  # fmt: skip
def test_swin_at_any_size(theirs, sides, arguments, tmp_path):
    saved(theirs, tmp_path / "a.pth")
    for height, width in sides:
        model, _ = assert_equal_logits(theirs, tmp_path / "a.pth", image(3, height, width))
    options = {"style": "torchvision"} | ({"arguments": arguments} if arguments else {})
    assert model.spec.encoder_options == options
    model.save_pretrained(tmp_path / "ours")
    assert_equal_logits(theirs, tmp_path / "ours", image(3, height, width))
    ours = ts.create_model(
        "fcn", model.spec.encoder, classes=2, weights=tmp_path / "a.pth", encoder_options=options
    ).eval()
    height, width = (sides[0][0] + 4, sides[0][1])
    with torch.no_grad():
        deepest = ours.encoder(image(3, height, width))[-1].permute(0, 2, 3, 1)
        pooled = theirs.norm(deepest).mean(dim=(1, 2))
        assert relative(theirs.head(pooled), theirs(image(3, height, width))) < 1e-5


def listing_of(build):
    with torch.device("meta"):
        state = build().state_dict()
    return Listing(
        "a.pth",
        {key: tuple(value.shape) for key, value in state.items()},
        {key: value.dtype for key, value in state.items()},
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("swin_v2_t", "Swin V2"),
        ("mnasnet0_5", "MNASNet"),
        ("shufflenet_v2_x0_5", "ShuffleNetV2"),
        ("squeezenet1_0", "SqueezeNet"),
        ("alexnet", "AlexNet"),
    ],
)
def test_families_that_are_not_read_are_named(name, told):
    info = examine(listing_of(partial(torchvision.models.get_model, name)), {}).info
    assert (info.format, info.spec) == ("torchvision", None)
    assert f"torchvision's {told} is not read" in info.missing


def test_sizes_that_timm_has_not_are_refused_by_name():
    build = partial(torchvision.models.mobilenet_v2, width_mult=0.6)
    info = examine(listing_of(build), {}).info
    assert "names of torchvision's MobileNetV2, but its shapes" in info.missing
