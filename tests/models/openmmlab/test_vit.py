"""ViT in MMSegmentation's style, against what that library computes."""

import math

import numpy as np
import pytest
import timm
import torch

import tests.models.tiny_timm  # noqa: F401 - registers its models
import transferseg as ts
from tests.models.randomise import randomise
from tests.references.compare import difference, load
from tests.references.names import UPERNET, VIT
from transferseg.errors import SpecError
from transferseg.models import Encoder
from transferseg.models.openmmlab.vit import positions

NARROW = {"embed_dim": 128, "depth": 12, "num_heads": 2, "mlp_ratio": 2, "img_size": 64}
MMSEG = {"style": "mmseg", "arguments": NARROW, "patch_bias": False}
NECK = {**MMSEG, "pyramid": "multilevel"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny_upernet_vit_mln", NECK),
        ("tiny_upernet_vit_mln_patch_bias", {**NECK, "patch_bias": True}),
        ("tiny_upernet_vit_ln_mln", {**NECK, "final_norm": True}),
        ("tiny_upernet_deit", {**MMSEG, "pyramid": "none"}),
    ],
)
def test_upernet_over_vit_equals_mmsegmentations(name, options):
    model, reference = load(
        name, "upernet", "vit_small_patch16_224", VIT | UPERNET, options, channels=12
    )
    assert difference(model, reference) < 1e-5


def test_positions_are_resampled_only_where_their_number_differs():
    embedding = torch.randn(1, 1 + 16, 8, generator=torch.Generator().manual_seed(0))
    assert positions(embedding, (4, 4), (2, 8)) is embedding
    grid = embedding[0, 1:].T.reshape(8, 4, 4).numpy()
    given = positions(embedding, (4, 4), (3, 6))[0]
    assert torch.equal(given[0], embedding[0, 0])
    wanted = np.einsum("hy,wx,cyx->hwc", cubic(3, 4), cubic(6, 4), grid)
    np.testing.assert_allclose(given[1:].numpy(), wanted.reshape(18, 8), rtol=1e-4, atol=1e-5)


def test_positions_of_half_floats_are_resampled():
    embedding = torch.ones(1, 1 + 16, 8, dtype=torch.float16)
    given = positions(embedding, (4, 4), (3, 6))
    assert (given.dtype, given.shape) == (torch.float16, (1, 19, 8))


def cubic(wanted, given, a=-0.75):
    """Weights of Keys' cubic at half-pixel centres, the border repeated, without antialias."""
    weights = np.zeros((wanted, given))
    for index in range(wanted):
        centre = (index + 0.5) * given / wanted - 0.5
        for near in range(math.floor(centre) - 1, math.floor(centre) + 3):
            d = abs(centre - near)
            inner = (a + 2) * d**3 - (a + 3) * d**2 + 1
            outer = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            weights[index, min(max(near, 0), given - 1)] += inner if d <= 1 else outer
    return weights


def test_a_file_of_another_image_size_is_resampled_without_antialias(tmp_path):
    other = randomise(timm.create_model("test_vit", num_classes=0, img_size=112))
    torch.save(other.state_dict(), tmp_path / "vit.pth")
    model = ts.create_model("unet", "test_vit", classes=2, weights=tmp_path / "vit.pth",
                            encoder_options={"style": "mmseg"})  # fmt: skip
    given = model.encoder.model.pos_embed
    wanted = positions(other.pos_embed, (7, 7), model.encoder.model.patch_embed.grid_size)
    torch.testing.assert_close(given, wanted)
    assert given.shape != other.pos_embed.shape
    report = ts.transfer_weights(tmp_path / "vit.pth", model)
    assert "bicubic without antialias" in report.to_markdown()


def test_at_its_own_size_it_is_timms():
    theirs = randomise(Encoder("test_vit", options={"pyramid": "none"}))
    ours = Encoder("test_vit", options={"pyramid": "none", "style": "mmseg"}).eval()
    ours.load_state_dict(theirs.state_dict())
    side = theirs.model.patch_embed.img_size[0]
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for given, wanted in zip(ours(image), theirs(image), strict=True):
            torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
        wider = torch.randn(1, 3, side, 3 * side, generator=torch.Generator().manual_seed(1))
        assert not torch.allclose(ours(wider)[-1], theirs(wider)[-1], rtol=1e-3, atol=1e-4)


def test_maps_of_a_padded_image_are_not_cropped():
    encoder = Encoder("test_vit", options={"style": "mmseg", "pyramid": "multilevel"}).eval()
    assert [tuple(f.shape[-2:]) for f in encoder(torch.randn(1, 3, 70, 50))][:2] == [
        (20, 16), (10, 8)
    ]  # fmt: skip


def test_checkpointed_blocks_give_the_same_gradient():
    encoder = Encoder("test_vit", options={"style": "mmseg"})
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for checkpointing in (False, True):
        encoder.zero_grad()
        encoder.model.set_grad_checkpointing(checkpointing)
        encoder(image)[-1].square().sum().backward()
        gradients.append(encoder.model.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("test_vit", {"style": "mmsegmentation"}, "unknown style 'mmsegmentation'.*'mmseg'"),
        ("test_vit", {"style": ["mmseg"]}, "unknown style"),
        ("test_vit", {"final_norm": True}, "unknown option of encoder 'test_vit' 'final_norm'"),
        ("test_vit", {"style": "mmseg", "patch_bias": 0}, "patch_bias must be true or false"),
        (
            "test_vit",
            {"style": "mmseg", "layers": [0, 1, 2, 3], "final_norm": True},
            "follows the last block, 5, but the layers end at 3",
        ),
        (
            "test_vit",
            {"style": "mmseg", "arguments": {"final_norm": False}, "final_norm": True},
            "this ViT has no final norm",
        ),
        ("tiny_dinov2", {"style": "mmseg"}, "one class token, a learned position"),
        ("tiny_deit_distilled", {"style": "mmseg"}, "'tiny_deit_distilled' is not; leave style"),
        ("resnet18", {"style": "mmseg"}, "ResNets compute as timm's.*dilation='mmseg'"),
        ("tiny_swinv2", {"style": "mmseg"}, "'tiny_swinv2' is not"),
        ("plain", {"style": "mmseg"}, "'plain' is not"),
    ],
)
def test_styles_that_an_encoder_has_not(name, options, message):
    with pytest.raises(SpecError, match=message):
        ts.create_model("unet", name, classes=2, encoder_options=options)
