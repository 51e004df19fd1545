import re

import pytest
import timm
import torch
import torchvision

import transferseg as ts
from tests.load.files import assert_equal_logits, image, randomise
from tests.load.openmmlab import SWIN, ResNetV1c, renamed
from transferseg.errors import CheckpointError, TransfersegError
from transferseg.transfer.openmmlab import merging_as_mmseg

SWIN_NARROW = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}


@pytest.mark.parametrize("arguments", [{}, {"avg_down": True}])
@pytest.mark.parametrize(("prefix", "head"), [("backbone.", "head.fc."), ("", "fc.")])
def test_a_resnet_with_three_convolutions_first(arguments, prefix, head, tmp_path):
    theirs = randomise(ResNetV1c(**arguments))
    meta = {"dataset_meta": {"classes": ["cat", "dog", "cow"]}}
    state = theirs.state_dict(prefix=prefix, head=head)
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "a.pth")
    model, report = assert_equal_logits(theirs, tmp_path / "a.pth", image(height=65))
    assert report.source_format == "mmpretrain"
    assert not report.plan.unused
    assert model.spec.classes == ("cat", "dog", "cow")
    assert model.spec.input.value_range == (0.0, 255.0)


def test_a_resnet_in_torchvisions_names(tmp_path):
    net = torchvision.models.resnet
    theirs = randomise(net.ResNet(net.BasicBlock, [1, 1, 1, 1], num_classes=4))
    names = {k: f"head.{k}" if k.startswith("fc.") else f"backbone.{k}" for k in
             theirs.state_dict()}  # fmt: skip
    state = {names[key]: value for key, value in theirs.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    assert_equal_logits(theirs, tmp_path / "a.pth", image())


def test_a_backbone_alone_is_an_encoder(tmp_path):
    theirs = randomise(ResNetV1c())
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("head.")}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    info = ts.inspect_checkpoint(tmp_path / "a.pth")
    assert (info.format, info.architecture, info.encoder) == ("mmpretrain", "encoder", "resnet18")
    with pytest.raises(CheckpointError, match="holds the encoder 'resnet18' and no head"):
        ts.load_checkpoint(tmp_path / "a.pth")
    arguments = {"stem_type": "deep", "stem_width": 4, "channels": [8, 16, 32, 64]}
    model = ts.create_model(
        "unet", "resnet18", classes=2, weights=tmp_path / "a.pth",
        encoder_options={"arguments": arguments},
    )  # fmt: skip
    assert torch.equal(model.encoder.model.bn1.weight, theirs.theirs.bn1.weight)


def test_a_swin_is_refused_as_a_classifier_and_taken_as_an_encoder(tmp_path):
    whole = randomise(timm.create_model("swin_tiny_patch4_window7_224", **SWIN_NARROW))
    names = renamed(whole.state_dict(), SWIN)
    state = {
        names[key]: merging_as_mmseg(value) if ".downsample." in key else value
        for key, value in whole.state_dict().items()
    }
    for key in list(state):
        if key.startswith("backbone.head."):
            state[key.removeprefix("backbone.")] = state.pop(key)
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"this is a Swin; its encoder goes.*weights=path"):
        ts.load_checkpoint(tmp_path / "a.pth")
    model = ts.create_model(
        "fcn", "swin_tiny_patch4_window7_224", classes=2, weights=tmp_path / "a.pth",
        encoder_options={"arguments": {k: list(v) if isinstance(v, tuple) else v
                                       for k, v in SWIN_NARROW.items()}},
    )  # fmt: skip
    own = model.encoder.model.state_dict()
    assert own
    for key, value in own.items():
        assert torch.equal(value, whole.state_dict()[key])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {f"net.{k}": v for k, v in s.items()}, r"net\.backbone\.stem\.0\.weight"),
        (lambda s: dict(list(s.items())[::2]), r"there is no backbone\.|get nothing: .*encoder"),
        (
            lambda s: {k: v.transpose(0, 1) if "layer2.0.conv1" in k else v for k, v in s.items()},
            r"backbone\.layer2\.0\.conv1\.weight",
        ),
        (lambda s: {**s, "neck.w": torch.zeros(1)}, r"go nowhere: neck\.w"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_its_keys(change, message, tmp_path):
    torch.save({"state_dict": change(ResNetV1c().state_dict())}, tmp_path / "a.pth")
    with pytest.raises(TransfersegError) as raised:
        ts.load_checkpoint(tmp_path / "a.pth")
    assert re.search(message, str(raised.value))
