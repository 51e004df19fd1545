"""Activation checkpointing: less is kept, and nothing that is computed changes."""

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import tests.models.tiny_timm  # noqa: F401 - registers its models
import transferseg as ts
from tests.models.randomise import randomise
from transferseg.errors import SpecError
from transferseg.models.classifier import Classifier
from transferseg.spec import ModelSpec

# one of every family, with what it needs to be small
ENCODERS = ["resnet10t", "vgg11_bn", "test_vit", "tiny_dinov2", "tiny_swin", "tiny_swinv2",
            "tiny_hrnet", "test_convnext", "densenet121", "test_efficientnet", "mobilenetv2_035",
            "mobilenetv3_small_050", "regnetx_002", "plain", "mobilenetv2_035 smp"]  # fmt: skip
ARCHITECTURES = {
    "unet": {"channels": [16, 16, 8, 8, 8]},
    "attention_unet": {"channels": [16, 16, 8, 8, 8]},
    "deeplabv3": {"channels": 64, "output_stride": 32},
    "deeplabv3plus": {"channels": 64},
    "fcn": {"channels": 64, "output_stride": 32},
    "psp": {"channels": 64, "output_stride": 32},
    "psp_smp": {"channels": 64},
    "upernet": {"channels": 32},
    "upernet_smp": {"channels": 32},
}
IMAGE = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def step(model):
    """One training step's bytes kept for the backward pass, gradients and buffers."""
    own = {id(parameter) for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        if id(tensor) not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    alive = []  # so that no storage is freed and its address used again
    torch.manual_seed(3)  # of dropout and stochastic depth
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(IMAGE).square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return sum(kept.values()), gradients, dict(model.named_buffers())


def assert_the_same_in_less(model, least_saved):
    plain, checkpointed = copy.deepcopy(model).train(), model.train()
    checkpointed.set_grad_checkpointing()
    (before, wanted, buffers), (after, given, moved) = step(plain), step(checkpointed)
    assert after < (1 - least_saved) * before
    assert wanted.keys() == given.keys()
    for name, gradient in wanted.items():
        limit = 1e-6 * float(gradient.abs().max())
        torch.testing.assert_close(given[name], gradient, rtol=0, atol=limit)
    for name, value in buffers.items():
        assert torch.equal(moved[name], value), name


@pytest.mark.parametrize("encoder", ENCODERS)
def test_over_every_encoder_family(encoder):
    channels = [8, 8, 8, 8] if encoder == "plain" else [8, 8, 8, 8, 8]
    name, _, style = encoder.partition(" ")
    options = {"encoder_options": {"style": style}} if style else {}
    model = randomise(ts.create_model("unet", name, classes=2, channels=channels, **options))
    assert_the_same_in_less(model, 0.2)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_over_every_architecture(architecture):
    """Dropout is drawn again as it was."""
    options = ARCHITECTURES[architecture]
    assert set(ARCHITECTURES) == set(ts.list_architectures())
    assert_the_same_in_less(
        randomise(ts.create_model(architecture, "resnet10t", classes=2, **options)), 0.2
    )


def test_of_classifiers_and_autoencoders_and_stochastic_depth():
    classifier = randomise(ts.create_classifier("tiny_swin", classes=2, dropout=0.5))
    assert classifier.encoder.model.layers[3].blocks[1].drop_path1.drop_prob > 0
    assert_the_same_in_less(classifier, 0.2)
    assert_the_same_in_less(randomise(ts.create_autoencoder("resnet10t")), 0.2)


def gradients_and_buffers(model, call):
    torch.manual_seed(3)
    call(IMAGE).square().mean().backward()
    return [p.grad for p in model.parameters()] + list(model.buffers())


@pytest.mark.parametrize("how", ["compiled", "distributed"])
def test_compiled_and_distributed(how, tmp_path):
    model = randomise(ts.create_classifier("plain", classes=2)).train()
    plain = copy.deepcopy(model)
    model.set_grad_checkpointing()
    if how == "compiled":
        given = gradients_and_buffers(
            model, torch.compile(model, backend="aot_eager", fullgraph=True)
        )
    else:
        store = f"file://{tmp_path}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        try:
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
            given = gradients_and_buffers(model, wrapped)
        finally:
            torch.distributed.destroy_process_group()
    for ours, wanted in zip(given, gradients_and_buffers(plain, plain), strict=True):
        limit = 1e-6 * float(wanted.abs().max())
        torch.testing.assert_close(ours, wanted, rtol=0, atol=limit)


def test_it_is_turned_off_again_and_leaves_no_trace(tmp_path):
    model = randomise(ts.create_model("unet", "vgg11_bn", classes=2, channels=[8] * 5)).train()
    before = [set(vars(module)) for module in model.modules()]
    keys, spec = list(model.state_dict()), model.spec
    usual = step(copy.deepcopy(model))[0]
    model.set_grad_checkpointing()
    assert list(model.state_dict()) == keys
    assert model.spec == spec
    assert step(copy.deepcopy(model))[0] < usual
    model.save_pretrained(tmp_path)
    loaded = ts.Segmenter.from_pretrained(tmp_path).train()
    assert step(loaded)[0] == usual
    model.set_grad_checkpointing(False)
    assert step(copy.deepcopy(model))[0] == usual
    assert [set(vars(module)) for module in model.modules()] == before


def test_an_encoder_that_cannot_is_named():
    model = ts.create_model("unet", "dla34", classes=2)
    with pytest.raises(SpecError, match=r"'dla34' cannot recompute"):
        model.set_grad_checkpointing()
    model.set_grad_checkpointing(False)


def test_a_whole_vgg_classifier():
    spec = ModelSpec(
        "classifier", "tiny_vgg_bn", ("a", "b"), decoder={"head": "timm"},
        encoder_options={"arguments": {"mlp_ratio": 1 / 256}},
    )  # fmt: skip
    assert_the_same_in_less(randomise(Classifier(spec)), least_saved=0.3)


def test_the_center_and_the_convolutions_of_a_unet():
    options = {"upsampling": "bilinear", "num_convs": 2, "center": True}
    options = {"channels": [16, 16, 8, 8, 32], "skips": False, **options}
    model = ts.create_model("unet", "resnet10t", classes=2, **options)
    decoder = model.decoder
    wanted = {decoder.center, *decoder.ups, *decoder.blocks, *decoder.convs}
    assert set(decoder.segments()) == wanted
    assert_the_same_in_less(randomise(model), least_saved=0.5)
