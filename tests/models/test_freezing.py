"""Frozen is frozen: weights, statistics, dropout; through `train()`, copies and wrappers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from timm.layers import DropPath
from torch import nn

import transferseg as ts
from transferseg.errors import SpecError
from transferseg.models import Freezable, freeze, frozen, unfreeze

SMALL = {"classes": 2, "in_channels": 1, "channels": [16, 16, 8, 8, 8]}


def unet(encoder="resnet10t"):
    torch.manual_seed(0)
    return ts.create_model("unet", encoder, **SMALL)


def tensors(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def changed(module, before):
    return {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}


def shaken(model, image):
    """One training step that moves everything that can move, by far."""
    model(image)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def image(*, seed=1):
    return torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("encoder", ["resnet10t", "vgg11_bn", "test_efficientnet"])
def test_a_frozen_encoder_is_bit_for_bit_the_same_through_cycles(encoder):
    model = unet(encoder).eval()
    with torch.no_grad():
        features = [f.clone() for f in model.encoder(image())]
    before = tensors(model)
    freeze(model, "encoder")
    for _ in range(2):
        model.train()
        assert not any(module.training for module in model.encoder.modules())
        assert all(module.training for module in model.decoder.modules())
        assert model.training
        shaken(model, image())
        model.eval()
        assert not any(module.training for module in model.modules())
        with torch.no_grad():
            again = model.encoder(image())
        assert all(torch.equal(a, b) for a, b in zip(features, again, strict=True))
    moved = changed(model, before)
    assert not any(key.startswith("encoder.") for key in moved)
    assert {"head.weight", "decoder.blocks.0.conv1.1.running_mean"} <= moved


def test_without_freezing_the_same_steps_do_change_the_encoder():
    model = unet().train()
    before = tensors(model)
    shaken(model, image())
    moved = changed(model, before)
    assert {"encoder.model.bn1.running_mean", "encoder.model.conv1.0.weight"} <= moved


def test_freezing_a_model_in_training_mode_needs_no_call_of_train():
    model = unet().train()
    freeze(model, "encoder")
    before = tensors(model.encoder)
    shaken(model, image())
    assert changed(model.encoder, before) == set()


def test_dropout_in_frozen_parts_is_silent():
    model = unet()
    for block in model.encoder.model.layer1:
        block.drop_path = DropPath(0.5)
    model.encoder.model.layer2.add_module("late", nn.Dropout(0.5))
    freeze(model, "encoder")
    model.train()
    with torch.no_grad():
        first, second = model.encoder(image()), model.encoder(image())
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        unfreeze(model, "encoder.model.layer2")
        first, second = model.encoder(image()), model.encoder(image())
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [
        True, True, False, False, False,
    ]  # fmt: skip


class Plain(Freezable):
    """A network that is no model of ours; with a norm that has statistics and no parameters."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False), nn.Dropout(0.5)
        )
        self.head = nn.Conv2d(2, 1, 1)

    def forward(self, x):
        return self.head(self.body(x))


def test_networks_of_others_and_norms_without_parameters():
    model = Plain()
    freeze(model, "body")
    before = tensors(model)
    model.train()(torch.randn(3, 1, 8, 8))
    assert changed(model, before) == set()
    assert torch.equal(model(image()), model(image()))
    unfreeze(model, "body")
    model(torch.randn(3, 1, 8, 8))
    assert changed(model, before) == {"body.1.running_mean", "body.1.running_var",
                                      "body.1.num_batches_tracked"}  # fmt: skip


@pytest.mark.parametrize("encoder", ["resnet10t", "vgg11_bn", "test_convnext"])
def test_frozen_stages_keep_their_feature_maps_and_no_more(encoder):
    model = unet(encoder)
    start = tensors(model)
    count = len(model.encoder.strides)
    for kept in range(1, count):
        model.load_state_dict(start)
        with torch.no_grad():
            before = model.eval().encoder(image())
        unfreeze(model, "*")
        freeze(model, f"encoder.stages[:{kept}]")
        shaken(model.train(), image())
        with torch.no_grad():
            after = model.eval().encoder(image())
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        if encoder == "vgg11_bn":  # its last map is a pooling, without parameters
            assert kept == count - 1 or same == [index < kept for index in range(count)]
        else:
            assert same == [index < kept for index in range(count)]


def test_names_of_parts_modules_stages_and_patterns():
    model = unet("test_resnet")
    names = [name for name, _ in model.named_parameters()]

    def held(*what):
        freeze(model, *what)
        found = frozen(model)
        unfreeze(model, "*")
        assert frozen(model) == ()
        assert all(p.requires_grad for p in model.parameters())
        return list(found)

    def within(*beginnings):
        return [name for name in names if name.startswith(beginnings)]

    assert held("encoder") == within("encoder.")
    assert held("head") == ["head.weight", "head.bias"]
    assert held("head.bias") == ["head.bias"]
    assert held("decoder.blocks.0", "head") == within("decoder.blocks.0.", "head.")
    assert held("encoder.stem") == within("encoder.model.conv1.", "encoder.model.bn1.")
    assert held("encoder.stages[:]") == within("encoder.")
    assert held("encoder.stages[0:2]") == held("encoder.stages[0]", "encoder.stages[1]")
    assert held("encoder.stages[-1]") == within("encoder.model.layer4.")
    assert held("encoder.stages[-2:]") == within("encoder.model.layer3.", "encoder.model.layer4.")
    assert held("*.bn1.*") == [name for name in names if ".bn1." in name]
    assert held("encoder.model.layer[12].*") == within(
        "encoder.model.layer1.", "encoder.model.layer2."
    )
    assert held("*") == names


