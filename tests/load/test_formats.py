"""What every format keeps, whatever its ecosystem; each gives one small file here."""

import json
import runpy
import sys

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
import transformers

import transferseg as ts
from tests.load.files import fed, randomise
from tests.load.openmmlab import ResNetV1c, Weights, reference
from tests.models.brain_unet import BrainUNet
from transferseg.errors import CheckpointError, TransferError, TransfersegError
from transferseg.load.cli import main
from transferseg.load.formats import FORMATS
from transferseg.load.inspection import examine
from transferseg.load.listing import Listing
from transferseg.load.timm_index import bare, shapes_of

#: format -> a model of its library, small
EXAMPLES = {
    "transferseg": lambda: ts.create_model("unet", "resnet10t", classes=["lung"], in_channels=1),
    "mmseg": lambda: Weights(reference("tiny_fcn_r18")[0]),
    "mmpretrain": lambda: Weights(ResNetV1c().state_dict()),
    "brain": lambda: BrainUNet(4, 1),
    "smp": lambda: smp.PSPNet("resnet18", psp_out_channels=8, encoder_weights=None, classes=3),
    "torchvision": lambda: torchvision.models.resnet18(num_classes=3),
    "huggingface": lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], num_labels=3)
    ),
    # of those that are whole models: MAE's, fine-tuned
    "self-supervised": lambda: timm.create_model(
        "test_vit", num_classes=3, global_pool="avg", class_token=True
    ),
    "timm": lambda: timm.create_model("test_efficientnet", num_classes=3),
}


@pytest.fixture(scope="module", params=list(FORMATS))
def example(request, tmp_path_factory):
    """A format's name, and a file or folder of it."""
    folder = tmp_path_factory.mktemp(request.param)
    module = randomise(EXAMPLES[request.param]())
    if request.param == "transferseg":
        module.save_pretrained(folder)
        return request.param, folder
    torch.save(module.state_dict(), folder / "a.pth")
    return request.param, folder / "a.pth"


def test_every_format_has_an_example_and_its_own_name():
    assert set(EXAMPLES) == set(FORMATS)
    assert all(known.name == name for name, known in FORMATS.items())


def test_the_file_is_recognised_and_loaded_whole(example):
    name, path = example
    info = ts.inspect_checkpoint(path)
    assert (info.format, info.missing) == (name, "")
    model, report = ts.load_checkpoint(path)
    assert model.spec == info.spec
    assert len(model.spec.classes) == info.classes
    assert model.spec.input.channels == info.in_channels
    assert report.source_format == name
    assert all(part.fraction == 1.0 for part in report.coverage.values())
    used = {key for move in report.plan.moves for key in move.sources} | set(report.plan.unused)
    assert len(used) == info.tensors
    assert all("(" in str(one) for one in info.assumed)


def test_inspecting_agrees_with_itself(example):
    _, path = example
    info = ts.inspect_checkpoint(path)
    values = json.loads(info.to_json())
    assert values["spec"] == info.spec.to_dict()
    assert f"{info.tensors:,} (" in str(info)
    assert info.encoder in str(info)
    assert all(one["origin"] in ("metadata", "convention", "keyword") for one in values["assumed"])


def test_inspecting_makes_no_weights(example, monkeypatch):
    _, path = example
    register = torch.nn.Module.register_parameter
    made = []

    def watched(self, name, param):
        made.append(param is not None and param.device.type != "meta")
        register(self, name, param)

    monkeypatch.setattr(torch.nn.Module, "register_parameter", watched)
    ts.inspect_checkpoint(path)
    assert not any(made)
    ts.load_checkpoint(path)
    assert any(made)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"encoder": "resnet101"}, "encoder='resnet101' was asked for"),
        ({"classes": 11}, "classes= names 11, but the head has"),
        ({"no_such_option": 1}, "no_such_option= says nothing about"),
    ],
)
def test_a_keyword_that_contradicts_the_file_is_an_error(example, asked, message):
    with pytest.raises(CheckpointError, match=message):
        ts.inspect_checkpoint(example[1], **asked)
    with pytest.raises(CheckpointError, match=message):
        ts.load_checkpoint(example[1], **asked)


def test_a_file_of_another_ecosystem_is_not_claimed(tmp_path):
    torch.save({"a.weight": torch.zeros(2, 2)}, tmp_path / "a.pth")
    info = ts.inspect_checkpoint(tmp_path / "a.pth")
    assert (info.format, info.architecture, info.tensors, info.parameters) == (None, None, 1, 4)
    assert "not recognised" in str(info)
    with pytest.raises(CheckpointError, match=r"no format that is known.*a\.weight.*rename="):
        ts.load_checkpoint(tmp_path / "a.pth")


