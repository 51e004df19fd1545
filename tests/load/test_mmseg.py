import os
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import transferseg as ts
from tests.load.files import assert_equal_logits, image, randomise
from tests.load.openmmlab import (
    RESNETC,
    SWIN,
    VIT,
    described,
    old_file,
    reference,
    renamed,
)
from tests.references.compare import FOLDER, difference, relative
from tests.references.key_weights import make_input, read_keys
from tests.transfer.writers import runner_file
from transferseg.errors import CheckpointError, TransferError
from transferseg.load.formats.mmseg.config import read_config, read_hints
from transferseg.load.timm_index import bare, shapes_of

TINY = sorted(path.name.removesuffix(".keys.txt") for path in FOLDER.glob("tiny_*.keys.txt"))
CLASSES = ("road", "wall", "sky", "person", "car")
CONFIG = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
img_norm_cfg = dict(mean=[1.0, 2.0, 3.0], std=[4, 5, 6], to_rgb=False)
model = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='ResNetV1c', depth=18, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),
        norm_cfg=norm_cfg, style='pytorch', contract_dilation=True),
    decode_head=dict(
        type='PSPHead', pool_scales=(1, 2, 3, 6), dropout_ratio=0.2, align_corners=True),
    test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513)))
"""


def shapes(name):
    return dict(read_keys(FOLDER / f"{name}.keys.txt"))


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_network_is_loaded_from_its_file_alone(name, tmp_path):
    weights, wanted = reference(name)
    asked = {"align_corners": True} if name.endswith("769") else {}
    if name in ("tiny_fcn_r18", "tiny_upernet_swin"):
        runner_file(tmp_path / "a.pth", weights)
    else:
        old_file(tmp_path / "a.pth", weights, {"CLASSES": CLASSES, "PALETTE": [[0, 0, 0]] * 5})
    model, report = ts.load_checkpoint(tmp_path / "a.pth", **asked)
    assert difference(model, wanted) < 1e-5
    assert len(model.spec.classes) == wanted["classes"]
    assert not report.plan.left
    lost = {key for key in report.plan.unused if not key.endswith("position_index")}
    assert all("unet" in name and key.startswith("auxiliary_head.") for key in lost)
    assert ts.inspect_checkpoint(tmp_path / "a.pth", **asked).spec == model.spec
    image_spec = model.spec.input
    assert (image_spec.channel_order, image_spec.value_range) == ("RGB", (0.0, 255.0))
    assert image_spec.mean == (123.675, 116.28, 103.53)
    assert image_spec.std == (58.395, 57.12, 57.375)


FULL = os.environ.get("TRANSFERSEG_REFERENCES")
FULL_NAMES = (
    *("deeplabv3_r18", "fcn_hr18", "fcn_r18", "fcn_r50", "psp_r18"),
    *("upernet_r18", "upernet_swin_t", "upernet_vit_b16_mln"),
)


@pytest.mark.skipif(not FULL, reason="TRANSFERSEG_REFERENCES names no folder of full references")
@pytest.mark.parametrize("name", FULL_NAMES)
def test_a_network_of_published_size(name, tmp_path):
    weights, wanted = reference(name, Path(FULL) / "full")
    old_file(tmp_path / "a.pth", weights)
    model, _ = ts.load_checkpoint(tmp_path / "a.pth")
    run = min(wanted["runs"], key=lambda run: run["hw"][0] * run["hw"][1])
    with torch.no_grad():
        full = model(make_input(run["seed"], (1, 3, *run["hw"])))
    step = run["full_step"]
    assert relative(full[..., ::step, ::step], run["full"]) < 1e-5


def test_what_the_file_says_of_itself(tmp_path):
    weights, wanted = reference("tiny_psp_r18_769")
    old_file(tmp_path / "a.pth", weights, {"config": CONFIG, "CLASSES": CLASSES})
    model, report = ts.load_checkpoint(tmp_path / "a.pth")
    assert difference(model, wanted) < 1e-5
    spec = model.spec
    assert (spec.classes, spec.output_stride, spec.dilation) == (CLASSES, 8, "mmseg")
    assert (spec.decoder["align_corners"], spec.decoder["dropout"]) == (True, 0.2)
    assert (spec.input.channel_order, spec.input.mean) == ("BGR", (1.0, 2.0, 3.0))
    assert "align_corners = True (metadata)" in str(report)
    assert "windows of [769, 769], [513, 513] apart" in str(report)
    new = {"dataset_meta": {"classes": CLASSES, "palette": [[0, 0, 0]] * 5}, "cfg": CONFIG}
    for values in ({"meta": new}, {"meta": {"cfg": CONFIG}, "dataset_meta": new["dataset_meta"]}):
        torch.save({"state_dict": weights, **values}, tmp_path / "b.pth")
        assert ts.inspect_checkpoint(tmp_path / "b.pth").spec == spec
    other = ts.inspect_checkpoint(tmp_path / "a.pth", align_corners=False, classes=list("abcde"))
    assert (other.spec.decoder["align_corners"], other.spec.classes[0]) == (False, "a")


def test_what_a_runner_writes_beside_the_weights_is_declared(tmp_path):
    runner_file(tmp_path / "a.pth", reference("tiny_fcn_r18")[0])
    info = ts.inspect_checkpoint(tmp_path / "a.pth")
    assert {"meta", "message_hub", "optimizer", "param_schedulers"} <= set(info.others)
    assert info.peeled == ("state_dict",)


def test_the_auxiliary_head_is_loaded_where_one_of_ours_is_like_it():
    weights = reference("tiny_upernet_swin")[0]
    description, _ = described({key: tuple(value.shape) for key, value in weights.items()})
    assert description.spec.auxiliary["index"] == -2
    description, assumed = described(shapes("tiny_unet_s5_d16_fcn"))
    assert not description.spec.auxiliary
    told = next(str(one) for one in assumed if one.what == "auxiliary head")
    assert told == "auxiliary head = 'not read' (keys): it reads a map of the U-Net's decoder"
    vit = shapes("tiny_upernet_vit_mln")
    index = [{}, {"auxiliary_index": -3}]
    found = [described(vit, **asked)[0].spec.auxiliary["index"] for asked in index]
    assert found == [-1, -3]
    said = {"config": "model = dict(auxiliary_head=dict(in_index=2))"}
    assert described(vit, said)[0].spec.auxiliary["index"] == -2
    several = {k.replace("auxiliary_head.", "auxiliary_head.0."): s for k, s in vit.items()}
    assert not described(several)[0].spec.auxiliary
    other = {**vit, "auxiliary_head.convs.0.conv.weight": (4, 12, 3, 3)}
    message = "auxiliary_head.convs.0.conv.weight reads 12 channels, but the maps have (128, "
    assert message in described(other)[0].missing
    assert not described(other, auxiliary=False)[0].spec.auxiliary
    one = {**vit, "auxiliary_head.conv_seg.weight": (1, 4, 1, 1)}
    assert "auxiliary_head.conv_seg.weight has 1 classes" in described(one)[0].missing


def test_options_that_no_key_tells(tmp_path):
    weights, wanted = reference("tiny_upernet_vit_mln")
    old_file(tmp_path / "a.pth", weights)
    inner = {"encoder_options": {"arguments": {"num_heads": 4}}}
    model, report = ts.load_checkpoint(tmp_path / "a.pth", **inner)
    assert difference(model, wanted) > 1e-3
    assert "num_heads = 4 (keyword): given by the caller" in str(report)
    assert ts.inspect_checkpoint(tmp_path / "a.pth", num_heads=4).spec == model.spec
    asked = {"layers": [1, 5, 8, 11], "pools": [1, 2, 3, 5], "rates": None}
    spec = described({k: tuple(v.shape) for k, v in weights.items()}, **asked)[0].spec
    assert (spec.encoder_options["layers"], spec.decoder["pools"]) == tuple(asked.values())[:2]
    for asked in ({"encoder_options": {"final_norm": True}}, {"output_stride": 8}):
        with pytest.raises(CheckpointError, match="was asked for, but the names and shapes"):
            ts.load_checkpoint(tmp_path / "a.pth", **asked)
    said = {"config": "model = dict(backbone=dict(num_heads=4, out_indices=[2, 5, 8, -1]))"}
    spec = described({k: tuple(v.shape) for k, v in weights.items()}, said)[0].spec
    assert spec.encoder_options["arguments"]["num_heads"] == 4
    assert spec.encoder_options["layers"] == [2, 5, 8, 11]
    spec = described(shapes("tiny_deeplabv3_r18"), output_stride=16)[0].spec
    assert (spec.output_stride, spec.decoder["rates"]) == (16, [6, 12, 18])
    said = {"config": "model = dict(decode_head=dict(dilations=(1, 2, 4, 6)))"}
    assert described(shapes("tiny_deeplabv3_r18"), said)[0].spec.decoder["rates"] == [2, 4, 6]
    five = shapes("tiny_psp_r18")
    five |= {k.replace("s.3.", "s.4."): s for k, s in five.items() if "psp_modules.3" in k}
    assert "pools over 5 grids, whose sides no key tells: say pools=" in described(five)[0].missing


def test_a_head_of_one_row_is_binary():
    one = {
        key: (1, *shape[1:]) if "conv_seg" in key else shape
        for key, shape in shapes("tiny_fcn_r18").items()
    }
    spec = described(one, {"dataset_meta": {"classes": ["ground", "water"]}})[0].spec
    assert (spec.mode, spec.threshold, spec.classes) == ("binary", 0.3, ("water",))
    assert described(one, threshold=0.6)[0].spec.threshold == 0.6


class Theirs(nn.Module):
    """A ResNet of torchvision's, which MMSegmentation calls V1b, under an FCN head."""

    def __init__(self, body):
        super().__init__()
        self.backbone = body
        conv = nn.Conv2d(body.fc.in_features, 8, 3, padding=1, bias=False)
        self.decode_head = nn.ModuleDict({
            "convs": nn.ModuleList([nn.ModuleDict({"conv": conv, "bn": nn.BatchNorm2d(8)})]),
            "conv_seg": nn.Conv2d(8, 4, 1),
        })  # fmt: skip
        body.fc = nn.Identity()

    def forward(self, x):
        body, size = self.backbone, x.shape[-2:]
        x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
        x = body.layer4(body.layer3(body.layer2(body.layer1(x))))
        conv = self.decode_head["convs"][0]
        x = self.decode_head["conv_seg"](conv["bn"](conv["conv"](x)).relu())
        return nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def test_a_resnext_with_the_stem_of_v1b_and_any_depth_equals_torchvisions(tmp_path):
    body = torchvision.models.resnet.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 2, 1], groups=32, width_per_group=4,
        replace_stride_with_dilation=[False, True, True],
    )  # fmt: skip
    theirs = randomise(Theirs(body))
    old_file(tmp_path / "a.pth", theirs.state_dict())
    model, _ = assert_equal_logits(theirs, tmp_path / "a.pth", image())
    assert model.spec.encoder_options["arguments"]["layers"] == [1, 1, 2, 1]
    assert model.spec.decoder["num_convs"] == 1


