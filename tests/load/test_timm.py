import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

import transferseg as ts
from tests.load.files import assert_equal_logits, image, randomise, relative, saved
from tests.models import tiny_timm  # noqa: F401 - registers small models
from transferseg.errors import CheckpointError, TransferError
from transferseg.load import encoders
from transferseg.load.inspection import examine
from transferseg.load.listing import Listing
from transferseg.load.timm_index import Layout, _row, _stored, bare, digest, models_of, shapes_of

SIDES = {
    "test_vit": 160,
    "test_efficientnet": 64,
    "test_convnext": 64,
    "test_mambaout": 64,
    "test_nfnet": 64,
    "tiny_swin": 96,
    "tiny_hrnet": 64,
    "tiny_deit_distilled": 64,
    "resnetv2_50": 64,
}


@pytest.mark.parametrize("name", [n for n in SIDES if n != "resnetv2_50"])
def test_a_classifier_with_a_head_of_its_own_is_built_whole(name, tmp_path):
    theirs = saved(timm.create_model(name, num_classes=4, in_chans=1), tmp_path / "a.pth")
    picture = image(1, SIDES[name], SIDES[name])
    model, report = assert_equal_logits(theirs, tmp_path / "a.pth", picture)
    assert (model.spec.encoder, model.spec.decoder) == (name, {"head": "timm"})
    assert report.coverage["encoder"].fraction == 1.0
    model.save_pretrained(tmp_path / "ours")
    again = ts.Classifier.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again(picture), model(picture))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_resnet_becomes_our_own_classifier(channels, tmp_path):
    theirs = saved(timm.create_model("resnet10t", num_classes=3, in_chans=channels), tmp_path / "a")
    model, _ = assert_equal_logits(theirs, tmp_path / "a", image(channels))
    assert (model.spec.encoder, model.spec.input.channels) == ("resnet10t", channels)
    assert isinstance(model.head, torch.nn.Linear)
    unet = ts.create_model("unet", "resnet10t", classes=2, in_channels=channels)
    moved = ts.transfer_weights(model, unet)
    assert moved.coverage["encoder"].fraction == 1.0


def test_a_whole_classifier_gives_its_encoder_to_a_segmenter(tmp_path):
    saved(timm.create_model("test_efficientnet", num_classes=4), tmp_path / "a.pth")
    model, _ = ts.load_checkpoint(tmp_path / "a.pth")
    unet = ts.create_model("unet", "test_efficientnet", classes=2)
    report = ts.transfer_weights(model, unet)
    assert report.coverage["encoder"].fraction == 1.0
    assert "encoder.model.classifier.weight" in report.plan.unused
    assert torch.equal(unet.encoder.model.conv_stem.weight, model.encoder.model.conv_stem.weight)


def test_look_alikes_are_listed_and_asked_for(tmp_path):
    name = "tf_efficientnet_b0"
    theirs = saved(timm.create_model(name, num_classes=2), tmp_path / "a.pth")
    info = ts.inspect_checkpoint(tmp_path / "a.pth")
    assert info.candidates == ("efficientnet_b0", "efficientnet_blur_b0", name)
    assert (info.encoder, info.spec, info.classes) == (None, None, 2)
    with pytest.raises(CheckpointError, match=f"say encoder= one of efficientnet_b0.*{name}"):
        ts.load_checkpoint(tmp_path / "a.pth")
    assert_equal_logits(theirs, tmp_path / "a.pth", image(), encoder=name)
    with torch.no_grad():
        other, _ = ts.load_checkpoint(tmp_path / "a.pth", encoder="efficientnet_b0")
        assert relative(other(image()), theirs(image())) > 1e-3
    with pytest.raises(CheckpointError, match=r"encoder='resnet50' was asked for.*efficientnet_b0"):
        ts.load_checkpoint(tmp_path / "a.pth", encoder="resnet50")


