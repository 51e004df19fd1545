import re
from functools import partial

import pytest
import torch
import torchvision
from torchvision.models import vgg

import transferseg as ts
from tests.load.files import assert_equal_logits, fed, image, relative, saved
from tests.models import tiny_timm  # noqa: F401 - registers small models
from transferseg.errors import CheckpointError, SpecError, TransferError
from transferseg.load.formats import FORMATS
from transferseg.load.inspection import examine
from transferseg.load.listing import Listing, read_listing
from transferseg.load.loading import build, fill
from transferseg.load.timm_index import shapes_of

SWIN = {
    "patch_size": [4, 4],
    "embed_dim": 16,
    "depths": [2, 2, 2, 2],
    "num_heads": [1, 2, 2, 4],
    "window_size": [3, 3],
}
VIT = {
    "image_size": 224,
    "patch_size": 16,
    "num_layers": 12,
    "num_heads": 3,
    "hidden_dim": 192,
    "mlp_dim": 768,
}
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
    with pytest.raises(TransferError, match=r"EfficientNet-B5 on .* epsilon 0\.001"):
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
    assert set(report.plan.unused) == {k for k in theirs.state_dict() if k.startswith("aux_")}
    assert "unused 8: the auxiliary head" in str(report)
    assert [c.fraction for c in report.coverage.values()] == [1.0, 1.0, 1.0]


def test_deeplabv3(tmp_path):
    build_deeplab = torchvision.models.segmentation.deeplabv3_resnet50
    theirs = saved(build_deeplab(**NONE, num_classes=2), tmp_path / "a.pth")
    _, report = assert_equal_logits(theirs, tmp_path / "a.pth", image(), out)
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


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mobilenet_v3_small", "MobileNetV3 is not read"),
        ("swin_v2_t", "Swin V2 is not read"),
        ("efficientnet_b5", "EfficientNet of these shapes is not read"),
        ("efficientnet_v2_s", "EfficientNet of these shapes is not read"),
        ("regnet_y_400mf", "RegNet is not read"),
        ("alexnet", "AlexNet is not read"),
    ],
)
def test_families_that_are_not_read_are_named(name, told):
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        listing = Listing("a.pth", shapes_of(torchvision.models.get_model(name)), {})
    info = examine(listing, {}).info
    assert (info.format, info.spec, info.missing) == ("torchvision", None, f"torchvision's {told}")


@pytest.mark.parametrize(
    ("make", "ours", "side"),
    [
        (torchvision.models.mobilenet_v2, "mobilenetv2_100", 64),
        (torchvision.models.efficientnet_b0, "efficientnet_b0", 64),
        (torchvision.models.convnext_tiny, "convnext_tiny", 64),
        (partial(torchvision.models.SwinTransformer, **SWIN), "tiny_swin", 96),
        (partial(torchvision.models.VisionTransformer, **VIT), "vit_tiny_patch16_224", 224),
    ],
)
def test_names_of_torchvisions_own_become_timms(make, ours, side, tmp_path):
    theirs = saved(make(num_classes=3), tmp_path / "a.pth")
    model, report = assert_equal_logits(theirs, tmp_path / "a.pth", image(3, side, side))
    assert (model.spec.encoder, report.source_format) == (ours, "torchvision")
    assert model.spec.input.mean == (0.485, 0.456, 0.406)


def test_such_a_file_is_what_a_segmenter_takes(tmp_path):
    saved(torchvision.models.mobilenet_v2(num_classes=3), tmp_path / "a.pth")
    model = ts.create_model("unet", "mobilenetv2_100", classes=2)
    report = ts.transfer_weights(tmp_path / "a.pth", model)
    assert report.coverage["encoder"].fraction == 1.0
    assert {key.split(".")[0] for key in report.plan.unused} == {"features", "classifier"}
    whole, _ = ts.load_checkpoint(tmp_path / "a.pth")
    taken = model.encoder.model.state_dict()
    assert all(torch.equal(v, whole.encoder.model.state_dict()[k]) for k, v in taken.items())