def test_norms_by_pattern():
    model = unet().train()
    freeze(model, "*.bn1.*")
    before = tensors(model)
    model(image())
    moved = {key for key in changed(model, before) if key.endswith("running_mean")}
    assert moved
    assert not any(".bn1." in key for key in moved)
    assert "encoder.model.layer1.0.bn2.running_mean" in moved


def test_requires_grad_by_hand_is_torchs_own():
    """Weights that rest while statistics adapt stay possible."""
    model = unet()
    model.encoder.requires_grad_(False)
    before = tensors(model.encoder)
    model.train()(image())
    assert "model.bn1.running_mean" in changed(model.encoder, before)
    assert frozen(model) == ()
    freeze(model, "encoder")
    assert len(frozen(model)) == len(list(model.encoder.parameters()))
    assert not model.train().encoder.training


def test_unfrozen_modules_follow_the_models_mode():
    model = unet().train()
    freeze(model, "encoder")
    unfreeze(model, "encoder.stages[2:]")
    layers = model.encoder.model
    assert [layers.bn1.training, layers.layer1.training] == [False, False]
    assert all(m.training for m in layers.layer2.modules())
    before = tensors(model)
    shaken(model, image())
    assert "encoder.model.layer2.0.bn1.running_mean" in changed(model, before)
    model.eval()
    unfreeze(model, "*")
    assert not any(m.training for m in model.modules())
    assert all(m.training for m in model.train().modules())


def test_a_wholly_frozen_model_is_still_in_training_mode_itself():
    model = unet().train()
    freeze(model, "*")
    assert model.training
    assert not any(m.training for m in list(model.modules())[1:])
    unfreeze(model, "head")
    assert model.head.training
    assert not model.decoder.training


def test_a_gradient_from_before_moves_nothing():
    model = unet().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    model(image()).square().mean().backward()
    freeze(model, "encoder")
    before = tensors(model)
    optimizer.step()
    moved = changed(model, before)
    assert "head.weight" in moved
    assert not any(key.startswith("encoder.") for key in moved)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), torch.compile],
    ids=["deepcopy", "pickle", "compile"],
)
def test_copies_and_wrappers_stay_frozen(copied):
    model = unet()
    freeze(model, "encoder")
    twin = copied(model).train()
    assert not any(m.training for m in twin.encoder.modules())
    assert len(frozen(twin)) == len(frozen(model))
    unfreeze(model, "encoder")
    assert all(m.training for m in model.train().modules())


def test_copies_are_independent():
    model = unet()
    freeze(model, "encoder")
    twin = copy.deepcopy(model)
    unfreeze(twin, "encoder")
    assert frozen(twin) == ()
    assert not model.train().encoder.training
    assert twin.train().encoder.training


def test_checkpoints_do_not_know(tmp_path):
    model = unet()
    keys = list(model.state_dict())
    freeze(model, "encoder")
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    loaded = ts.Segmenter.from_pretrained(tmp_path)
    assert frozen(loaded) == ()
    assert all(p.requires_grad for p in loaded.parameters())
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("what", "match"),
    [
        (("encodr",), "'encodr' names no parameter of this Segmenter.*Did you mean 'encoder'"),
        (("encoder.stages[5]",), r"expected one of .*'encoder.stages\[4\]'"),
        (("encoder.stages[-6]",), "names no parameter"),
        (("encoder.stages[3:3]",), "names no parameter"),
        (("encoder.stages[:2:1]",), "names no parameter"),
        (("encoder.stem", "encoder.model.layer7.*"), "'encoder.model.layer7.*' names no"),
        (("decoder.blocks.0.conv1.0.wieght",), "Did you mean .*weight"),
        ((("encoder", "head"),), r"\('encoder', 'head'\) names no parameter"),
        ((), "say what"),
    ],
)
@pytest.mark.parametrize("verb", [freeze, unfreeze])
def test_names_that_mean_nothing(verb, what, match):
    model = unet()
    with pytest.raises(SpecError, match=match):
        verb(model, *what)
    assert frozen(model) == ()


def test_a_model_that_would_wake_up_is_refused():
    with pytest.raises(SpecError, match=r"Conv2d cannot be frozen.*models\.Freezable"):
        freeze(nn.Conv2d(1, 1, 1), "*")
    with pytest.raises(SpecError, match=r"'encoder\.stem' names no parameter of this Plain"):
        freeze(Plain(), "encoder.stem")


def test_what_nobody_reads_stays_without_gradient():
    """A ViT's pyramid levels that a decoder does not read get no gradient, thawed or not."""
    options = {"pyramid": "simple"}
    model = ts.create_model("deeplabv3", "test_vit", classes=2, encoder_options=options)
    before = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert before
    freeze(model, "encoder")
    unfreeze(model, "*")
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == before
