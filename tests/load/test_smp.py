import json
import warnings

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

import transferseg as ts
from tests.load.files import assert_equal_logits, fed, image, randomise, relative, saved
from tests.models import tiny_timm  # noqa: F401 - registers small models
from transferseg.errors import CheckpointError, TransferError
from transferseg.load.findings import Findings
from transferseg.load.formats.smp_encoders import find_encoder
from transferseg.load.inspection import examine
from transferseg.load.listing import Listing
from transferseg.models.freezing import freeze, unfreeze
from transferseg.models.smp_style import FixedBorderConv2d, read_as_smp

NONE = {"encoder_weights": None}
NARROW = {"decoder_channels": 16, **NONE}
SKIPS = {"decoder_channels": (32, 16, 16, 8, 8), **NONE}
SHALLOW = {"encoder_depth": 3, "decoder_channels": (32, 16, 16), **NONE}
ATTENDED = {"decoder_attention_type": "scse", "decoder_channels": (32, 16, 16, 16, 16), **NONE}


@pytest.mark.parametrize(
    ("architecture", "encoder", "options", "size"),
    [
        ("Unet", "resnet18", SKIPS, (65, 97)),
        ("Unet", "vgg11", SKIPS, (32, 64)),
        ("Unet", "efficientnet-b0", ATTENDED, (65, 97)),
        ("Unet", "mobilenet_v2", SKIPS, (65, 97)),
        ("Unet", "densenet121", SKIPS, (65, 97)),
        ("UPerNet", "timm-efficientnet-b0", NARROW, (64, 96)),
        ("DeepLabV3Plus", "efficientnet-b0", {"encoder_output_stride": 8, **NARROW}, (64, 96)),
        ("Unet", "resnet18", SHALLOW, (65, 97)),
        ("Unet", "tu-convnext_atto", SKIPS, (65, 97)),
        ("Unet", "tu-tiny_swin", SKIPS, (96, 96)),
        ("PSPNet", "resnet18", {"psp_out_channels": 16, **NONE}, (72, 40)),
        ("UPerNet", "resnet18", NARROW, (64, 96)),
        ("UPerNet", "tu-convnext_atto", NARROW, (64, 96)),
        ("DeepLabV3", "resnet18", {"encoder_output_stride": 16, **NARROW}, (64, 96)),
        ("DeepLabV3Plus", "tu-mobilenetv2_035", NARROW, (64, 96)),
        ("DeepLabV3Plus", "resnet18", NARROW, (64, 96)),
    ],
)
def test_a_bare_state_dict(architecture, encoder, options, size, tmp_path):
    build = getattr(smp, architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of smp's timm-*
        theirs = saved(build(encoder, classes=2, in_channels=1, **options), tmp_path / "a.pth")
    stride = options.get("encoder_output_stride")
    asked = {} if stride is None else {"output_stride": stride}
    model, report = assert_equal_logits(theirs, tmp_path / "a.pth", image(1, *size), **asked)
    assert (report.source_format, model.spec.mode) == ("smp", "multiclass")
    assert report.coverage["encoder"].fraction == 1.0


def written(module, folder):
    randomise(module).save_pretrained(folder)
    return module


def test_a_folder_tells_what_keys_cannot(tmp_path):
    theirs = written(
        smp.DeepLabV3(
            "tu-mobilenetv2_035",
            encoder_output_stride=16,
            decoder_atrous_rates=(2, 4, 6),
            classes=3,
            activation="sigmoid",
            aux_params={"classes": 4},
            **NARROW,
        ),
        tmp_path,
    )

    model, report = ts.load_checkpoint(tmp_path)
    with torch.no_grad():
        assert relative(model(image()).sigmoid(), theirs(image())[0]) < 1e-5
    assert (model.spec.decoder["rates"], model.spec.output_stride) == ([2, 4, 6], 16)
    assert model.spec.mode == "multilabel"
    assert "unused 2: a classification head on the encoder" in str(report)
    assert any("activation = 'sigmoid' (metadata)" in note for note in report.notes)


def test_look_alikes_of_timms_are_listed_and_the_folder_settles_them(tmp_path):
    name = "tf_mobilenetv3_small_100"
    theirs = written(smp.Unet(f"tu-{name}", **SKIPS), tmp_path)
    assert_equal_logits(theirs, tmp_path, image())
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    info = ts.inspect_checkpoint(tmp_path / "a.pth")
    assert (info.architecture, info.encoder, info.in_channels) == ("unet", None, 3)
    assert info.candidates == ("mobilenetv3_small_100", name)
    with pytest.raises(CheckpointError, match="say encoder= one of"):
        ts.load_checkpoint(tmp_path / "a.pth")
    assert_equal_logits(theirs, tmp_path / "a.pth", image(), encoder=name)


@pytest.mark.parametrize(
    ("build", "unread"),
    [
        (lambda: smp.PSPNet("resnet18", classes=2, **NONE), ()),
        (
            lambda: smp.Unet("resnet18", decoder_attention_type="scse", **SHALLOW),
            ("decoder.blocks.2.attention1",),  # no skip comes to it
        ),
    ],
)
def test_what_a_shallow_decoder_leaves_unread_does_not_train(build, unread, tmp_path):
    saved(build(), tmp_path / "a.pth")
    model, _ = ts.load_checkpoint(tmp_path / "a.pth")
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert still == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("encoder.model.layer3", "encoder.model.layer4", *unread))
    }
    freeze(model, "encoder")
    unfreeze(model, "encoder")
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == still
    model.train()(image(height=64, width=64)).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def listing_of(build):
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        state = build().state_dict()
    return Listing(
        "a.pth",
        {key: tuple(value.shape) for key, value in state.items()},
        {key: value.dtype for key, value in state.items()},
    )


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: smp.Unet("resnet18", decoder_use_norm=False, **NONE), "decoder_use_norm=another"),
        (lambda: smp.PSPNet("resnet18", encoder_depth=5, **NONE), "another encoder_depth than 3"),
        (lambda: smp.UPerNet("resnet18", encoder_depth=4, **NONE), "encoder_depth below 5"),
        (lambda: smp.DeepLabV3("resnet18", encoder_depth=4, **NONE), "encoder_depth below 5"),
        (
            lambda: smp.DeepLabV3("resnet18", decoder_aspp_separable=True, **NONE),
            "decoder_aspp_separable=True",
        ),
        (lambda: smp.DeepLabV3Plus("se_resnet50", **NONE), "way of dilating 'legacy_seresnet50'"),
        (lambda: smp.DeepLabV3("tu-test_resnet", **NONE), "'test_resnet', whose shortcuts average"),
        (
            lambda: smp.Unet("tu-resnet18", encoder_depth=4, decoder_channels=(8,) * 4, **NONE),
            "smp leaves stages out",
        ),
        (lambda: smp.Unet("timm-skresnet18", **NONE), "smp's encoder timm-skresnet"),
        (lambda: smp.Unet("mobileone_s0", **NONE), "smp's encoder mobileone"),
        (lambda: smp.Unet("xception", **NONE), "smp's encoder xception"),
        (lambda: smp.Unet("dpn68", **NONE), "smp's encoder dpn"),
        (lambda: smp.FPN("resnet18", **NONE), "smp's FPN is not built; its encoder goes"),
        (lambda: smp.MAnet("resnet18", **NONE), "smp's MAnet is not built; its encoder goes"),
        (lambda: smp.Linknet("resnet18", **NONE), "smp's Linknet is not built"),
        (lambda: smp.UnetPlusPlus("resnet18", **NONE), "smp's UnetPlusPlus is not built"),
    ],
)
def test_what_is_not_built_is_refused_by_name(build, told):
    info = examine(listing_of(build), {}).info
    assert (info.format, info.spec) == ("smp", None)
    assert told in info.missing


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"decoder_interpolation": "bilinear"}, "decoder_interpolation='bilinear'"),
        ({"activation": "tanh"}, "activation='tanh'"),
        ({"encoder_depth": 4}, "encoder_depth=4 and 5 blocks"),
        ({"decoder_use_norm": "inplace"}, "decoder_use_norm='inplace'"),
        ({"drop_path_rate": 0.1}, "drop_path_rate=0.1"),
    ],
)
def test_what_a_folder_asks_for_beyond_its_keys_is_refused(changes, told, tmp_path):
    written(smp.Unet("tu-test_resnet", **SKIPS), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=told):
        ts.load_checkpoint(tmp_path)


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_every_efficientnet_by_its_names_and_with_its_borders(size):
    """Which its shapes alone would not tell; the logits of b0 are compared above."""
    listing = listing_of(lambda: smp.encoders.get_encoder(f"efficientnet-b{size}"))
    shapes = {f"encoder.{key}": shape for key, shape in listing.shapes.items()}
    name = find_encoder(Listing("a.pth", shapes, {}), Findings("a.pth")).name
    assert name == f"tf_efficientnet_b{size}"
    with torch.device("meta"):
        theirs = smp.encoders.get_encoder(f"efficientnet-b{size}")
        ours = timm.create_model(name)
    read_as_smp(ours, name, 32)
    halving = [m for m in theirs.modules() if list(getattr(m, "stride", "")) == [2, 2]]
    borders = [m.border for m in ours.modules() if isinstance(m, FixedBorderConv2d)]
    assert borders == [conv.static_padding.padding for conv in halving]


