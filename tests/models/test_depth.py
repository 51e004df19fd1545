from __future__ import annotations

from itertools import pairwise

import pytest
import timm
import torch
from torch import nn

import transferseg as ts
from transferseg.errors import SpecError
from transferseg.models.depth import encoder_stages, encoder_stem, layer_distances

# one of every family that builds, small
FAMILIES = [
    "resnet10t", "vgg11_bn", "test_convnext", "mobilenetv2_035", "regnetx_002",
    "hrnet_w18_small", "poolformer_s12", "mobilenetv2_035 smp",
]  # fmt: skip


def classifier(name):
    name, _, style = name.partition(" ")
    options = {"style": style} if style else {}
    return ts.create_classifier(name, classes=2, in_channels=1, encoder_options=options)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stage_is_what_its_feature_map_needs_beyond_those_before(name):
    """The oracle is the gradient: of the maps up to i, and of none after."""
    model = classifier(name)
    stages = encoder_stages(model)
    names = [n for n, _ in model.named_parameters() if n.startswith("encoder.")]
    assert sorted(n for stage in stages for n in stage) == sorted(names)
    assert len(stages) == len(model.encoder.strides)
    features = model.encoder.eval()(torch.randn(1, 1, 32, 32))
    before: set[str] = set()
    for feature, stage in zip(features, stages, strict=True):
        parameters = [model.get_parameter(n) for n in names]
        gradients = torch.autograd.grad(
            feature.sum(), parameters, allow_unused=True, retain_graph=True
        )
        reached = {n for n, g in zip(names, gradients, strict=True) if g is not None}
        assert reached - before == set(stage)
        before |= reached


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("hrnet")])
def test_layers_are_in_the_order_in_which_they_are_computed(name):
    """Of HRNet there is no such order: its maps come from branches side by side."""
    model = classifier(name)
    distances = layer_distances(model)
    assert set(distances) == {n for n, _ in model.named_parameters() if n.startswith("encoder.")}
    stages = [[distances[n] for n in stage] for stage in encoder_stages(model) if stage]
    for shallow, deep in pairwise(stages):
        assert min(shallow) >= max(deep)
    assert max(stages[0]) == max(distances.values())


def test_norms_of_vgg():
    distances = layer_distances(classifier("vgg11_bn"))
    at = {int(n.split(".")[3]): d for n, d in distances.items()}
    convolutions = [0, 4, 8, 11, 15, 18, 22, 25]
    assert [at[i] for i in convolutions] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert [at[i + 1] for i in convolutions] == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("resnet10t", {"conv1", "bn1"}),
        ("vgg11_bn", {"features.0", "features.1"}),
        ("test_convnext", {"stem"}),
        ("regnetx_002", {"stem"}),
    ],
)
def test_the_stem(name, wanted):
    model = classifier(name)
    assert set(encoder_stem(model)) == {
        n
        for n, _ in model.named_parameters()
        if any(n.startswith(f"encoder.model.{w}.") for w in wanted)
    }


def test_looking_changes_nothing_and_calls_nobodys_hooks():
    model = classifier("resnet10t").train()
    wanted = [len(stage) for stage in encoder_stages(model)]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    calls = []
    model.encoder.model.layer1.register_forward_hook(lambda *_: calls.append("hook"))
    model.encoder.register_forward_pre_hook(lambda *_: calls.append("pre-hook"))
    model.encoder.requires_grad_(False)
    stages = encoder_stages(model)
    assert calls == []
    assert [len(stage) for stage in stages] == wanted == [9, 6, 9, 9, 9]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert torch.equal(random, torch.get_rng_state())
    with torch.no_grad():
        assert encoder_stages(model) == stages


class Holder(nn.Module):
    """A timm model where a model of ours has it, beside what is not timm's."""

    def __init__(self, name):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.model = timm.create_model(name, num_classes=0)
        self.encoder.neck = nn.Conv2d(2, 2, 1)
        self.head = nn.Conv2d(2, 2, 1)


def test_a_plain_vit_and_a_neck():
    distances = layer_distances(Holder("test_vit"))
    assert distances["encoder.model.patch_embed.proj.weight"] == 7
    assert distances["encoder.model.pos_embed"] == 7
    assert distances["encoder.model.cls_token"] == 7
    assert [distances[f"encoder.model.blocks.{i}.norm1.weight"] for i in range(6)] == [
        6, 5, 4, 3, 2, 1,
    ]  # fmt: skip
    assert distances["encoder.model.norm.weight"] == 1
    assert distances["encoder.neck.weight"] == 0
    assert "head.weight" not in distances


def test_models_without_an_encoder():
    with pytest.raises(SpecError, match="Conv2d has no encoder"):
        encoder_stages(nn.Conv2d(1, 1, 1))
    with pytest.raises(SpecError, match="Conv2d has no encoder"):
        layer_distances(nn.Conv2d(1, 1, 1))
