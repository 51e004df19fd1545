"""What every encoder in MMSegmentation's style must do, as any other."""

import copy

import pytest
import torch

import transferseg as ts
from tests.models.openmmlab.test_hrnet import stage
from tests.models.openmmlab.test_swin import TINY
from tests.models.randomise import randomise
from transferseg.errors import SpecError, TransferError
from transferseg.models import Encoder, freeze
from transferseg.models.depth import layer_distances
from transferseg.training import layer_decay_groups

SWIN = {"embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 7}
HRNET = {
    f"stage{level}": stage(1, "BASIC", [4, 8, 16, 32][:level], 1) for level in range(1, 5)
}  # fmt: skip
VIT = {"style": "mmseg", "patch_bias": False}
ENCODERS = {
    "swin": (TINY, {"style": "mmseg", "arguments": SWIN}),
    "vit": ("test_vit", {**VIT, "pyramid": "multilevel", "channels": 8}),
    "vit_norm": ("test_vit", {**VIT, "pyramid": "none", "final_norm": True}),
    "hrnet": ("hrnet_w18", {"style": "mmseg", "arguments": HRNET}),
}


def upernet(which, **options):
    name, encoder_options = ENCODERS[which]
    options = {"classes": 2, "channels": 8, "encoder_options": encoder_options, **options}
    return ts.create_model("upernet", name, **options)


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize("which", ENCODERS)
def test_odd_sizes_channels_gradients_and_the_way_to_a_folder(which, in_channels, tmp_path):
    model = upernet(which, in_channels=in_channels)
    image = torch.randn(2, in_channels, 61, 97, generator=torch.Generator().manual_seed(1))
    logits = model(image)
    assert logits.shape == (2, 2, 61, 97)
    logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    randomise(model).save_pretrained(tmp_path)
    loaded = ts.Segmenter.from_pretrained(tmp_path)
    assert loaded.spec == model.spec
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))
        assert torch.equal(copy.deepcopy(model)(image), model(image))
    shapes = {key: value.shape for key, value in model.encoder.state_dict().items()}
    assert [shapes[key][1] for key in model.encoder.stem_keys()] == [in_channels]


@pytest.mark.parametrize("which", ["swin", "hrnet"])
def test_what_no_reader_needs_stays_frozen(which):
    name, options = ENCODERS[which]
    model = ts.create_autoencoder(name, channels=[8] * 5, encoder_options=options)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    if which == "swin":
        assert {name[:16] for name in frozen} == {f"encoder.norms.{index}." for index in range(3)}
    else:
        prefix = "encoder.model.stage4.0.fuse_layers."
        assert {name[: len(prefix) + 1] for name in frozen} == {f"{prefix}{i}" for i in range(3)}


def test_norms_belong_to_the_stage_whose_map_they_make():
    model = upernet("swin")
    freeze(model, "encoder.stages[1]")
    held = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {"encoder.norms.1.weight", "encoder.model.layers.1.downsample.norm.bias"} <= held
    assert {name.split(".")[2] for name in held} == {"layers", "1"}
    distances = layer_distances(model)
    assert distances["encoder.norms.0.weight"] == 0
    assert distances["encoder.model.layers.3.blocks.0.norm1.weight"] == 1
    rates = {group["lr"] for group in layer_decay_groups(model, lr=1.0, layer_decay=0.5)}
    assert {1.0, 0.5, 0.25} <= rates


def test_the_final_norm_learns_beside_the_last_block():
    model = upernet("vit_norm")
    freeze(model, "encoder.stages[-1]")
    held = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {"encoder.model.norm.weight", "encoder.model.blocks.5.attn.qkv.weight"} <= held
    distances = layer_distances(model)
    assert distances["encoder.model.norm.weight"] == 1
    assert distances["encoder.model.blocks.5.norm1.weight"] == 1


def parts(which):
    """What a style computes in its own way, and what it is given: (module, shapes by sample)."""
    encoder = Encoder(ENCODERS[which][0], options=ENCODERS[which][1])
    if which == "swin":
        return encoder.model.layers[0].blocks[1], [(9, 10, 8)]
    if which == "hrnet":
        return encoder.model.stage2[0], [(4, 8, 12), (8, 4, 6)]
    return Encoder("test_vit", options={**VIT, "pyramid": "none", "layers": [0, 1]}), [(3, 64, 96)]


@pytest.mark.parametrize("which", ["swin", "vit", "hrnet"])
def test_exported_they_compute_the_same_at_any_batch(which):
    module, shapes = parts(which)
    generator = torch.Generator().manual_seed(1)

    def given(batch):
        maps = [torch.randn(batch, *shape, generator=generator) for shape in shapes]
        return maps if which == "hrnet" else maps[0]

    free = {0: torch.export.Dim("batch", max=64)}  # torch 2.5 takes none without an end
    dynamic = ([free, free] if which == "hrnet" else free,)
    program = torch.export.export(
        randomise(module), (given(2),), dynamic_shapes=dynamic, strict=False
    )
    x = given(3)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize(("option", "value", "lost"), [
    ("patch_bias", False, "patch_embed.proj.bias"), ("final_norm", False, "norm.weight"),
])  # fmt: skip
def test_what_an_option_of_a_vit_leaves_out_is_not_dropped_in_silence(option, value, lost):
    whole = {"style": "mmseg", "patch_bias": True, "final_norm": True}
    source, target = (
        ts.create_classifier("test_vit", classes=2, encoder_options=options)
        for options in (whole, {**whole, option: value})
    )
    with pytest.raises(TransferError, match=rf"go nowhere: encoder\.model\.{lost}"):
        ts.transfer_weights(source, target)
    unused = f"encoder.model.{lost.replace('weight', '*')}"
    assert ts.transfer_weights(source, target, unused=unused).coverage["encoder"].fraction == 1.0


def test_weights_of_timm_have_the_bias_of_the_patches():
    with pytest.raises(SpecError, match="have a bias that patch_bias=False would drop"):
        Encoder("test_vit", pretrained=True, options=VIT)