@pytest.mark.parametrize("encoder", ["resnet18", "tu-convnext_atto", "mobilenet_v2"])
def test_the_encoder_of_any_goes_into_another_model(encoder, tmp_path):
    theirs = saved(smp.FPN(encoder, in_channels=1, **NONE), tmp_path / "a.pth")
    name = {"mobilenet_v2": "mobilenetv2_100"}.get(encoder, encoder.removeprefix("tu-"))
    options = {"style": "smp"} if encoder == "mobilenet_v2" else {}
    told = ts.inspect_checkpoint(tmp_path / "a.pth").missing
    assert ("encoder_options={'style': 'smp'}" in told) is bool(options)
    model = ts.create_model(
        "unet",
        name,
        classes=1,
        in_channels=1,
        encoder_options=options,
        weights=tmp_path / "a.pth",
    )
    with torch.no_grad():
        ours = model.eval().encoder(image(1))
        wanted = [map_ for map_ in theirs.encoder(image(1))[1:] if map_.shape[1]]
        assert max(map(relative, ours, wanted)) < 1e-5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: dict(list(s.items())[::2]) | {k: s[k] for k in s if "decoder" in k}, "encoder"),
        (
            lambda s: {**s, "decoder.conv.0.weight": s["decoder.conv.0.weight"].transpose(0, 1)},
            r"'decoder\.conv\.0\.weight' is|'segmentation_head\.0\.weight' is",
        ),
        (lambda s: {**s, "decoder.extra": torch.zeros(2)}, r"go nowhere: decoder\.extra"),
        (lambda s: {f"net.{k}": v for k, v in s.items()}, r"net\.encoder\.conv1\.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_its_keys(change, told, tmp_path):
    theirs = smp.PSPNet("resnet18", psp_out_channels=16, **NONE)
    before = fed(theirs)
    torch.save(change(theirs.state_dict()), tmp_path / "a.pth")
    with pytest.raises((CheckpointError, TransferError), match=told):
        ts.load_checkpoint(tmp_path / "a.pth")
    assert all(torch.equal(before[k], v) for k, v in theirs.state_dict().items())
