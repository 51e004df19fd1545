"""When a target's neutral start applies, and when what the caller says counts instead."""

import pytest
import torch

import transferseg as ts
from tests.models.randomise import randomise
from transferseg.errors import TransferError

FIRST = "decoder.blocks.0.conv1.0.weight"


def pair():
    options = {"classes": ["a"], "in_channels": 1, "channels": [16, 16, 8, 8, 8]}
    source, target = (
        ts.create_model(name, "resnet10t", **options) for name in ("unet", "attention_unet")
    )
    return randomise(source), randomise(target, seed=1)


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_gates_that_the_caller_leaves_stay_and_nothing_is_divided():
    source, target = pair()
    before = snapshot(target)
    ts.transfer_weights(source, target, parts=("encoder", "decoder"), leave="decoder.gates.*")
    assert torch.equal(target.state_dict()[FIRST], source.state_dict()[FIRST])
    for key, value in target.state_dict().items():
        if ".gates." in key:
            assert torch.equal(value, before[key])


def test_a_gate_starts_only_with_the_convolution_that_makes_up_for_it():
    source, target = pair()
    before = snapshot(target)
    with pytest.raises(TransferError, match=r"get nothing: decoder\.gates\.16\.w_x\.weight"):
        ts.transfer_weights(source, target, parts=("decoder.gates",))
    with pytest.raises(TransferError, match=r"5 tensors of the target get nothing: .*gates\.16\."):
        ts.transfer_weights(source, target, parts=("decoder",), leave=FIRST)
    ts.transfer_weights(source, target, parts=("decoder.blocks.0",))
    assert torch.equal(target.state_dict()[FIRST], source.state_dict()[FIRST])
    assert torch.equal(
        target.state_dict()["decoder.gates.16.psi.bias"], before["decoder.gates.16.psi.bias"]
    )


def test_a_source_with_some_gates_is_no_layout_without_gates():
    source, target = pair()
    tensors = snapshot(source) | {"decoder.gates.16.psi.bias": torch.zeros(1)}
    before = snapshot(target)
    with pytest.raises(TransferError, match=r"4 tensors of the target get nothing: .*gates\.16\."):
        ts.transfer_weights(tensors, target, parts=("decoder",))
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_a_transfer_that_is_refused_sets_no_start():
    source, target = pair()
    source.decoder.blocks[4].conv1[0].weight.data.fill_(float("nan"))
    before = snapshot(target)
    with pytest.raises(TransferError, match="NaN"):
        ts.transfer_weights(source, target, parts=("decoder",))
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_gates_of_the_source_go_nowhere_in_a_unet_unless_declared():
    unet, attention = pair()
    with pytest.raises(TransferError, match=r"20 tensors of the source go nowhere: decoder\.gates"):
        ts.transfer_weights(attention, unet, parts=("decoder",))
    ts.transfer_weights(attention, unet, parts=("decoder",), unused="decoder.gates.*")
    assert torch.equal(unet.state_dict()[FIRST], attention.state_dict()[FIRST])
