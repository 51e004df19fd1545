"""Encoders from self-supervised trainings: modules shaped as their authors', saved as they do."""

import copy
import json
import re
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import BasicBlock

import transferseg as ts
from tests.load.files import assert_equal_logits, fed, image, relative
from tests.models.randomise import randomise
from transferseg.errors import CheckpointError, TransferError
from transferseg.load.inspection import examine
from transferseg.load.listing import Listing
from transferseg.load.timm_index import shapes_of

#: A narrow ResNet-18 with one block a stage.
LAYERS, CHANNELS = [1, 1, 1, 1], [8, 16, 32, 64]
NARROW = {"arguments": {"layers": LAYERS, "channels": CHANNELS}}
PLAIN = "vit_base_patch16_224"
VIT = {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 4, "num_heads": 2}


class Narrow(torchvision.models.ResNet):
    """torchvision's, an eighth as wide behind the stem."""

    def _make_layer(self, block, planes, *rest, **options):
        return super()._make_layer(block, planes // 8, *rest, **options)


def resnet(head=None):
    net = Narrow(BasicBlock, LAYERS)
    net.fc = head or nn.Identity()
    return net


def projector(inside=64):
    return nn.Sequential(nn.Linear(inside, 8), nn.ReLU(), nn.Linear(8, 4))


def maps(net, x):
    """What the last stage of a torchvision ResNet gives, or the last block of timm's ViT."""
    with torch.no_grad():
        if not hasattr(net, "layer4"):
            return net.forward_intermediates(x, indices=[-1], intermediates_only=True)[-1]
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))


