from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

import transferseg as ts
from tests.models.test_depth import Holder
from transferseg.errors import TrainingError
from transferseg.models import freeze
from transferseg.training import OPTIMIZERS, adamw, cosine, layer_decay_groups, sgd

from .tiny import net


def powers(model):
    """Parameter name -> power of the factor that is in its learning rate."""
    groups = layer_decay_groups(model, lr=1.0, layer_decay=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    found = {name: rate[id(p)] for name, p in model.named_parameters()}
    return {name: round(-torch.tensor(value).log2().item()) for name, value in found.items()}


# by hand, from the network's definition: a layer is the stem, then each block; the head has 0
BY_HAND = {
    "resnet10t": {
        5: ["conv1", "bn1"], 4: ["layer1"], 3: ["layer2"], 2: ["layer3"], 1: ["layer4"],
    },
    "vgg11": {
        8: ["features.0"], 7: ["features.3"], 6: ["features.6"], 5: ["features.8"],
        4: ["features.11"], 3: ["features.13"], 2: ["features.16"], 1: ["features.18"],
    },
    "convnext_atto": {
        13: ["stem"],
        12: ["stages.0.blocks.0"], 11: ["stages.0.blocks.1"],
        10: ["stages.1.downsample", "stages.1.blocks.0"], 9: ["stages.1.blocks.1"],
        8: ["stages.2.downsample", "stages.2.blocks.0"], 7: ["stages.2.blocks.1"],
        6: ["stages.2.blocks.2"], 5: ["stages.2.blocks.3"], 4: ["stages.2.blocks.4"],
        3: ["stages.2.blocks.5"],
        2: ["stages.3.downsample", "stages.3.blocks.0"], 1: ["stages.3.blocks.1"],
    },
    "swin_tiny_patch4_window7_224": {
        13: ["patch_embed"],
        12: ["layers.0.blocks.0"], 11: ["layers.0.blocks.1"],
        10: ["layers.1.downsample", "layers.1.blocks.0"], 9: ["layers.1.blocks.1"],
        8: ["layers.2.downsample", "layers.2.blocks.0"], 7: ["layers.2.blocks.1"],
        6: ["layers.2.blocks.2"], 5: ["layers.2.blocks.3"], 4: ["layers.2.blocks.4"],
        3: ["layers.2.blocks.5"],
        2: ["layers.3.downsample", "layers.3.blocks.0"], 1: ["layers.3.blocks.1", "norm"],
    },
    "test_vit": {
        7: ["patch_embed", "pos_embed", "cls_token"], 6: ["blocks.0"], 5: ["blocks.1"],
        4: ["blocks.2"], 3: ["blocks.3"], 2: ["blocks.4"], 1: ["blocks.5", "norm"],
    },
}  # fmt: skip


def model_of(name, classes=3):
    if name in ("test_vit", "swin_tiny_patch4_window7_224"):  # not yet encoders of ours
        return Holder(name)
    return ts.create_classifier(name, classes=classes)


def inside(name, path):
    return name == path or name.startswith(f"{path}.")


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_rates_are_those_counted_by_hand(name):
    found = powers(model_of(name))
    counted = {
        parameter: power
        for parameter in found
        for power, paths in BY_HAND[name].items()
        if any(inside(parameter.removeprefix("encoder.model."), path) for path in paths)
    }
    assert {n: p for n, p in found.items() if n.startswith("encoder.model.")} == counted
    assert set(counted.values()) == set(BY_HAND[name])
    rest = {n: p for n, p in found.items() if n not in counted}
    assert rest
    assert set(rest.values()) == {0}


def timms(name):
    thin = {"mlp_ratio": 1 / 4096} if name.startswith("vgg") else {}  # its linear layers are huge
    whole = timm.create_model(name, num_classes=3, **thin)
    groups = param_groups_layer_decay(whole, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    return {name: scale[id(p)] for name, p in whole.named_parameters()}


@pytest.mark.parametrize(
    "name",
    ["resnet10t", "vgg11", "convnext_atto", "test_vit", "mobilenetv2_035",
     "swin_tiny_patch4_window7_224",
     "regnetx_002", "hrnet_w18_small"],
)  # fmt: skip
def test_rates_are_timms(name):
    wanted, found = timms(name), powers(model_of(name))
    prefix = "encoder.model."
    own = {n.removeprefix(prefix): 0.5**p for n, p in found.items() if n.startswith(prefix)}
    assert own == {n: wanted[n] for n in own}


def test_rates_are_not_timms_where_a_norm_would_be_a_layer_of_its_own():
    wanted, found = timms("vgg11_bn"), powers(model_of("vgg11_bn"))
    assert wanted["features.0.weight"] == 0.5**16
    assert wanted["features.1.weight"] == 0.5**15
    assert found["encoder.model.features.0.weight"] == 8
    assert found["encoder.model.features.1.weight"] == 8


def test_why_timms_groups_are_not_taken_as_they_are():
    whole = timm.create_model("resnet10t", num_classes=3)
    whole.conv1.requires_grad_(False)
    optimizer = torch.optim.AdamW(param_groups_layer_decay(whole, layer_decay=0.5), lr=0.1)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}  # torch reads no lr_scale
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in whole.conv1.parameters()}  # nor could they be unfrozen


