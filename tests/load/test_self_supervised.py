"""ResNets from self-supervised trainings: modules shaped as their authors', saved as they do."""

import copy
import re

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

import transferseg as ts
from tests.load.files import fed, image, relative
from tests.load.self_supervised import Parts, maps, module, projector
from tests.models.randomise import randomise
from transferseg.errors import CheckpointError, TransferError
from transferseg.load.inspection import examine
from transferseg.load.listing import Listing
from transferseg.load.timm_index import shapes_of

#: A narrow ResNet-18 with one block a stage.
LAYERS, CHANNELS = [1, 1, 1, 1], [8, 16, 32, 64]
NARROW = {"arguments": {"layers": LAYERS, "channels": CHANNELS}}


class Narrow(torchvision.models.ResNet):
    """torchvision's, an eighth as wide behind the stem."""

    def _make_layer(self, block, planes, *rest, **options):
        return super()._make_layer(block, planes // 8, *rest, **options)


def resnet(head=None):
    net = Narrow(BasicBlock, LAYERS)
    net.fc = head or nn.Identity()
    return net


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
