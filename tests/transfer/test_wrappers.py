"""Checkpoints as training libraries write them: the weights found, the rest told, nothing made."""

import argparse
import pathlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import transferseg as ts
from tests.transfer.writers import classes, runner_file, with_state
from transferseg.errors import CheckpointError
from transferseg.transfer import read_listing, read_source
from transferseg.transfer.inert import Inert
from transferseg.transfer.wrappers import EMA_ENTRIES, WEIGHT_ENTRIES

TENSORS = {"conv.weight": torch.ones(2, 2), "conv.bias": torch.zeros(2)}
EMA = {key: value + 5 for key, value in TENSORS.items()}


def under(prefix, tensors=TENSORS):
    return {prefix + key: value for key, value in tensors.items()}


def assert_is(found, tensors):
    assert set(found.tensors) == set(tensors)
    assert all(torch.equal(found.tensors[key], value) for key, value in tensors.items())


def both(source, tensors=TENSORS, **options):
    """The source read, and its listing, which say the same."""
    found, listing = read_source(source, **options), read_listing(source, **options)
    assert_is(found, tensors)
    assert listing.shapes == {key: tuple(value.shape) for key, value in tensors.items()}
    for name in ("origin", "peeled", "others", "entries", "skipped", "metadata", "remarks"):
        assert getattr(found, name) == getattr(listing, name)
    return found


@pytest.mark.parametrize("zipped", [True, False])
def test_a_runner_s_checkpoint(tmp_path, zipped, monkeypatch):
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda *a: save(*a, _use_new_zipfile_serialization=zipped))
    runner_file(tmp_path / "iter_160000.pth", TENSORS)
    assert "mmengine" not in sys.modules
    found = both(tmp_path / "iter_160000.pth")
    assert found.peeled == ("state_dict",)
    assert found.others == ("meta", "message_hub", "optimizer", "param_schedulers")
    assert "mmengine.logging.history_buffer.HistoryBuffer" in found.skipped
    assert found.metadata["meta"]["dataset_meta"]["classes"] == ["road", "wall"]
    assert found.metadata["meta"]["cfg"].startswith("model = dict")
    assert "mmengine" not in sys.modules
    assert "skipped objects: " in found.remarks[-1]


def test_arguments_are_read_without_their_classes(tmp_path):
    """MAE's and DINO's argparse.Namespace; NumPy's scalars; paths."""
    args = argparse.Namespace(
        arch="vit_small", lr=np.float64(0.5), out=pathlib.PurePosixPath("a/b"), sizes=[1, 2]
    )
    saved = {"model": TENSORS, "args": args, "best": np.float32(0.25), "seed": np.arange(3)}
    torch.save(saved, tmp_path / "mae.pth")
    found = both(tmp_path / "mae.pth")
    assert found.others == ("args", "best", "seed")
    assert found.metadata["args"]["arch"] == "vit_small"
    assert found.metadata["args"]["sizes"] == [1, 2]
    assert {"argparse.Namespace", "numpy.dtype"} <= set(found.skipped)
    torch.save({"model": TENSORS, "args": SimpleNamespace(arch="x")}, tmp_path / "a.pth")
    assert both(tmp_path / "a.pth").metadata["args"] == {"arch": "x"}


def test_lightning(tmp_path):
    parsing = "pytorch_lightning.utilities.parsing.AttributeDict"
    config = "omegaconf.dictconfig.DictConfig"
    with classes(parsing, config) as (attributes, dict_config):
        given = attributes(lr=0.1, name="unet")
        saved = {
            "epoch": 3,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": under("model."),
            "hyper_parameters": given,
            "hparams_type": attributes,
            "config": with_state(dict_config, _content={"a": 1}),
            "callbacks": {
                "ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.ones(1)}
            },
        }
        torch.save(saved, tmp_path / "last.ckpt")
    found = both(tmp_path / "last.ckpt")
    assert found.peeled == ("state_dict", "model.")
    assert found.metadata["hyper_parameters"] == {"lr": 0.1, "name": "unet"}
    assert found.metadata["config"] == {"_content": {"a": 1}}
    assert set(found.skipped) == {parsing, config}
    assert found.entries == ()
    # another file whose network happens to be called `model` is not Lightning's
    both({"state_dict": under("model.")}, under("model."))
    # a loss with weights of its own: then the prefix is no wrapper
    mixed = {**under("model."), "loss.weight": torch.ones(1)}
    both({"state_dict": mixed, "pytorch-lightning_version": "2"}, mixed)
    compiled = {"state_dict": under("net._orig_mod."), "pytorch-lightning_version": "2"}
    assert both(compiled).peeled == ("state_dict", "net.", "_orig_mod.")