def test_where_timm_knows_no_layers_they_are_the_stages():
    found = powers(model_of("poolformer_s12"))
    for stage, power in (("stem", 4), ("stages.1", 3), ("stages.2", 2), ("stages.3", 1)):
        held = {p for n, p in found.items() if n.startswith(f"encoder.model.{stage}.")}
        assert held == {power}
    assert {p for n, p in found.items() if n.startswith("encoder.model.stages.0.")} == {4}


def test_decoder_and_head_learn_at_the_full_rate():
    model = ts.create_model("unet", "resnet10t", classes=2)
    found = powers(model)
    assert {p for n, p in found.items() if not n.startswith("encoder.")} == {0}
    assert {p for n, p in found.items() if n.startswith("encoder.")} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizers_hold_every_parameter_once_and_decay_no_norm_and_no_bias(name):
    model = ts.create_model("unet", "resnet10t", classes=2)
    freeze(model, "encoder")  # they are held for later
    optimizer = OPTIMIZERS[name](model, lr=0.1, weight_decay=0.3, layer_decay=0.5)
    groups = optimizer.param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert len(groups) == 12
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    power = powers(model)
    for parameter_name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim < 2 else 0.3), parameter_name
        assert rate[id(parameter)] == pytest.approx(0.1 * 0.5 ** power[parameter_name])


def test_an_update_moves_each_layer_by_its_rate():
    model = ts.create_classifier("resnet10t", classes=2)
    optimizer = sgd(model, lr=1.0, momentum=0.0, layer_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.data.zero_()
    optimizer.step()
    power = powers(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, torch.full_like(parameter, -(0.5 ** power[name])))


def test_a_schedule_keeps_the_ratios():
    model = ts.create_classifier("resnet10t", classes=2)
    optimizer = adamw(model, lr=1.0, layer_decay=0.5)
    before = [group["lr"] for group in optimizer.param_groups]
    scheduler = cosine()(optimizer, 4)
    optimizer.step()
    scheduler.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        [0.5 * rate for rate in before]
    )


def test_a_factor_of_one_is_no_decay():
    groups = layer_decay_groups(ts.create_classifier("resnet10t", classes=2), lr=0.3, layer_decay=1)
    assert {group["lr"] for group in groups} == {0.3}


@pytest.mark.parametrize("layer_decay", [0.0, -0.5, 1.5, float("nan")])
def test_factors_out_of_range(layer_decay):
    model = ts.create_classifier("resnet10t", classes=2)
    with pytest.raises(TrainingError, match="layer_decay must lie above 0"):
        adamw(model, layer_decay=layer_decay)


def test_what_does_not_go_together():
    model = ts.create_classifier("resnet10t", classes=2)
    with pytest.raises(TrainingError, match="not both"):
        adamw(model, layer_decay=0.5, groups=[{"params": model.parameters()}])
    with pytest.raises(TrainingError, match="Net has no encoder"):
        adamw(net(), layer_decay=0.5)
    with pytest.raises(TrainingError, match="Conv2d has no encoder"):
        layer_decay_groups(nn.Conv2d(1, 1, 1), lr=1.0, layer_decay=0.5)