def test_a_hub_folder_settles_what_keys_cannot_tell(tmp_path):
    theirs = randomise(timm.create_model("tf_efficientnet_b0", num_classes=2))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "tf_efficientnet_b0",
        "label_names": ["cat", "dog"],
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.6]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, report = assert_equal_logits(theirs, tmp_path, image())
    assert model.spec.classes == ("cat", "dog")
    assert (model.spec.input.mean, model.spec.input.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.6))
    assert any("encoder = 'tf_efficientnet_b0' (metadata)" in note for note in report.notes)
    # The metadata is a hint: shapes that say otherwise decide.
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    assert "tf_efficientnet_b0" in ts.inspect_checkpoint(tmp_path).candidates


@pytest.mark.parametrize(
    ("name", "given", "side"),
    [
        ("resnet10t", {"global_pool": "max"}, 64),
        ("test_vit", {"global_pool": "avg"}, 160),
        ("test_vit", {"img_size": 96}, 96),
    ],
)
def test_a_hub_folder_s_arguments_of_the_builder_count(name, given, side, tmp_path):
    theirs = randomise(timm.create_model(name, num_classes=3, **given)).eval()
    save_for_hf(theirs, tmp_path, safe_serialization=True)
    model, report = assert_equal_logits(theirs, tmp_path, image(3, side, side))
    arguments = model.spec.encoder_options["arguments"]
    assert arguments.items() >= {k: v for k, v in given.items() if k != "img_size"}.items()
    assert any("encoder_options = {'arguments': {" in note for note in report.notes)
    model.save_pretrained(tmp_path / "ours")
    with torch.no_grad():
        again = ts.load_checkpoint(tmp_path / "ours")[0]
        assert torch.equal(again(image(3, side, side)), model(image(3, side, side)))


def test_arguments_that_the_model_has_anyway_change_nothing(tmp_path):
    save_for_hf(timm.create_model("resnet10t", num_classes=3), tmp_path, safe_serialization=True)
    spec = ts.inspect_checkpoint(tmp_path).spec
    assert (spec.encoder_options, spec.decoder) == ({}, {})


def test_encoder_options_say_how_a_bare_file_s_model_was_built(tmp_path):
    theirs = timm.create_model("resnet10t", num_classes=3, global_pool="max").eval()
    saved(theirs, tmp_path / "a.pth")
    options = {"arguments": {"global_pool": "max"}}
    assert_equal_logits(theirs, tmp_path / "a.pth", image(), encoder_options=options)
    with pytest.raises(CheckpointError, match="give output_stride= beside the options"):
        ts.load_checkpoint(tmp_path / "a.pth", encoder_options={"arguments": {"output_stride": 8}})


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_args": {"output_stride": 8}}, "output_stride"),
        ({"model_args": {"no_such": 1}}, "no_such"),
        ({"global_pool": "sideways"}, "sideways"),
    ],
)
def test_a_hub_folder_whose_model_is_not_built_is_refused(config, told, tmp_path):
    save_file(timm.create_model("resnet10t", num_classes=2).state_dict(),
              tmp_path / "model.safetensors")  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t", **config}))
    with pytest.raises(CheckpointError, match=told):
        ts.load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "resnet10t.nonsense", "label_names": [{"a": 1}, {"b": 2}]},
        {"label_names": {"0": "cat"}, "mean": [], "std": []},
        {"pretrained_cfg": {"mean": ["a"] * 3, "std": [None] * 3}},
        {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0, 0, 0]}},
        {"mean": [10**400] * 3, "std": [1, 1, 1], "model_args": [], "global_pool": []},
    ],
)
def test_a_config_of_nonsense_says_nothing(config, tmp_path):
    save_file(timm.create_model("resnet10t", num_classes=2).state_dict(),
              tmp_path / "model.safetensors")  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    info = ts.inspect_checkpoint(tmp_path)
    assert info.spec.classes == ("class_0", "class_1")
    assert info.spec.input.mean == encoders.statistics("resnet10t", 3).mean


