"""Rules that are proposed bring foreign names home; where several places fit, none is proposed."""

import re

import pytest
import torch
from torch import nn

import transferseg as ts
from tests.models.randomise import randomise
from transferseg.errors import TransferError
from transferseg.transfer import suggest_rules


@pytest.fixture(scope="module")
def models():
    return {
        "resnet10t": ts.create_model("unet", "resnet10t", classes=2),
        "test_vit": ts.create_model("upernet", "test_vit", classes=2, channels=8),
    }


def renamed(model, *rules):
    tensors = model.encoder.model.state_dict()
    for old, new in rules:
        tensors = {re.sub(old, new, key): value for key, value in tensors.items()}
    return tensors


MOCO = ("^", "module.encoder_q.")
VIT = (
    (r"^blocks\.(\d+)\.", r"layers.\1."),
    (r"\.attn\.qkv\.", ".attention.query_key_value."),
    (r"\.attn\.proj\.", ".attention.output."),
    (r"\.mlp\.fc(\d)\.", r".ffn.dense\1."),
    (r"\.norm(\d)\.", r".ln\1."),
    (r"^patch_embed\.proj", "patch_embed.projection"),
    (r"^cls_token", "class_token"),
)
MMPRETRAIN = (
    (r"^conv1\.0\.", "stem.0."),
    (r"^conv1\.", "stem."),
    (r"^bn1\.", "stem.7."),
    (r"^layer(\d)\.(\d)\.downsample\.", r"stages.\1.\2.shortcut."),
    (r"^layer(\d)\.(\d)\.", r"stages.\1.\2."),
)


@pytest.mark.parametrize(
    ("name", "rules", "count"),
    [
        ("resnet10t", [("^", "backbone.")], 1),
        ("resnet10t", [MOCO], 1),
        ("resnet10t", [(r"^layer(\d)", r"stages.\1")], 1),
        ("resnet10t", [(r"\.bn(\d)\.", r".norm\1."), ("^", "net.")], None),
        ("resnet10t", MMPRETRAIN, None),
        ("test_vit", [("^blocks", "layers")], 1),
        ("test_vit", [("^", "vision_model.")], 1),
        ("test_vit", VIT, None),
    ],
)  # fmt: skip
def test_foreign_names_are_found_and_the_rules_load_all(name, rules, count, models):
    target = randomise(models[name], seed=1)
    tensors = renamed(target, *rules)
    expected = {key: value.clone() for key, value in tensors.items()}
    order = list(target.encoder.model.state_dict())
    randomise(target, seed=2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    suggestion = suggest_rules(expected, target, parts="encoder.model")
    after = target.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())  # nothing is loaded
    assert suggestion.unmatched_source == suggestion.unmatched_target == ()
    assert suggestion.ambiguous == ()
    assert count is None or len(suggestion.rules) == count
    assert sum(rule.tensors for rule in suggestion.rules) <= len(expected)
    ts.transfer_weights(expected, target, parts="encoder.model", rename=suggestion.rename)
    got = target.encoder.model.state_dict()
    for key, value in zip(order, expected.values(), strict=True):
        assert torch.equal(got[key], value), key
    assert all(repr(pattern) in suggestion.to_text() for pattern in suggestion.rename)


class Dense(nn.Module):
    """The naming of torchvision's DenseNet, before (`norm.1`) and after (`norm1`) the year 2018."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential()
        for block in (1, 2):
            for layer in (1, 2):
                inner = nn.Module()
                inner.norm1, inner.conv1 = nn.BatchNorm2d(4 * layer), nn.Conv2d(4 * layer, 8, 1)
                inner.norm2, inner.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
                self.encoder.add_module(f"denseblock{block}_denselayer{layer}", inner)


def test_old_densenet_names():
    target = Dense()
    source = {
        re.sub(r"^encoder\.(\w+)_(\w+)\.(norm|conv)(\d)\.", r"features.\1.\2.\3.\4.", key): value
        for key, value in target.state_dict().items()
    }
    suggestion = suggest_rules(source, target)
    assert (suggestion.unmatched_source, suggestion.ambiguous) == ((), ())
    report = ts.transfer_weights(source, Dense(), rename=suggestion.rename)
    assert report.coverage["encoder"].fraction == 1.0
    moves = {move.source: move.target for move in report.plan.moves}
    wanted = dict(zip(source, target.state_dict(), strict=True))
    assert moves == wanted


def test_heads_and_queues_stay_unmatched(models):
    target = models["resnet10t"]
    moco = {
        **renamed(target, MOCO),
        **renamed(target, ("^", "module.encoder_k.")),
        "module.encoder_q.fc.weight": torch.zeros(7, 512),
        "module.queue": torch.zeros(7, 9),
    }
    suggestion = suggest_rules(moco, target)
    assert suggestion.rename == {r"encoder_q\.": ""}
    unmatched = suggestion.unmatched_source
    assert {"encoder_q.fc.weight", "queue"} <= set(unmatched)
    assert all(k.startswith(("encoder_k.", "queue", "encoder_q.fc")) for k in unmatched)
    ts.transfer_weights(moco, target, rename=suggestion.rename, unused=["encoder_k.*", "queue"])


def linears(*names):
    module = nn.Module()
    module.encoder = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})
    return module


def test_what_fits_several_places_is_not_proposed():
    source = linears("north", "south").encoder.state_dict()
    suggestion = suggest_rules(source, linears("first", "second"))
    assert suggestion.rules == ()
    assert suggestion.matched == {}
    assert suggestion.ambiguous == ("north fits encoder.first, encoder.second",
                                    "south fits encoder.first, encoder.second")  # fmt: skip
    assert "ambiguous: north fits" in suggestion.to_text()
    # the names decide where they are clearly alike
    likely = suggest_rules(source, linears("to_south", "to_north")).matched
    assert likely["south.weight"] == "encoder.to_south.weight"
    assert likely["north.weight"] == "encoder.to_north.weight"


def test_two_networks_of_one_kind_are_not_told_apart(models):
    target = models["resnet10t"]
    twins = {**renamed(target, ("^", "left.")), **renamed(target, ("^", "right."))}
    suggestion = suggest_rules(twins, target)
    assert suggestion.rules == ()
    assert suggestion.matched == {}
    assert {line[:5] for line in suggestion.ambiguous} == {"left.", "right"}


def test_layers_that_count_from_another_number():
    source = {f"encoder.block{k + 1}.weight": torch.zeros(3, 3) for k in range(3)}
    target = nn.Module()
    target.encoder = nn.ModuleList([nn.Linear(3, 3, bias=False) for _ in range(3)])
    suggestion = suggest_rules(source, target)
    assert suggestion.matched == {
        f"encoder.block{k + 1}.weight": f"encoder.{k}.weight" for k in range(3)
    }
    ts.transfer_weights(source, target, rename=suggestion.rename)


def test_names_that_fit_need_no_rule(models):
    target = models["resnet10t"]
    suggestion = suggest_rules(target.encoder.model.state_dict(), target)
    assert suggestion.rules == ()
    assert suggestion.unmatched_target == ()


def test_a_part_that_does_not_exist(models):
    with pytest.raises(TransferError, match=r"none of the parts \['encodr'\]"):
        suggest_rules({"w": torch.ones(1)}, models["resnet10t"], parts="encodr")
