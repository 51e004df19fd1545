"""Parameters and multiply-adds: by hand for a tiny network, and the published numbers."""

import pytest
import torch

import tests.models.tiny_timm  # noqa: F401 - registers its models
import transferseg as ts
from transferseg.errors import SpecError
from transferseg.models import freeze
from transferseg.models.classifier import Classifier
from transferseg.models.summary import HEADER
from transferseg.spec import ModelSpec


def test_the_plain_network_by_hand():
    """Two 3x3 convolutions and two norms a stage, at half the size and twice the width."""
    summary = ts.create_classifier("plain", classes=3, in_channels=1).summary((32, 32))
    wanted = []
    for index, width in enumerate((32, 64, 128, 256, 512)):
        weights = 9 * ((width // 2 if index else 1) * width + width * width)
        wanted.append((weights + 4 * width, weights * (32 >> index) ** 2, 1 << index, width))
    rows = [summary[f"encoder.stages[{index}]"] for index in range(5)]
    assert [(r.parameters, r.multiply_adds, r.stride, r.channels) for r in rows] == wanted
    assert wanted[0] == (9632, 9732096, 1, 32)
    head = summary["head"]
    assert (head.parameters, head.multiply_adds) == (3 * 512 + 3, 3 * 512)
    assert summary.total.multiply_adds == sum(row[1] for row in wanted) + 3 * 512


@pytest.mark.parametrize(
    ("encoder", "published", "parameters", "pruned"),
    [
        ("resnet50", 4.09e9, 25_557_032, 0),  # torchvision's table
        ("swin_tiny_patch4_window7_224", 4.5e9, 28_288_354, 2 * 768),  # Liu 2021, table 1
        ("vit_base_patch16_224", 17.5e9, 86_567_656, 2 * 768),  # the same table (DeiT-B)
    ],
)
def test_published_numbers(encoder, published, parameters, pruned):
    """Within 1 %: they are given with two or three digits, and some count norms."""
    with torch.device("meta"):
        model = ts.create_classifier(encoder, classes=1000)
    total = model.summary((224, 224)).total
    assert total.multiply_adds == pytest.approx(published, rel=0.01)
    assert total.parameters == parameters - pruned  # a last norm that no feature map needs


def test_attention_is_counted():
    """A block: four d x d products and two of d x 4d a token, two of tokens x tokens x d."""
    with torch.device("meta"):
        model = ts.create_classifier("vit_base_patch16_224", classes=2)
    tokens, d = 14 * 14 + 1, 768
    block = 12 * tokens * d * d + 2 * tokens * tokens * d
    assert model.summary()["encoder"].multiply_adds == 12 * block + (tokens - 1) * d * d


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [
        *((architecture, "resnet10t") for architecture in ts.list_architectures()),
        *(("attention_unet", encoder) for encoder in ("test_vit", "tiny_swin", "tiny_hrnet")),
    ],
)
def test_the_parts_are_all_of_the_model(architecture, encoder):
    with torch.device("meta"):
        model = ts.create_model(architecture, encoder, classes=2, in_channels=1)
    summary = model.summary((64, 97))
    assert [row.part for row in summary.rows if "." not in row.part] == [
        "encoder", "decoder", "head"
    ]  # fmt: skip
    stages = [row for row in summary.rows if row.part.startswith("encoder.stages")]
    assert sum(row.parameters for row in stages) == summary["encoder"].parameters
    assert sum(row.multiply_adds for row in stages) == summary["encoder"].multiply_adds
    assert tuple(row.stride for row in stages) == model.encoder.strides
    assert tuple(row.channels for row in stages) == model.encoder.channels
    assert ("encoder.pyramid" in [r.part for r in summary.rows]) == bool(model.encoder.pyramid)
    with torch.no_grad(), torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 1, 64, 97, device="meta"))
    assert summary.total.multiply_adds == counter.get_total_flops() // 2
    assert summary.total.parameters == sum(p.numel() for p in model.parameters())


def test_the_model_stays_as_it_is():
    model = ts.create_model("unet", "resnet10t", classes=2, in_channels=1, channels=[8] * 5).train()
    freeze(model, "encoder.stages[:2]")
    model(torch.randn(2, 1, 64, 64)).mean().backward()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    summary = model.summary((64, 64))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    for before, parameter in zip(grads, model.parameters(), strict=True):
        assert (before is None) == (parameter.grad is None)
        assert before is None or torch.equal(before, parameter.grad)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    stages = summary["encoder.stages[0]"], summary["encoder.stages[1]"]
    assert [row.trainable for row in stages] == [0, 0]
    frozen = sum(row.parameters for row in stages)
    assert summary.total.trainable == summary.total.parameters - frozen


def test_the_table():
    summary = ts.create_classifier("plain", classes=3, in_channels=1).summary((32, 48))
    lines = str(summary).splitlines()
    assert lines[0] == "One image of 32x48"
    assert lines[1].split() == list(HEADER)
    assert lines[3].split() == ["encoder.stages[0]", "9,632", "9,632", "14,598,144", "1", "32"]
    assert lines[-1].split() == ["total", "4,715,171", "4,715,171", "99,534,336"]
    rows = summary.to_markdown().splitlines()
    assert "| encoder.stages[0] | 9,632 | 9,632 | 14,598,144 | 1 | 32 |" in rows
    assert len({row.count("|") for row in rows[2:]}) == 1


def test_sizes_and_parts_that_cannot_be():
    model = ts.create_classifier("plain", classes=3)
    with pytest.raises(SpecError, match=r"from 32 pixels up, got \(31, 64\)"):
        model.summary((31, 64))
    with pytest.raises(SpecError, match=r"no part 'encodr'; there are \['encoder'"):
        model.summary()["encodr"]
    with pytest.raises(SpecError, match="whole numbers from 32 pixels up, got 224"):
        model.summary(224)
    with pytest.raises(SpecError, match=r"got \(64, 64.5\)"):
        model.summary((64, 64.5))


def test_whole_classifiers():
    """Of timm's with their own heads, which give one map; some of them take one size alone."""
    small = {"arguments": {"img_size": 96, "mlp_ratio": [0.125, 0.25]}}
    spec = ModelSpec(
        "classifier", "mixer_s32_224", ("a", "b"), decoder={"head": "timm"}, encoder_options=small
    )
    model = Classifier(spec)
    summary = model.summary((96, 96))
    assert [row.part for row in summary.rows] == ["encoder", "encoder.stages[0]"]
    assert summary["encoder.stages[0]"].parameters == sum(p.numel() for p in model.parameters())
    assert summary["encoder.stages[0]"].multiply_adds == summary.total.multiply_adds > 0
    with pytest.raises(SpecError, match=r"takes no images of \(64, 64\): .*; give image_size="):
        model.summary((64, 64))