def test_look_alikes_of_other_statistics_are_told():
    listing = Listing("a.pth", shapes_of(bare("deit_tiny_patch16_224")), {})
    info = examine(listing, {}).info
    why = next(one.why for one in info.assumed if one.what == "input_spec")
    assert "'deit_tiny_patch16_224' computes the same on mean (0.485, 0.456, 0.406)" in why
    asked = examine(listing, {"encoder": "deit_tiny_patch16_224"}).info
    assert asked.spec.input.mean == (0.485, 0.456, 0.406)


def test_channels_of_a_stem_that_folds_pixels():
    shapes = shapes_of(bare("tresnet_m", in_chans=1))
    assert encoders.stem_channels("tresnet_m", shapes) == 1
    assert encoders.stem_channels("tresnet_m", shapes_of(bare("tresnet_m"))) == 3


def test_models_that_compute_the_same_are_no_candidates():
    shapes = shapes_of(bare("deit_tiny_patch16_224"))
    assert models_of(shapes) == ["deit_tiny_patch16_224", "vit_tiny_patch16_224"]
    assert encoders.candidates(shapes) == ["vit_tiny_patch16_224"]


def test_a_file_without_a_head_is_an_encoder(tmp_path):
    theirs = saved(timm.create_model("resnet10t", num_classes=0), tmp_path / "a.pth")
    info = ts.inspect_checkpoint(tmp_path / "a.pth")
    assert (info.architecture, info.encoder, info.classes) == ("encoder", "resnet10t", 0)
    with pytest.raises(
        CheckpointError, match=r"create_model.*'resnet10t', weights=path.*transfer_"
    ):
        ts.load_checkpoint(tmp_path / "a.pth")
    model = ts.create_model("unet", "resnet10t", classes=2, weights=tmp_path / "a.pth")
    assert torch.equal(model.encoder.model.conv1[0].weight, theirs.conv1[0].weight)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv2_035", "vgg11"])
def test_the_index_is_that_of_this_timm(name):
    assert _stored()[name] == _row(name)


def test_models_that_the_index_lacks_are_built():
    assert "tiny_swin" not in _stored()
    assert models_of(shapes_of(bare("tiny_swin"))) == ["tiny_swin"]


def test_no_name_and_no_shape_is_left_out_of_the_digest():
    layout = Layout(("conv1",), ("fc",))
    shapes = shapes_of(bare("test_resnet"))
    whole = digest(shapes, layout)
    for key, shape in shapes.items():
        changed = {k: s for k, s in shapes.items() if k != key}
        free = key.startswith("fc.") or key.endswith("num_batches_tracked")
        assert (digest(changed, layout) == whole) is free
        other = {**shapes, key: (*shape[:-1], shape[-1] + 1) if shape else (1,)}
        assert (digest(other, layout) == whole) is free


def half(state):
    return dict(list(state.items())[::2])


def transposed(state):
    return {**state, "layer1.0.conv2.weight": state["layer1.0.conv2.weight"].flatten(1).T.clone()}


@pytest.mark.parametrize(
    ("change", "told", "asked"),
    [
        (lambda s: {f"net.{k}": v for k, v in s.items()}, r"net\.conv1\.0", r"net\.conv1\.0"),
        (half, r"no format that is known.*conv1\.0\.weight", r"get nothing: encoder\.model\."),
        (transposed, r"do not all fit", r"'layer1\.0\.conv2\.weight' is \("),
        (lambda s: {**s, "queue": torch.zeros(3)}, "do not all fit", r"go nowhere: queue"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_told(change, told, asked, tmp_path):
    state = change(randomise(timm.create_model("resnet10t", num_classes=2)).state_dict())
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=told):
        ts.load_checkpoint(tmp_path / "a.pth")
    with pytest.raises((CheckpointError, TransferError), match=asked):
        ts.load_checkpoint(tmp_path / "a.pth", encoder="resnet10t")
