"""Models of every kind, built, saved and refused; equality with libraries of the same layout."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision

import transferseg as ts
from tests.models.families import small
from tests.models.randomise import randomise
from tests.references.compare import relative
from transferseg.errors import CheckpointError, SpecError
from transferseg.models import DECODERS

ENCODERS = ["resnet10t", "vgg11", "test_convnext", "test_vit", "tiny_swin", "tiny_hrnet"]


@pytest.mark.parametrize("architecture", sorted(DECODERS))
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 40)])
def test_logits_have_the_size_of_the_image(architecture, encoder, size):
    model = small(architecture, encoder, classes=3).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 1, *size))
    assert logits.shape == (2, 3, *size)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_classifies_and_reconstructs(encoder):
    for model in (
        ts.create_classifier(encoder, classes=3, in_channels=1),
        ts.create_autoencoder(encoder, in_channels=1, channels=[16, 16, 8, 8, 8]),
    ):
        model(torch.randn(2, 1, 97, 131)).square().mean().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert [name for name, grad in grads.items() if grad is None] == []


@pytest.mark.parametrize("architecture", sorted(DECODERS))
@pytest.mark.parametrize("in_channels", [1, 3, 4])
def test_saved_and_loaded_models_are_equal(architecture, in_channels, tmp_path):
    model = randomise(small(architecture, in_channels=in_channels, classes=["a", "b"]))
    model.save_pretrained(tmp_path / "model")
    loaded = ts.Segmenter.from_pretrained(tmp_path / "model")
    image = torch.randn(1, in_channels, 40, 56)
    assert loaded.spec == model.spec
    assert torch.equal(loaded(image), model(image))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("encoder", ["resnet18", "resnext50_32x4d"])
def test_unet_equals_smp_over_resnet_and_resnext(encoder):
    theirs = randomise(smp.Unet(encoder, encoder_weights=None, classes=2))
    ours = ts.create_model("unet", encoder, classes=2).eval()
    state = {
        key.replace("segmentation_head.0.", "head.").replace("encoder.", "encoder.model."): value
        for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(state)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert relative(ours(image), theirs(image)) < 1e-5


@pytest.mark.parametrize("encoder", ["vgg11", "vgg11_bn"])
def test_unet_equals_smp_over_vgg_in_smps_layout(encoder):
    theirs = randomise(smp.Unet(encoder, encoder_weights=None, classes=2))
    ours = ts.create_model("unet", encoder, classes=2, full_resolution_skip=False, center=True)
    state = {
        key.replace("segmentation_head.0.", "head.").replace("encoder.", "encoder.model."): value
        for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(state)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert relative(ours.eval()(image), theirs(image)) < 1e-5


def test_unet_over_vgg_uses_the_full_resolution_skip():
    assert small("unet", "vgg11").decoder.skip_strides == [16, 8, 4, 2, 1]
    assert small("unet").decoder.skip_strides == [16, 8, 4, 2]


def test_deeplabv3_decoder_equals_smps():
    theirs = smp.decoders.deeplabv3.decoder.DeepLabV3Decoder(
        in_channels=512,
        out_channels=32,
        atrous_rates=(12, 24, 36),
        aspp_separable=False,
        aspp_dropout=0.5,
    )
    ours = ts.create_model("deeplabv3", "resnet18", classes=2, channels=32).decoder.eval()
    ours.load_state_dict(randomise(theirs).state_dict())
    feature = torch.randn(2, 512, 12, 10)
    assert torch.equal(ours([feature], (96, 80)), theirs([feature]))


def test_deeplabv3_equals_torchvisions_and_its_weights_move_by_rename():
    theirs = randomise(
        torchvision.models.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=2
        )
    )
    ours = ts.create_model("deeplabv3", "resnet50", classes=2).eval()
    report = ts.transfer_weights(
        theirs,
        ours,
        parts=("encoder", "decoder", "head"),
        rename={
            r"backbone\.": "encoder.model.",
            r"classifier\.0\.": "decoder.aspp.",
            r"classifier\.1\.": "decoder.conv.",
            r"classifier\.2\.": "decoder.bn.",
            r"classifier\.4\.": "head.",
        },
    )
    report.raise_if_below(encoder=1.0, decoder=1.0, head=1.0)
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        wanted = theirs(image)["out"]
        assert float((ours(image) - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_atrous_rates_follow_the_stride():
    for stride, rate in ((8, 12), (16, 6), (32, 3)):
        model = small("deeplabv3", output_stride=stride)
        dilations = [
            m.dilation[0] for m in model.decoder.modules() if isinstance(m, torch.nn.Conv2d)
        ]
        assert [d for d in dilations if d > 1] == [rate, 2 * rate, 3 * rate]


def test_autoencoder_gives_the_image_back_in_shape():
    for size in ((64, 64), (45, 70)):
        model = ts.create_autoencoder("vgg11", in_channels=4, channels=[16, 16, 8, 8, 8]).eval()
        assert model(torch.randn(1, 4, *size)).shape == (1, 4, *size)


def test_classifier_pools_over_the_whole_image():
    model = randomise(ts.create_classifier("resnet10t", classes=["a", "b"], in_channels=1))
    image = torch.randn(2, 1, 64, 80)
    wanted = model.head(model.encoder(image)[-1].mean((2, 3)))
    assert torch.equal(model(image), wanted)


def test_weights_from_a_path_fill_the_whole_encoder(tmp_path):
    source = randomise(ts.create_classifier("resnet10t", classes=3))
    path = tmp_path / "timm.pth"
    torch.save(source.encoder.model.state_dict(), path)
    colour = ts.create_model("unet", "resnet10t", classes=2, weights=path)
    grey = ts.create_model("unet", "resnet10t", classes=2, in_channels=1, weights=path)
    for key, value in source.encoder.state_dict().items():
        assert torch.equal(colour.encoder.state_dict()[key], value)
    stem = source.transfer_stem()[0]
    wanted = source.get_parameter(stem).sum(1, keepdim=True)
    torch.testing.assert_close(grey.get_parameter(stem), wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("unte", "resnet10t"), "unknown architecture 'unte'.*Did you mean 'unet'"),
        (("unet", "resnet10x"), "unknown encoder 'resnet10x'"),
        (("unet", 18), "given by its name, got 18"),
        ((None, "resnet10t"), "unknown architecture None"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(SpecError, match=message):
        ts.create_model(*arguments, classes=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chanels": [1]}, "Did you mean 'channels'"),
        ({"channels": [8, 8]}, "5 whole numbers"),
        ({"output_stride": 8}, r"output strides \[32, 16\], got 8"),
        ({"classes": 0}, "number from 1"),
        ({"classes": ["a", "a"]}, "distinct"),
        ({"classes": 3, "mode": "binary"}, "does not fit 3"),
        ({"threshold": 1.5}, "between 0 and 1"),
        ({"classes": None}, "got None"),
        ({"classes": 2.0}, r"got 2\.0"),
        ({"threshold": "a"}, "between 0 and 1, got 'a'"),
        ({"output_stride": "32"}, r"output strides \[32, 16\], got '32'"),
        ({"in_channels": 1.5}, r"whole number from 1 to 65536, got 1\.5"),
        ({"weights": "nope"}, "timm knows no weights 'resnet10t.nope'"),
        ({"input_spec": "RGB"}, "must be an InputSpec, got 'RGB'"),
        ({"encoder_options": ["style"]}, r"dict of values by name, got \['style'\]"),
        ({"input_spec": ts.InputSpec(channels=3)}, "3 channels, but in_channels is 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(SpecError, match=message):
        ts.create_model("unet", "resnet10t", **{"classes": 2, "in_channels": 1, **options})


@pytest.mark.parametrize("option", [{"skips": False}, {"stride": 8}, {"attention": "scse"}])
def test_an_autoencoder_reads_the_deepest_map_alone(option):
    with pytest.raises(SpecError, match=f"leave {next(iter(option))}= out"):
        ts.create_autoencoder("resnet10t", **option)


def test_checkpoint_folders_that_do_not_fit(tmp_path):
    model = ts.create_autoencoder("resnet10t", in_channels=1, channels=[8, 8, 8, 8, 8])
    model.save_pretrained(tmp_path / "ae")
    with pytest.raises(CheckpointError, match=r"ae: Segmenter builds .* spec says 'autoencoder'"):
        ts.Segmenter.from_pretrained(tmp_path / "ae")
    with pytest.raises(CheckpointError, match=r"nowhere.* does not exist"):
        ts.Segmenter.from_pretrained(tmp_path / "nowhere")
    config = json.loads((tmp_path / "ae" / "config.json").read_text())
    config["spec"]["encoder"] = "resnet18"
    (tmp_path / "ae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="weights do not fit the spec"):
        ts.Autoencoder.from_pretrained(tmp_path / "ae")
    config["spec"]["encodr"] = 1
    (tmp_path / "ae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="Did you mean 'encoder'"):
        ts.Autoencoder.from_pretrained(tmp_path / "ae")


def test_a_failed_write_leaves_the_former_checkpoint(tmp_path, monkeypatch):
    first = randomise(small("unet"))
    first.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transferseg.transfer.files.save_file", disk_full)
    with pytest.raises(OSError, match="No space"):
        randomise(small("unet"), seed=2).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("encoder", ["hrnet_w18_small", "dla34"])
def test_encoders_that_need_a_multiple_of_32_are_padded(encoder):
    model = ts.create_model("unet", encoder, classes=2, in_channels=1).eval()
    assert ts.encoder_capabilities(encoder).multiple == 32
    with torch.no_grad():
        assert model(torch.randn(1, 1, 33, 47)).shape == (1, 2, 33, 47)


def test_whole_timm_checkpoints_fill_an_encoder(tmp_path):
    for name in ("test_efficientnet", "pvt_v2_b0", "mobilenetv3_small_050"):
        whole = timm.create_model(name)
        torch.save(whole.state_dict(), tmp_path / f"{name}.pth")
        model = ts.create_model("unet", name, classes=2, weights=tmp_path / f"{name}.pth")
        state = whole.state_dict()
        for key, value in model.encoder.model.state_dict().items():
            assert torch.equal(value, state[key])


def test_the_input_spec_follows_the_weights(tmp_path):
    spec = ts.InputSpec(channels=3, value_range=(0, 255), mean=(120, 110, 100), std=(60, 60, 60))
    ts.create_classifier("resnet10t", classes=2, input_spec=spec).save_pretrained(tmp_path)
    assert ts.create_model("unet", "resnet10t", classes=2, weights=tmp_path).spec.input == spec
    grey = ts.create_model("unet", "resnet10t", classes=2, in_channels=1, weights=tmp_path)
    assert (grey.spec.input.value_range, grey.spec.input.mean) == ((0.0, 255.0), (110.0,))
    from transferseg.models.encoders import encoder_input

    assert encoder_input("efficientnet_b0.ra4_e3600_r224_in1k", 3).mean == (0.5, 0.5, 0.5)
    assert encoder_input("efficientnet_b0", 3).mean != (0.5, 0.5, 0.5)


def test_hub_names_that_cannot_be_read_and_options_that_do_nothing(tmp_path, monkeypatch):
    # The variable of that name is read at import, too late; without it the client tries again for
    # most of a minute.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # Releases before 1.0 ask only when they open a session, and keep it.
    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()
    for name in ("missing", "someone/missing", "runs/a/b", tmp_path / "no"):
        with pytest.raises(CheckpointError, match=r"missing|runs|no"):
            ts.Segmenter.from_pretrained(name)
    model = small("unet")
    with pytest.raises(CheckpointError, match="tranfser"):
        model.save_pretrained(tmp_path, tranfser=None)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="revision"):
        ts.Segmenter.from_pretrained(tmp_path, revision="main")
    with pytest.raises(SpecError, match="encoder='resnet18', weights='a1_in1k'"):
        ts.create_model("unet", "resnet18.a1_in1k", classes=2)


def test_a_model_goes_to_the_hub_and_comes_back(tmp_path, monkeypatch):
    """A folder in the hub's place, where the mixin asks it: the real network is never touched."""
    hub, asked = tmp_path / "hub", []

    class FakeApi:
        def __init__(self, **options):
            asked.append(("api", options))

        def create_repo(self, *, repo_id, **options):
            asked.append(("create_repo", options))
            return SimpleNamespace(repo_id=f"someone/{repo_id}")

        def upload_folder(self, *, repo_id, folder_path, **options):
            asked.append(("upload_folder", options))
            shutil.copytree(folder_path, hub / repo_id)
            return f"https://hub/{repo_id}/commit/1"

    def download(repo_id, filename, **options):
        asked.append(("download", {key: options[key] for key in ("revision", "token")}))
        return str(hub / repo_id / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", FakeApi)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    model = randomise(small("unet"))
    address = model.save_pretrained(tmp_path / "lung", push_to_hub=True, private=True, token="t")
    assert address == "https://hub/someone/lung/commit/1"
    there = hub / "someone" / "lung"
    assert {path.name for path in there.iterdir()} == {
        "model.safetensors", "config.json", "README.md"
    }  # fmt: skip
    for name in ("model.safetensors", "config.json"):
        assert (there / name).read_bytes() == (tmp_path / "lung" / name).read_bytes()
    assert "model_hub_mixin" in (there / "README.md").read_text()
    loaded = ts.Segmenter.from_pretrained("someone/lung", revision="main", token="t")
    assert loaded.spec == model.spec
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert asked[0] == ("api", {"token": "t"})
    assert asked[1] == ("create_repo", {"private": True, "exist_ok": True})
    assert {"revision": "main", "token": "t"} in [options for _, options in asked]
    with pytest.raises(CheckpointError, match=r"Autoencoder builds autoencoders.*'unet'"):
        ts.Autoencoder.from_pretrained("someone/lung")


def test_creating_does_not_disturb_the_random_state_or_need_the_default_device():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    ts.encoder_capabilities("resnet14t")
    assert torch.equal(torch.rand(1), wanted)
    with torch.device("meta"):
        assert ts.encoder_capabilities("resnet26t").multiple == 1


def test_compiled_parts_are_saved_under_their_own_names(tmp_path):
    model = small("unet").eval()
    model.encoder = torch.compile(model.encoder)
    model.save_pretrained(tmp_path)
    assert ts.Segmenter.from_pretrained(tmp_path).spec == model.spec