class Parts(nn.Module):
    """Modules, and tensors, under the names that a training gives them."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)


def children(net):
    return nn.Sequential(*list(net.children())[:-1])


def moco():
    return Parts(
        encoder_q=resnet(projector()), encoder_k=resnet(projector()),
        queue=torch.rand(4, 8), queue_ptr=torch.zeros(1, dtype=torch.long),
    )  # fmt: skip


def moco_v3():
    return Parts(
        base_encoder=resnet(projector()), momentum_encoder=resnet(projector()),
        predictor=projector(4),
    )  # fmt: skip


def lightly():
    net = resnet()
    model = Parts(
        backbone=children(net), projection_head=projector(), prediction_head=projector(4),
        backbone_momentum=children(resnet()), projection_head_momentum=projector(),
    )  # fmt: skip
    return model, net


def solo():
    return Parts(
        backbone=resnet(), projector=projector(), predictor=projector(4),
        momentum_backbone=resnet(), momentum_projector=projector(), classifier=nn.Linear(64, 3),
        queue=torch.rand(2, 4, 8), queue_ptr=torch.zeros(1),
    )  # fmt: skip


def swav():
    net = resnet()
    net.projection_head, net.prototypes = projector(), nn.Linear(4, 6, bias=False)
    return net


def module(state):
    return {f"module.{key}": value for key, value in state.items()}


def lightning(state):
    return {"state_dict": state, "pytorch-lightning_version": "2.0", "epoch": 3}


#: naming -> the network that is taken, the training's module, and what it saves of its state.
def trainings():
    model = moco()
    yield "MoCo", model.encoder_q, model, lambda s: {"epoch": 1, "state_dict": module(s)}
    model = moco_v3()
    yield "MoCo v3", model.base_encoder, model, lambda s: {"state_dict": module(s)}
    model, net = lightly()
    yield "lightly", net, model, lightning
    net = resnet()
    yield "children of a ResNet", net, children(net), lambda s: s
    net = resnet()
    model = Parts(
        student_backbone=children(resnet()), student_head=projector(),
        teacher_backbone=children(net), teacher_head=projector(),
    )  # fmt: skip
    yield "lightly DINO", net, model, lightning
    model = solo()
    yield "solo-learn", model.backbone, model, lightning
    model = Parts(backbone=resnet(), projector=projector(), bn=nn.BatchNorm1d(4))
    yield "solo-learn", model.backbone, model, lambda s: {"epoch": 1, "model": module(s)}  # Barlow
    model = Parts(encoder=resnet(projector()), predictor=projector(4))
    yield "SimSiam", model.encoder, model, lambda s: {"state_dict": module(s)}
    net = swav()
    yield "SwAV", net, net, lambda s: {"state_dict": module(s)}


TRAININGS = list(trainings())


def segmenter(**options):
    torch.manual_seed(7)
    return ts.create_model("unet", "resnet18", classes=2, encoder_options=NARROW, **options).eval()


@pytest.fixture
def file(tmp_path):
    def save(model, wrap=lambda state: state):
        torch.save(wrap(randomise(model, seed=3).state_dict()), tmp_path / "a.pth")
        return tmp_path / "a.pth"

    return save


@pytest.mark.parametrize(("naming", "net", "model", "wrap"), TRAININGS)
def test_a_resnet_gives_the_maps_of_the_trained_one(naming, net, model, wrap, file):
    path = file(model, wrap)
    net.eval()
    ours, x = segmenter(), image(3, 64, 97)
    report = ts.transfer_weights(path, ours)
    with torch.no_grad():
        assert relative(ours.encoder(x)[-1], maps(net, x)) < 1e-5
        assert relative(segmenter(weights=path).encoder(x)[-1], maps(net, x)) < 1e-5
    assert report.source_format == naming
    assert report.coverage["encoder"].fraction == 1.0
    moved = {move.source for move in report.plan.moves}
    assert len(moved | set(report.plan.unused)) == len(model.state_dict())
    assert all("table" not in why for why in report.plan.unused.values())


def test_the_other_network_of_a_pair_is_taken_on_demand(file):
    for model, entry, net in (
        (moco(), "encoder_k", "encoder_k"),
        (solo(), "momentum_backbone", "momentum_backbone"),
    ):
        path = file(model, lambda s: {"state_dict": module(s)})
        ours, x = segmenter(), image()
        report = ts.transfer_weights(path, ours, entry=entry)
        with torch.no_grad():
            assert relative(ours.encoder(x)[-1], maps(getattr(model, net), x)) < 1e-5
        assert f"{entry}." in report.peeled
        assert any("encoder_q" in note or "backbone" in note for note in report.notes)
        with pytest.raises(CheckpointError, match=f"unknown entry.*Did you mean.*{entry}"):
            ts.transfer_weights(path, ours, entry=f"{entry}s")
    model, _ = lightly()
    path = file(model, lightning)
    ts.transfer_weights(path, ours := segmenter(), entry="backbone_momentum")
    assert torch.equal(ours.encoder.model.conv1.weight, model.backbone_momentum[0].weight)


def test_dino_takes_the_teacher_and_gives_the_student_on_demand(file, tmp_path):
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


@pytest.mark.parametrize("prefix", ["encoder_q.", "base_encoder."])
def test_inspecting_names_the_training_and_the_encoder(prefix):
    with torch.device("meta"):
        net = torchvision.models.resnet18()
    listing = Listing("a.pth", {f"{prefix}{k}": s for k, s in shapes_of(net).items()}, {})
    info = examine(listing, {}).info
    assert (info.format, info.encoder) == ("self-supervised", "resnet18")
    assert "it holds an encoder and no head" in info.missing
    assert any(one.what == "naming" for one in info.assumed)
    assert examine(listing, {"encoder": "resnetblur18"}).info.encoder == "resnetblur18"
    with pytest.raises(CheckpointError, match="encoder='resnet50' was asked for"):
        examine(listing, {"encoder": "resnet50"})
    listing = Listing("a.pth", {**listing.shapes, f"{prefix}more.weight": (3,)}, {})
    assert "no timm model" in examine(listing, {}).info.missing


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


@pytest.mark.parametrize(("naming", "net", "model", "wrap"), TRAININGS[:6:2])
def test_half_a_file_or_a_renamed_layer_raises_and_changes_nothing(
    naming, net, model, wrap, tmp_path
):
    state = dict(copy.deepcopy(model).state_dict())
    deepest = [key for key in state if re.search(r"(layer4|backbone\.7|^7)\.0\.conv2", key)]
    lacking = {k: v for k, v in state.items() if k not in deepest}
    other = {k.replace("conv2", "conv9") if k in deepest else k: v for k, v in state.items()}
    turned = {**state, **{k: state[k][:5] for k in deepest}}
    for broken, names in (
        (lacking, r"get nothing: .*layer4\.0\.conv2"),
        (other, r"get nothing: .*layer4\.0\.conv2"),
        (turned, r"0\.conv2\.weight' is \(5, 64, 3, 3\)"),
    ):
        torch.save(wrap(broken), tmp_path / "a.pth")
        ours = segmenter()
        before = fed(ours)
        with pytest.raises(TransferError, match=names):
            ts.transfer_weights(tmp_path / "a.pth", ours)
        assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())
