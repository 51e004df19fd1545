"""ViTs from self-supervised trainings: modules shaped as their authors', saved as they do."""

import json
import re
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import transferseg as ts
from tests.load.files import assert_equal_logits, image, relative
from tests.load.self_supervised import Parts, maps, module, projector
from tests.models.randomise import randomise
from transferseg.errors import CheckpointError, TransferError
from transferseg.load.inspection import examine
from transferseg.load.listing import Listing
from transferseg.load.timm_index import shapes_of

PLAIN = "vit_base_patch16_224"
VIT = {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 4, "num_heads": 2}


def test_dino_takes_the_teacher_and_gives_the_student_on_demand(tmp_path):
    pair = [
        Parts(backbone=timm.create_model(PLAIN, num_classes=0, **VIT), head=projector(16))
        for _ in range(2)
    ]
    for seed, one in enumerate(pair):
        one.head.mlp, one.head.last_layer = projector(16), nn.Linear(4, 9)
        randomise(one, seed)
    student, teacher = pair
    saved = {"student": module(student.state_dict()), "teacher": teacher.state_dict(), "epoch": 1}
    torch.save(saved, tmp_path / "a.pth")
    options = {"arguments": VIT, "pyramid": "none", "layers": [3]}
    for entry, net in ((None, teacher), ("student", student)):
        ours = encoder(options)
        ts.transfer_weights(tmp_path / "a.pth", ours, entry=entry)
        x = image(3, 28, 28)
        with torch.no_grad():
            assert relative(ours.encoder(x)[-1], maps(net.backbone, x)) < 1e-5


def encoder(options, name=PLAIN):
    return ts.create_classifier(name, classes=2, encoder_options=options).eval()


def in_dinov2s_names(state, *, chunk):
    """timm's names as DINOv2's code has them: chunks of blocks, and SwiGLU's w12 and w3.

    Of a ViT with registers it has a position for the class token, which timm adds to that token.
    """
    renamed = {"mask_token": torch.rand(1, 16)}
    if "reg_token" in state:
        place = torch.rand(1, 1, 16)
        state = {**state, "cls_token": state["cls_token"] - place,
                 "pos_embed": torch.cat([place, state["pos_embed"]], dim=1)}  # fmt: skip
        state["register_tokens"] = state.pop("reg_token")
    for key, value in state.items():
        key = (
            re.sub(r"^blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}.", key)
            if (chunk)
            else key
        )
        renamed[key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")] = value
    return renamed


def in_training(state):
    inner = {f"backbone.{key}": value for key, value in state.items()}
    return {"teacher": {**inner, "dino_head.mlp.0.bias": torch.rand(3)}}


@pytest.mark.parametrize("chunk", [False, True])
@pytest.mark.parametrize("wrap", [lambda state: state, in_training])
@pytest.mark.parametrize(
    ("name", "more", "naming"),
    [
        ("vit_giant_patch14_dinov2", {}, "DINOv2"),
        (
            "vit_giant_patch14_reg4_dinov2",
            {"reg_tokens": 3, "no_embed_class": False},
            "DINOv2 with registers",
        ),
    ],
)
def test_dinov2s_own_names(name, more, naming, chunk, wrap, tmp_path):
    arguments = {**VIT, "mlp_ratio": 2.0, **more}
    usual = {key: value for key, value in arguments.items() if key != "no_embed_class"}
    theirs = randomise(timm.create_model(name, num_classes=0, dynamic_img_size=True, **usual))
    torch.save(wrap(in_dinov2s_names(theirs.state_dict(), chunk=chunk)), tmp_path / "a.pth")
    ours = encoder({"arguments": arguments, "pyramid": "none", "layers": [3]}, name)
    report = ts.transfer_weights(tmp_path / "a.pth", ours)
    for x in (image(3, 28, 28), image(3, 42, 56)):
        with torch.no_grad():
            assert relative(ours.encoder(x)[-1], maps(theirs, x)) < 1e-5
    assert report.source_format == naming
    assert any("mask_token" in key for key in report.plan.unused)
    if more:
        for size in ([42, 56], 56, 14):  # the target's own grid, other than the file's
            given = {"arguments": {**arguments, "img_size": size}, "pyramid": "none", "layers": [3]}
            resized = encoder(given, name)
            ts.transfer_weights(tmp_path / "a.pth", resized)
            x = image(3, *(size if isinstance(size, list) else (size, size)))
            with torch.no_grad():
                assert relative(resized.encoder(x)[-1], maps(theirs, x)) < 1e-5
        other = encoder({"arguments": usual, "pyramid": "none", "layers": [3]}, name)
        with pytest.raises(TransferError, match=r"with \{'no_embed_class': False\}"):
            ts.transfer_weights(tmp_path / "a.pth", other)


def test_published_dinov2_with_registers_is_recognised():
    with torch.device("meta"):
        known = shapes_of(timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0))
    known |= {"register_tokens": known.pop("reg_token"), "mask_token": (1, 384)}
    known["pos_embed"] = (1, 1370, 384)
    info = examine(Listing("a.pth", known, {}), {}).info
    assert (info.encoder, info.architecture) == ("vit_small_patch14_reg4_dinov2", "encoder")
    assert "encoder_options={'arguments': {'no_embed_class': False}}" in info.missing


