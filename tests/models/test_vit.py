"""Plain ViTs as encoders: any size, timm's features and names, options, transfer."""

import pytest
import timm
import torch

import tests.models.tiny_timm  # noqa: F401 - registers its models
import transferseg as ts
from tests.models.randomise import randomise
from transferseg.errors import CheckpointError, SpecError, TransferError
from transferseg.models import Encoder, encoder_capabilities

TINY = ["test_vit", "test_vit2", "test_vit3", "tiny_dinov2", "tiny_deit_distilled"]
SMALL = {"channels": [16, 16, 8, 8, 8]}


def unet(encoder="test_vit", **options):
    return ts.create_model("unet", encoder, **{"classes": 2, **SMALL, **options})


def without_gradient(model):
    return [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", TINY)
def test_own_maps_equal_timms_at_its_own_size(name):
    encoder = randomise(Encoder(name, options={"pyramid": "none"}))
    theirs = timm.create_model(name)
    theirs.load_state_dict(encoder.model.state_dict(), strict=False)
    side = theirs.patch_embed.img_size[0]
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    depth, patch = len(theirs.blocks), theirs.patch_embed.patch_size[0]
    layers = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
    with torch.no_grad():
        wanted = theirs.eval().forward_intermediates(image, indices=layers, intermediates_only=True)
        for ours, map_ in zip(encoder(image), wanted, strict=True):
            torch.testing.assert_close(ours, map_, rtol=1e-5, atol=1e-5)
    assert encoder.strides == (patch,) * 4


def test_the_position_grid_follows_the_size_as_in_timm():
    encoder = randomise(Encoder("test_vit", options={"pyramid": "none"}))
    theirs = timm.create_model("test_vit", num_classes=0, dynamic_img_size=False).eval()
    theirs.load_state_dict(encoder.model.state_dict(), strict=False)
    theirs.set_input_size((64, 112))
    image = torch.randn(1, 3, 64, 112, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs.forward_intermediates(image, indices=[5], intermediates_only=True)[0]
        torch.testing.assert_close(encoder(image)[-1], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_dinov3_qkvb", "eva02_tiny_patch14_224"])
def test_rotary_positions_follow_the_size(name):
    encoder = Encoder(name, options={"layers": [1], "channels": 8}).eval()
    keys = {key: v.shape for key, v in timm.create_model(name).state_dict().items()}
    kept = {key: v.shape for key, v in encoder.model.state_dict().items()}
    assert kept == {key: keys[key] for key in keys if key not in encoder.pruned}
    for size in ((32, 32), (61, 100)):
        assert encoder(torch.randn(1, 3, *size))[0].shape[-2:] == (-(-size[0] // 4), size[1] // 4)


@pytest.mark.parametrize(
    ("name", "patch", "depth", "width"),
    [
        ("vit_tiny_patch16_224", 16, 12, 192),
        ("vit_large_patch16_384", 16, 24, 1024),
        ("vit_base_patch32_224", 32, 12, 768),
        ("vit_base_patch8_224", 8, 12, 768),
        ("deit3_small_patch16_224", 16, 12, 384),
        ("deit_tiny_distilled_patch16_224", 16, 12, 192),
        ("vit_small_patch14_reg4_dinov2", 14, 12, 384),
        ("vit_large_patch16_dinov3", 16, 24, 1024),
        ("eva02_base_patch14_448", 14, 12, 768),
    ],
)
def test_published_vits_are_known_without_their_weights(name, patch, depth, width):
    found = encoder_capabilities(name)
    assert (found.plain.patch, found.plain.depth, found.plain.width) == (patch, depth, width)
    assert (found.strides, found.channels, found.multiple) == ((4, 8, 16, 32), (256,) * 4, patch)


@pytest.mark.parametrize("name", ["test_vit", "tiny_dinov2"])
@pytest.mark.parametrize("pyramid", ["simple", "multilevel"])
@pytest.mark.parametrize("size", [(32, 32), (33, 200), (97, 131), (140, 84)])
def test_maps_have_their_strides_at_any_size(name, pyramid, size):
    encoder = Encoder(name, options={"pyramid": pyramid, "channels": 8}).eval()
    for feature, stride in zip(encoder(torch.randn(1, 3, *size)), encoder.strides, strict=True):
        for given, side in zip(feature.shape[-2:], size, strict=True):
            most = -(-side // stride)
            # half of an odd number of patches is rounded down, as in the published pyramids
            assert (max(1, side // 32) if stride == 32 else most) <= given <= most


def test_blocks_after_the_last_layer_are_not_built():
    encoder = Encoder("test_vit", options={"layers": [0, 1, 2, 3]})
    assert len(encoder.model.blocks) == 4
    assert {key.split(".")[1] for key in encoder.pruned if key.startswith("blocks")} == {"4", "5"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"piramid": "simple"}, "Did you mean 'pyramid'"),
        ({"pyramid": "simpel"}, "unknown pyramid 'simpel'.*Did you mean 'simple'"),
        ({"layers": [0, 1]}, r"one or four of its blocks 0 to 5, rising, such as \[0, 2, 3, 5\]"),
        ({"layers": [3, 2, 1, 0]}, "rising"),
        ({"layers": [2, 3, 4, 6]}, "blocks 0 to 5"),
        ({"layers": "last"}, "got 'last'"),
        ({"channels": 0}, "whole number from 1, got 0"),
        ({"pyramid": "none", "channels": 8}, "64 channels; leave channels out"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(SpecError, match=message):
        unet(encoder_options=options)


def test_other_encoders_have_no_options():
    with pytest.raises(SpecError, match=r"pyramid: of plain ViTs alone, .* 'resnet10t' is not"):
        unet("resnet10t", encoder_options={"pyramid": "simple"})
    with pytest.raises(SpecError, match=r"option of encoder 'hrnet_w18' .* mean 'style'\?"):
        unet("hrnet_w18", encoder_options={"styl": "mmseg"})
    with pytest.raises(SpecError, match=r"output stride 8 \(timm does not build it dilated\)"):
        Encoder("test_vit", output_stride=8)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test_vit_relpos", r"Input width \(192\) doesn't match"),
        ("vit_tiny_r_s16_p8_224", "begins with convolutions"),
    ],
)
def test_vits_for_one_image_size_say_which_take_any(name, why):
    with pytest.raises(
        SpecError, match=f"'{name}' does not take images of any size: .*{why}.*vit_"
    ):
        encoder_capabilities(name)


def test_a_reader_of_one_map_takes_the_vits_own():
    model = ts.create_model("deeplabv3", "test_vit", classes=2, channels=16)
    assert (model.encoder.pyramid, model.encoder.strides[-1]) == (None, 16)
    read = ts.create_model(
        "deeplabv3", "test_vit", classes=2, channels=16, encoder_options={"pyramid": "multilevel"}
    )
    assert read.encoder.strides[-1] == 32
    read(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert without_gradient(read) == []
    assert not any(p.requires_grad for p in read.encoder.pyramid.convs[:3].parameters())


def test_a_classifier_pools_the_last_block():
    model = randomise(ts.create_classifier("test_vit", classes=3))
    theirs = timm.create_model("test_vit", num_classes=3, global_pool="avg", fc_norm=False)
    theirs.load_state_dict(model.encoder.model.state_dict(), strict=False)
    theirs.head.load_state_dict(model.head.state_dict())
    theirs.norm = torch.nn.Identity()
    image = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(image), theirs.eval()(image), rtol=1e-5, atol=1e-5)
    model.train()(image).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_classifier_to_encoder_is_the_identity_and_the_pyramid_is_left():
    classifier = randomise(ts.create_classifier("test_vit", classes=3, in_channels=1))
    model = unet(in_channels=1)
    report = ts.transfer_weights(classifier, model, parts="encoder.model")
    report.raise_if_below(**{"encoder.model": 1.0})
    for key, value in classifier.encoder.model.state_dict().items():
        assert torch.equal(model.encoder.model.state_dict()[key], value)
    whole = ts.transfer_weights(classifier, model)
    assert {key.split(".")[1] for key in whole.plan.left} == {"pyramid"}
    assert set(whole.plan.left.values()) == {"transferseg files may lack encoder.pyramid.*"}
    assert whole.coverage["encoder"].fraction < 1


def test_an_autoencoders_hand_off_keeps_the_function():
    autoencoder = ts.create_autoencoder("test_vit", **SMALL)
    image = torch.randn(2, 3, 97, 131, generator=torch.Generator().manual_seed(1))
    autoencoder(image).square().sum().backward()
    assert without_gradient(autoencoder) == []
    randomise(autoencoder)
    model = unet().eval()
    report = ts.transfer_weights(autoencoder, model, parts=("encoder", "decoder"))
    assert report.coverage["encoder"].fraction == 1
    with torch.no_grad():
        features = autoencoder.encoder(image)
        wanted = autoencoder.decoder(features, (97, 131))
        assert torch.equal(model.decoder(model.encoder(image), (97, 131)), wanted)
    assert all(p.requires_grad for p in model.parameters())


def test_a_pyramid_of_another_kind_does_not_vanish_silently():
    other = unet(encoder_options={"pyramid": "multilevel"})
    with pytest.raises(TransferError, match=r"go nowhere: encoder\.pyramid\.lateral_convs"):
        ts.transfer_weights(other, unet())


@pytest.mark.parametrize("name", TINY)
def test_whole_timm_checkpoints_fill_an_encoder(name, tmp_path):
    whole = timm.create_model(name, num_classes=7).state_dict()
    torch.save(whole, tmp_path / "vit.pth")
    model = unet(name, weights=tmp_path / "vit.pth")
    for key, value in model.encoder.model.state_dict().items():
        assert torch.equal(value, whole[key])


@pytest.mark.parametrize("name", ["test_vit", "tiny_dinov2", "tiny_deit_distilled"])
def test_a_checkpoint_of_another_image_size_has_its_grid_resampled(name, tmp_path):
    other = randomise(timm.create_model(name, num_classes=0, img_size=112))
    torch.save(other.state_dict(), tmp_path / "vit.pth")
    model = unet(name, weights=tmp_path / "vit.pth").eval()
    own = model.encoder.model.patch_embed.img_size
    other.set_input_size(own)  # timm's own way
    torch.testing.assert_close(model.encoder.model.pos_embed, other.pos_embed)
    report = ts.transfer_weights(tmp_path / "vit.pth", model)
    assert [m.adapter.name for m in report.plan.moves if m.adapter] == ["position_grid"]
    assert "position grid resampled to" in report.to_markdown()


def test_a_grid_that_is_not_square_is_refused():
    state = timm.create_model("test_vit", num_classes=0, img_size=(64, 96)).state_dict()
    with pytest.raises(TransferError, match=r"'pos_embed' is \(1, 25, 64\)"):
        ts.transfer_weights(state, unet())


def test_options_are_saved_and_loaded(tmp_path):
    options = {"pyramid": "multilevel", "layers": (1, 2, 3, 4), "channels": 24}
    model = randomise(unet(encoder_options=options))
    assert model.encoder.channels == (24,) * 4
    model.save_pretrained(tmp_path)
    loaded = ts.Segmenter.from_pretrained(tmp_path)
    assert loaded.spec == model.spec
    assert loaded.spec.encoder_options == {**options, "layers": [1, 2, 3, 4]}
    image = torch.randn(1, 3, 50, 70)
    assert torch.equal(loaded(image), model(image))
    weights = ts.create_model(
        "unet", "test_vit", classes=3, weights=tmp_path, encoder_options=options, **SMALL
    )
    for key, value in model.encoder.state_dict().items():  # the pyramid too
        assert torch.equal(weights.encoder.state_dict()[key], value)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("multilevel", "simple"))
    with pytest.raises(CheckpointError, match="weights do not fit"):
        ts.Segmenter.from_pretrained(tmp_path)