def head(read):
    """Shapes of an FCN head that reads so many channels."""
    return {
        "decode_head.convs.0.conv.weight": (8, read, 1, 1),
        "decode_head.conv_seg.weight": (4, 8, 1, 1),
        "decode_head.conv_seg.bias": (4,),
    }


@pytest.mark.parametrize(
    ("name", "rules", "read", "more"),
    [
        ("resnet50c", RESNETC, 2048, {}),
        ("resnet101c", RESNETC, 2048, {}),
        ("resnet101d", RESNETC, 2048, {}),
        ("resnext101_32x4d", {}, 2048, {}),
        ("hrnet_w18_small_v2", {}, 270, {}),
        ("hrnet_w48", {}, 720, {}),
        ("swin_small_patch4_window7_224", SWIN, 768, {}),
        ("swin_base_patch4_window12_384", SWIN, 1024, {}),
        ("swin_large_patch4_window12_384", SWIN, 1536, {}),
        ("vit_small_patch16_224", VIT, 384, {"img_size": 512}),
        ("vit_large_patch16_224", VIT, 1024, {"img_size": 768}),
    ],
)
def test_published_sizes_are_recognised_by_names_and_shapes(name, rules, read, more):
    known = shapes_of(bare(name, num_classes=0, **more))
    names = renamed(known, rules)
    ends = ("incre_modules.", "downsamp_modules.", "final_layer.")  # HRNet's classifier
    found = {names[key]: shape for key, shape in known.items() if not key.startswith(ends)}
    description, _ = described({**found, **head(read)})
    assert (description.encoder, description.missing) == (name, "")
    assert description.spec.encoder_options.get("arguments", {}) == more