def mae():
    net = timm.create_model("test_vit", num_classes=0)
    return net, {
        "mask_token": torch.rand(1, 1, 8),
        "decoder_pos_embed": torch.rand(1, 3, 8),
        "decoder_embed.weight": torch.rand(8, 64),
        "decoder_blocks.0.norm1.weight": torch.rand(8),
    }


def test_mae_leaves_its_decoder_behind(tmp_path):
    net, beside = mae()
    state = randomise(net).state_dict()
    torch.save({"model": {**state, **beside}, "epoch": 1}, tmp_path / "a.pth")
    info = ts.inspect_checkpoint(tmp_path / "a.pth")
    assert (info.format, info.architecture, info.encoder) == (
        "self-supervised", "encoder", "test_vit"
    )  # fmt: skip
    ours = encoder({"pyramid": "none", "layers": [5]}, info.encoder)
    report = ts.transfer_weights(tmp_path / "a.pth", ours)
    with torch.no_grad():
        x = image(3, 160, 160)
        assert relative(ours.encoder(x)[-1], maps(net, x)) < 1e-5
    assert set(beside) <= set(report.plan.unused)
    with pytest.raises(CheckpointError, match=r"holds the encoder 'test_vit' and no head"):
        ts.load_checkpoint(tmp_path / "a.pth")


def test_a_fine_tuned_mae_is_a_classifier(tmp_path):
    theirs = timm.create_model("test_vit", num_classes=3, global_pool="avg", class_token=True)
    torch.save({"model": randomise(theirs).state_dict()}, tmp_path / "a.pth")
    model, _ = assert_equal_logits(theirs, tmp_path / "a.pth", image(3, 160, 160))
    assert model.spec.encoder_options == {"arguments": {"global_pool": "avg"}}
    info = ts.inspect_checkpoint(tmp_path / "a.pth")
    assert info.format == "self-supervised"
    assert "naming = 'MAE, fine-tuned' (convention): a ViT normed after its pooling" in str(info)
    # a config.json beside the same tensors says that they are timm's
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "test_vit", "global_pool": "avg",
              "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, report = assert_equal_logits(theirs, tmp_path, image(3, 160, 160))
    assert (report.source_format, model.spec.input.mean) == ("timm", (0.1, 0.2, 0.3))
    assert not any("MAE" in note for note in report.notes)


def test_moco_v3s_own_small_vit_has_heads_half_as_wide(tmp_path):
    sizes = {"img_size": 32, "depth": 2, "num_heads": 12}
    theirs = randomise(timm.create_model("vit_small_patch16_224", num_classes=0, **sizes))
    state = {f"module.base_encoder.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"arch": "vit_small", "epoch": 300, "state_dict": state}, tmp_path / "a.pth")
    options = {"arguments": sizes, "pyramid": "none", "layers": [1]}
    ours, x = encoder(options, "vit_small_patch16_224"), image(3, 32, 32)
    ts.transfer_weights(tmp_path / "a.pth", ours)
    with torch.no_grad():
        assert relative(ours.encoder(x)[-1], maps(theirs, x)) < 1e-5
    six = {**options, "arguments": {"img_size": 32, "depth": 2}}
    with pytest.raises(TransferError, match=r"encoder_options=\{'arguments': \{'num_heads': 12\}"):
        ts.transfer_weights(tmp_path / "a.pth", encoder(six, "vit_small_patch16_224"))
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "a.pth")  # nobody says whose it is
    ts.transfer_weights(tmp_path / "a.pth", encoder(six, "vit_small_patch16_224"))
    with torch.device("meta"):
        known = shapes_of(timm.create_model("vit_small_patch16_224", num_classes=0))
    listing = Listing("a.pth", {f"base_encoder.{k}": s for k, s in known.items()}, {})
    assert "num_heads" not in examine(listing, {}).info.missing
    listing = replace(listing, metadata={"arch": "vit_small"})
    assert "{'arguments': {'num_heads': 12}}" in examine(listing, {}).info.missing
