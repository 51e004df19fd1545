"""What a naming scheme can say: rules, prefixes, adapters, what is unused and why."""

import pytest
import torch

import transferseg as ts
from tests.models.randomise import randomise
from transferseg.errors import TransferError
from transferseg.transfer import ADAPTERS, SourceFormat
from transferseg.transfer.sources import ENCODER_PREFIX, SOURCES

SCHEME = SourceFormat(
    "test scheme",
    {"": ENCODER_PREFIX},
    unused=("predictor.*",),
    leave=SOURCES["timm"].leave,
    rules={r"^trunk\.": "", r"^stem\.": "conv1.", r"_norm(\d)\.": r".bn\1."},
    adapters={"trunk.stem.0.weight": ADAPTERS["sum_input_channels"]},
    reasons={"queue": "negatives of the contrastive loss"},
)


@pytest.fixture
def source(monkeypatch):
    monkeypatch.setitem(SOURCES, "test scheme", SCHEME)
    encoder = randomise(ts.create_classifier("resnet10t", classes=2)).encoder.model
    renamed = {}
    for key, value in encoder.state_dict().items():
        key = key.replace(".bn2.", "_norm2.")
        renamed["trunk." + (key.replace("conv1", "stem", 1) if key[:5] == "conv1" else key)] = value
    return renamed


def test_rules_apply_in_turn_before_the_prefixes():
    wanted = f"{ENCODER_PREFIX}layer1.0.bn2.weight"
    assert SCHEME.target_key("trunk.layer1.0_norm2.weight") == wanted


def test_a_scheme_renames_adapts_and_says_what_is_unused(source):
    given = {**source, "queue": torch.zeros(3), "predictor.0.weight": torch.zeros(2)}
    model = ts.create_model("unet", "resnet10t", classes=2, in_channels=1)
    report = ts.transfer_weights(given, model)
    assert (report.source_format, report.coverage["encoder"].fraction) == ("test scheme", 1.0)
    first = model.encoder.model.conv1[0].weight
    assert torch.equal(first, source["trunk.stem.0.weight"].sum(dim=1, keepdim=True))
    assert report.plan.unused == {
        "queue": "negatives of the contrastive loss: queue",
        "predictor.0.weight": "test scheme table: predictor.*",
    }


def test_an_adapter_that_does_not_fit_is_an_error(source):
    model = ts.create_model("unet", "resnet10t", classes=2)
    with pytest.raises(TransferError, match=r"'sum_input_channels' cannot make 'trunk\.stem\.0"):
        ts.transfer_weights(source, model)


def test_a_file_in_such_names_is_what_create_model_takes(source, tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "test scheme", SourceFormat("test scheme", {"": ENCODER_PREFIX},
                        leave=SCHEME.leave, rules=SCHEME.rules))  # fmt: skip
    torch.save(source, tmp_path / "a.pth")
    model = ts.create_model(
        "unet", "resnet10t", classes=2, in_channels=1, weights=tmp_path / "a.pth"
    )
    wanted = source["trunk.stem.0.weight"].sum(dim=1, keepdim=True)
    assert torch.equal(model.encoder.model.conv1[0].weight, wanted)