def test_encoders_go_into_models_too(tmp_path):
    weights, _ = reference("tiny_upernet_swin")
    old_file(tmp_path / "a.pth", weights)
    model, _ = ts.load_checkpoint(tmp_path / "a.pth")
    options = model.spec.encoder_options
    other = ts.create_model("fcn", model.spec.encoder, classes=2, encoder_options=options)
    report = ts.transfer_weights(tmp_path / "a.pth", other)
    assert report.source_format == "openmmlab"
    assert report.coverage["encoder"].fraction == 1.0
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(other.encoder.state_dict()[key], value)
    plain = ts.create_model("fcn", "resnet10t", classes=2)
    with pytest.raises(TransferError, match="nothing was changed"):
        ts.transfer_weights(tmp_path / "a.pth", plain)


@pytest.mark.parametrize("name", ["tiny_upernet_swin", "tiny_upernet_vit_ln_mln"])
def test_the_norms_and_the_neck_of_an_encoder_come_with_weights(name, tmp_path):
    weights, _ = reference(name)
    old_file(tmp_path / "a.pth", weights)
    model, _ = ts.load_checkpoint(tmp_path / "a.pth")
    options = {"encoder_options": model.spec.encoder_options, "weights": tmp_path / "a.pth"}
    ours = ts.create_model("upernet", model.spec.encoder, classes=2, channels=8, **options)
    ours = ours.encoder
    beside = [key for key in ours.state_dict() if not key.startswith("model.")]
    assert beside
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