def test_the_command_line_inspects_and_converts(tmp_path, capsys):
    path, folder = tmp_path / "a.pth", tmp_path / "ours"
    torch.save(randomise(EXAMPLES["timm"]()).state_dict(), path)
    assert main(["inspect", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(ts.inspect_checkpoint(path))
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "timm"
    asked = ["--classes", "a", "b", "c", "--option", "threshold", "0.3", "--option", "mode"]
    assert main(["convert", str(path), str(folder), *asked, "multilabel"]) == 0
    assert capsys.readouterr().out.startswith(f"Transfer from {path} (timm names)")
    ours, (theirs, _) = ts.Classifier.from_pretrained(folder), ts.load_checkpoint(path)
    assert (ours.spec.classes, ours.spec.threshold) == (("a", "b", "c"), 0.3)
    assert ours.spec.mode == "multilabel"
    assert all(torch.equal(v, fed(theirs)[k]) for k, v in ours.state_dict().items())
    assert (folder / "transfer.json").exists()


def test_the_command_line_says_what_is_wrong_without_a_traceback(tmp_path, monkeypatch, capsys):
    path = str(tmp_path / "nowhere.pth")
    for arguments, status, told in (
        (["inspect", path], 1, "CheckpointError: "),
        (["convert", path, str(tmp_path / "ours")], 1, "CheckpointError: "),
        (["inspct", path], 2, "usage: python -m transferseg"),
    ):
        monkeypatch.setattr("sys.argv", ["transferseg", *arguments])
        monkeypatch.delitem(sys.modules, "transferseg.__main__", raising=False)  # another test's
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("transferseg", run_name="__main__")
        printed = capsys.readouterr()
        assert (ended.value.code, printed.out) == (status, "")
        assert printed.err.startswith(told)
        assert status == 2 or path in printed.err
    assert not (tmp_path / "ours").exists()


def test_classes_of_a_folder_of_ours_may_be_renamed(tmp_path):
    ts.create_classifier("resnet10t", classes=["a", "b"]).save_pretrained(tmp_path)
    assert ts.load_checkpoint(tmp_path, classes=["x", "y"])[0].spec.classes == ("x", "y")
    assert ts.inspect_checkpoint(tmp_path, classes=2).spec.classes == ("a", "b")
    with pytest.raises(CheckpointError, match="input_spec"):
        ts.inspect_checkpoint(tmp_path, input_spec=ts.InputSpec(value_range=(0, 255)))


def test_tensors_that_the_spec_has_no_place_for_are_refused(tmp_path):
    model = ts.create_model("fcn", "resnet10t", classes=2, channels=8, auxiliary=True)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["spec"]["auxiliary"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TransferError, match=r"no place for: auxiliary_head\."):
        ts.load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"input": {"channels": 10**10}}, "channels must be a whole number from 1 to 65536"),
        ({"decoder": {"channels": 10**6}}, "does not fit"),
        ({"decoder": {"dropout": "x"}}, "a dropout from 0 to below 1 .* got .*dropout='x'"),
    ],
)
def test_a_spec_that_asks_for_more_than_the_file_has_is_refused(change, told, tmp_path):
    ts.create_model("fcn", "resnet10t", classes=2, channels=8).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["spec"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TransfersegError, match=told):
        ts.load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--option", "entry", "5"], "entry= is the name of an entry"),
        (["--option", "threshold", "abc"], "threshold must lie between 0 and 1, got 'abc'"),
        (["--option", "input_spec", '{"no": 1}'], "fields of InputSpec"),
        (["--option", "input_spec", "5"], "input_spec= is an InputSpec, got 5"),
        (["--option", "no_such", "5"], "no_such= says nothing"),
    ],
)
def test_options_of_the_command_line_that_are_wrong(arguments, told, tmp_path, capsys):
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "a.pth")
    status = main(["inspect", str(tmp_path / "a.pth"), *arguments])
    assert status == 1
    assert told in capsys.readouterr().err


def test_an_input_spec_of_the_command_line(tmp_path, capsys):
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "a.pth")
    given = ["--option", "input_spec", '{"value_range": [0, 255]}', "--json"]
    assert main(["inspect", str(tmp_path / "a.pth"), *given]) == 0
    spec = json.loads(capsys.readouterr().out)["spec"]
    assert spec["input"]["value_range"] == [0.0, 255.0]


def test_the_command_line_refuses_a_path_twice_and_a_folder_that_is_a_file(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "a.pth", "--option", "path", "x"])
    assert ended.value.code == 2
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "a.pth")]) == 1
    assert "a.pth" in capsys.readouterr().err


def test_encoders_alone_say_why_they_are_not_loaded_and_refuse_options(tmp_path):
    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / "a.pth")
    assert "an encoder and no head" in ts.inspect_checkpoint(tmp_path / "a.pth").missing
    with pytest.raises(CheckpointError, match="aling_corners= says nothing"):
        ts.inspect_checkpoint(tmp_path / "a.pth", aling_corners=True)


@pytest.mark.parametrize(
    "shapes",
    [
        {"backbone.conv1.weight": (), "classifier.0.weight": (), "classifier.1.running_mean": (),
         "classifier.4.weight": ()},
        {"backbone.conv1.weight": (1,), "classifier.0.convs.0.0.weight": (),
         "classifier.4.weight": (2,)},
        {"features.0.weight": (), "classifier.0.weight": (2, 2), "classifier.3.weight": (),
         "classifier.6.weight": ()},
    ],
)  # fmt: skip
def test_heads_without_rows_are_of_no_format(shapes):
    assert examine(Listing("a.pth", shapes, {}), {}).info.spec is None


def test_a_classifier_without_rows_is_no_index_error():
    listing = Listing("a.pth", {**shapes_of(bare("resnet10t")), "fc.weight": (), "fc.bias": ()}, {})
    assert examine(listing, {}).info.classes == 0