@pytest.mark.parametrize(
    "ema", ["state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"]
)
@pytest.mark.parametrize("plain", ["state_dict", "model", "model_state_dict"])
def test_the_plain_weights_are_taken_and_the_average_is_told(ema, plain):
    saved = {ema: under("module.", EMA), plain: under("module."), "epoch": 3, "optimizer": {}}
    found = both(saved)
    assert found.peeled == (plain, "module.")
    assert found.entries == (ema,)
    assert found.others == (ema, "epoch", "optimizer")
    assert f"{ema!r} holds weights too: entry={ema!r}" in found.remarks
    for name in ("ema", ema):
        chosen = both(saved, EMA, entry=name)
        assert chosen.peeled == (ema, "module.")
        assert chosen.entries == (plain,)
    assert both({ema: EMA, "epoch": 1}, EMA).peeled == (ema,)


def test_mmengine_s_ema_hook_saves_the_average_as_the_weights(tmp_path):
    """As its before_save_checkpoint writes it: the values of the two are exchanged."""
    averaged = {"steps": torch.tensor(7), **under("module.", TENSORS)}
    saved = {"meta": {}, "state_dict": EMA, "ema_state_dict": averaged}
    torch.save(saved, tmp_path / "iter_7.pth")
    for entry in (None, "ema", "state_dict"):
        found = both(tmp_path / "iter_7.pth", EMA, entry=entry)
        assert found.peeled == ("state_dict",)
        assert "'state_dict' is the moving average: mmengine's EMAHook" in found.remarks[0]
    trained = both(tmp_path / "iter_7.pth", entry="ema_state_dict")
    assert trained.peeled == ("ema_state_dict", "module.")
    assert trained.others == ("meta", "state_dict", "steps")
    assert trained.entries == ("state_dict",)
    # torch's AveragedModel counts under another name, and who saves it exchanges nothing
    averaged = {"n_averaged": torch.tensor(7), **under("module.", EMA)}
    plain = {"state_dict": TENSORS, "ema_state_dict": averaged}
    assert both(plain, EMA, entry="ema").peeled == ("ema_state_dict", "module.")
    assert not both(plain).notes
    assert both(averaged, EMA).others == ("n_averaged",)
    own = {"steps": torch.ones(2), **TENSORS}  # a network's own tensor of that name
    both({"state_dict": own}, own)


def test_mmcv_s_ema_hook_keeps_buffers_beside_the_parameters(tmp_path):
    """Its names: ema_ and the parameter's with _ for the points; no buffer has a twin."""
    statistics = {"bn.running_mean": torch.rand(2)}
    plain = {**TENSORS, **statistics}
    twins = {f"ema_{key.replace('.', '_')}": value for key, value in EMA.items()}
    torch.save({"meta": {}, "state_dict": {**plain, **twins}}, tmp_path / "a.pth")
    found = both(tmp_path / "a.pth", plain)
    assert found.others == ("meta", "ema_")
    assert "one set is the moving average" in found.remarks[0]
    chosen = both(tmp_path / "a.pth", {**EMA, **statistics}, entry="ema_")
    assert chosen.peeled == ("state_dict", "ema_")
    wrapped = {"state_dict": under("module.", {**plain, **twins})}  # DataParallel's
    assert both(wrapped, plain).others == ("ema_",)
    assert both(wrapped, {**EMA, **statistics}, entry="ema_").peeled[-1] == "module."
    with pytest.raises(CheckpointError, match=r"unknown entry 'ema'.*'ema_'"):
        read_source(tmp_path / "a.pth", entry="ema")
    with pytest.raises(CheckpointError, match="takes the buffers of mmcv's EMAHook"):
        read_source({"state_dict": TENSORS}, entry="ema_")
    other = {**plain, **twins, "ema_decay": torch.ones(1)}  # belongs to no parameter
    both({"state_dict": other}, other)


def test_dino_s_teacher_and_student():
    head = {"head.mlp.0.weight": torch.ones(1), "head.last_layer.weight_g": torch.ones(1)}
    saved = {
        "student": {**under("module.backbone."), **under("module.", head)},
        "teacher": {**under("backbone.", EMA), **head},
        "epoch": 3,
    }
    found = both(saved, {**EMA, **head})
    assert found.peeled == ("teacher", "backbone.")
    assert found.entries == ("student",)
    student = both(saved, {**TENSORS, **head}, entry="student")
    assert student.peeled == ("student", "module.", "backbone.")
    other = {**under("backbone."), "decoder.weight": torch.ones(1)}
    both({"teacher": other}, other)