def test_a_bias_that_patch_bias_leaves_out_is_told_with_what_to_do(tmp_path):
    weights, _ = reference("tiny_upernet_vit_mln_patch_bias")
    old_file(tmp_path / "a.pth", weights)
    model, _ = ts.load_checkpoint(tmp_path / "a.pth")
    options = {**model.spec.encoder_options, "patch_bias": False}
    with pytest.raises(
        TransferError,
        match=r"(?s)go nowhere: .*projection\.bias.*Without patch_bias=False .*transfer_weights\(",
    ):
        ts.create_model("upernet", model.spec.encoder, classes=2, encoder_options=options,
                        weights=tmp_path / "a.pth")  # fmt: skip


def test_configs_are_read_and_never_run():
    values = read_config("a = [1, -2.5, (None, 'x')]\nb = {'k': a}\nimport os\nc = os.system('x')")
    assert values == {"a": [1, -2.5, [None, "x"]], "b": {"k": [1, -2.5, [None, "x"]]}, "c": None}
    for text in ("model = dict(", "\0", "x" * 3_000_000, "(" * 5000, "-" * 50_000 + "1"):
        assert read_config(text) == {}
    for meta in ("text", {"CLASSES": 3, "config": 5}, {"cfg": {"model": [1]}, "classes": [1, 2]}):
        hints = read_hints({"meta": meta, "dataset_meta": "x"})
        assert hints.classes is None
        assert hints.number("backbone", "depth") is None
        assert hints.input_spec(3) is None
