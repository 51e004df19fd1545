import json

import pytest
import timm
import torch
from safetensors.torch import save_file

import transferseg as ts
from tests.load.files import assert_equal_logits, image, randomise
from transferseg.errors import CheckpointError
from transferseg.load.listing import read_listing


@pytest.fixture(scope="module")
def theirs():
    return randomise(timm.create_model("resnet10t", num_classes=3))


def write_shards(folder, state, suffix, save):
    names = list(state)
    table = {}
    for index, part in enumerate((names[::2], names[1::2])):
        file = f"part-{index}{suffix}"
        save({key: state[key] for key in part}, folder / file)
        table |= dict.fromkeys(part, file)
    index_file = {".bin": "pytorch_model.bin", ".safetensors": "model.safetensors"}[suffix]
    (folder / f"{index_file}.index.json").write_text(json.dumps({"weight_map": table}))
    return folder / f"{index_file}.index.json"


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_sharded_folders(suffix, theirs, tmp_path):
    save = save_file if suffix == ".safetensors" else torch.save
    index = write_shards(tmp_path, theirs.state_dict(), suffix, save)
    for path in (tmp_path, index):
        assert_equal_logits(theirs, path, image())
        assert ts.inspect_checkpoint(path).tensors == len(theirs.state_dict())
    table = json.loads(index.read_text())
    lost = next(iter(table["weight_map"]))
    del table["weight_map"][lost]
    index.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=rf"hold besides {lost}"):
        ts.load_checkpoint(tmp_path)
    table["weight_map"][lost] = "../part-0"
    index.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=r"'\.\./part-0', which is not a file beside it"):
        ts.inspect_checkpoint(tmp_path)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="not an index of shards"):
        ts.inspect_checkpoint(tmp_path)


def test_safetensors_are_inspected_by_their_header(theirs, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_file(theirs.state_dict(), path, metadata={"note": "mine"})
    monkeypatch.setattr("safetensors.torch.load_file", None)
    monkeypatch.setattr("transferseg.transfer.reading.load_file", None)
    listing = read_listing(path)
    assert listing.shapes == {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert listing.dtypes["bn1.num_batches_tracked"] == torch.int64
    assert listing.metadata == {"note": "mine"}
    assert ts.inspect_checkpoint(path).encoder == "resnet10t"


def test_wrappers_are_peeled_and_told(theirs, tmp_path):
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    _, report = assert_equal_logits(theirs, tmp_path / "a.pth", image())
    assert report.peeled == ("state_dict", "module.")
    assert ts.inspect_checkpoint(tmp_path / "a.pth").peeled == ("state_dict", "module.")
    save_file(state, tmp_path / "b.safetensors")
    assert ts.inspect_checkpoint(tmp_path / "b.safetensors").peeled == ("module.",)


def test_half_precision_is_told_and_loaded(theirs, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in theirs.state_dict().items()}
    save_file(half, tmp_path / "a.safetensors")
    assert ts.inspect_checkpoint(tmp_path / "a.safetensors").dtypes == ("float16", "int64")
    model, _ = ts.load_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(model.state_dict()["head.weight"], half["fc.weight"].float())


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b'{"a": 1}'])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_files_that_hold_no_checkpoint(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    for call in (ts.inspect_checkpoint, ts.load_checkpoint):
        with pytest.raises(CheckpointError, match=name):
            call(tmp_path / name)


def test_what_is_not_there(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for call in (ts.inspect_checkpoint, ts.load_checkpoint):
        with pytest.raises(CheckpointError, match=r"holds no weights: .*model\.safetensors.*notes"):
            call(tmp_path)
        for name in ("a.pth", "a.safetensors"):
            with pytest.raises(CheckpointError, match=f"{name} does not exist"):
                call(tmp_path / name)


def test_a_sharded_folder_gives_its_encoder_to_a_model(theirs, tmp_path):
    write_shards(tmp_path, theirs.state_dict(), ".safetensors", save_file)
    model = ts.create_model("unet", "resnet10t", classes=2, weights=tmp_path)
    assert torch.equal(model.encoder.model.conv1[0].weight, theirs.conv1[0].weight)


def test_what_stands_beside_the_weights_is_told_and_can_be_chosen(theirs, tmp_path):
    average = {key: value * 2 for key, value in theirs.state_dict().items()}
    state = {"model": theirs.state_dict(), "model_ema": average, "epoch": 3, "optimizer": {"lr": 1}}
    torch.save(state, tmp_path / "a.pth")
    info = ts.inspect_checkpoint(tmp_path / "a.pth")
    assert info.others == ("epoch", "optimizer", "model_ema (weights too: entry='model_ema')")
    assert "optimizer" in str(info)
    model, report = ts.load_checkpoint(tmp_path / "a.pth", entry="ema")
    assert torch.equal(model.head.weight, average["fc.weight"])
    assert report.peeled == ("model_ema",)
    assert "beside the weights: optimizer" in str(report)
    twins = {f"ema_{key.replace('.', '_')}": value * 2 for key, value in theirs.named_parameters()}
    torch.save({"state_dict": {**theirs.state_dict(), **twins}}, tmp_path / "mmcv.pth")
    info = ts.inspect_checkpoint(tmp_path / "mmcv.pth")
    assert "ema_" in info.others
    assert "as mmcv's EMAHook keeps them: one set is the moving average" in str(info)
    model, _ = ts.load_checkpoint(tmp_path / "mmcv.pth", entry="ema_")
    assert torch.equal(model.head.weight, average["fc.weight"])


def test_what_a_folder_cannot_be(theirs, tmp_path, monkeypatch):
    state = theirs.state_dict()
    index = write_shards(tmp_path, state, ".bin", torch.save)
    for name in ("..", ""):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="which is not a file beside it"):
            ts.inspect_checkpoint(tmp_path)
    torch.save({"state_dict": state}, tmp_path / "one.bin")
    index.write_text(json.dumps({"weight_map": {"state_dict": "one.bin"}}))
    with pytest.raises(CheckpointError, match="state_dict of its files are no tensors"):
        ts.load_checkpoint(tmp_path)
    index.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="not an index of shards"):
        ts.load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot be opened|does not exist"):
        ts.load_checkpoint(tmp_path / ("a" * 300))
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert ts.inspect_checkpoint(tmp_path).encoder == "resnet10t"

    def unreadable(_):
        raise PermissionError("not yours")

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("pathlib.Path.iterdir", unreadable)
    with pytest.raises(CheckpointError, match="cannot be opened: not yours"):
        ts.inspect_checkpoint(tmp_path / "empty")