def test_accelerate_and_deepspeed(tmp_path):
    save_file(under("module._orig_mod."), tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = both(tmp_path)
    assert found.peeled == ("module.", "_orig_mod.")
    assert found.metadata == {"format": "pt"}
    assert both({"module": TENSORS, "ds_version": "0.14", "dp_world_size": 8}).peeled == ("module",)


def test_nested_wrappers_and_extra_state():
    nested = {"model": {"state_dict": {**TENSORS, "norm._extra_state": None}, "a": 1}, "epoch": 3}
    found = both(nested)
    assert found.peeled == ("model", "state_dict")
    assert found.others == ("epoch", "a", "norm._extra_state")


def test_entries_of_other_names():
    saved = {"generator": TENSORS, "critic": EMA, "epoch": 3}
    with pytest.raises(CheckpointError, match=r"3 other values.*entry='generator'"):
        read_source(saved)
    assert both(saved, EMA, entry="critic").peeled == ("critic",)
    with pytest.raises(CheckpointError, match=r"unknown entry 'critik'.*Did you mean 'critic'"):
        read_source(saved, entry="critik")
    with pytest.raises(CheckpointError, match="unknown entry 'ema'"):
        read_source({"model": TENSORS}, entry="ema")


def test_a_transfer_says_what_it_took():
    target = torch.nn.ModuleDict({"conv": torch.nn.Linear(2, 2)})
    saved = {"state_dict": TENSORS, "state_dict_ema": EMA, "epoch": 3}
    report = ts.transfer_weights(saved, target, parts="conv", entry="ema")
    assert torch.equal(target["conv"].weight, EMA["conv.weight"])
    assert "peeled 'state_dict_ema'" in report.to_text()
    assert "not read: state_dict, epoch" in report.to_text()


def test_a_dict_that_holds_itself_under_every_name():
    saved = {"epoch": 3}
    saved |= dict.fromkeys((*WEIGHT_ENTRIES, *EMA_ENTRIES), saved)
    with pytest.raises(CheckpointError, match="expected a dict of tensors"):
        read_source(saved)


def test_metadata_has_an_end():
    once = [1] * 20_000
    found = read_source({"model": TENSORS, "a": [[[once] * 20_000] for _ in range(6)]})
    assert count(found.metadata["a"]) <= 20_001
    inert = Inert("argparse.Namespace")
    inert.state = dict.fromkeys(map(str, range(100_000)), 1)
    found = read_source({"model": TENSORS, "a": [inert] * 20_000})
    assert count(found.metadata["a"]) <= 20_001


def count(value):
    inner = value.values() if isinstance(value, dict) else value
    return 1 + sum(map(count, inner)) if isinstance(value, dict | list) else 1


def test_wrappers_around_wrappers_have_an_end():
    found = read_source({"module." * 3_000_000 + "w": torch.ones(1)})
    assert found.peeled == ("module.",) * 8


@pytest.mark.parametrize("names", [(1, "1"), ("w\ud800", "b"), ("a\0", "b"), ((1, 2), "b")])
def test_names_that_are_no_texts_are_refused(names):
    with pytest.raises(CheckpointError, match="names of tensors are printable texts"):
        read_source(dict.fromkeys(names, torch.ones(1)))


def test_keys_of_a_kind_of_their_own_are_not_taken_for_one(tmp_path):
    torch.save({np.str_("a"): torch.ones(1), np.str_("b"): torch.zeros(1)}, tmp_path / "a.pth")
    for read in (read_source, read_listing):
        with pytest.raises(
            CheckpointError, match=r"(?s)a\.pth: names of tensors.*not made.*not made"
        ):
            read(tmp_path / "a.pth")


def test_tensors_beside_an_entry_are_not_lost():
    saved = {"model": TENSORS, "fc.weight": torch.ones(2, 2), "best": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"beside the entry 'model': fc\.weight\. .*entry="):
        read_source(saved)
    assert both(saved, entry="model").others == ("fc.weight", "best")
    random = {"model": TENSORS, "best": torch.ones(1), "rng": torch.ones(9, dtype=torch.uint8)}
    assert both(random).others == ("best", "rng")
