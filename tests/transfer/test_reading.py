import pickle

import pytest
import torch
from safetensors.torch import save_file

from transferseg.errors import CheckpointError
from transferseg.transfer import read_source

TENSORS = {"conv.weight": torch.ones(2, 2), "conv.bias": torch.zeros(2)}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_wrappers_are_peeled_and_told(prefix, wrapper, tmp_path):
    values = {prefix + key: value for key, value in TENSORS.items()}
    torch.save({wrapper: values, "epoch": 3} if wrapper else values, tmp_path / "model.pth")
    read = read_source(tmp_path / "model.pth")
    assert {k: v.tolist() for k, v in read.tensors.items()} == {
        k: v.tolist() for k, v in TENSORS.items()
    }
    told = "".join(read.peeled)
    assert prefix in told
    assert (wrapper or "") in told


def test_safetensors(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    assert set(read_source(tmp_path / "a.safetensors").tensors) == set(TENSORS)


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled(tmp_path, capsys):
    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump({"state_dict": Evil()}, file)
    torch.save({"state_dict": TENSORS, "args": Evil()}, tmp_path / "args.pth")
    for name in ("evil.pth", "args.pth"):
        with pytest.raises(CheckpointError, match=rf"{name} holds Python objects"):
            read_source(tmp_path / name)
    assert capsys.readouterr().out == ""


def test_broken_files_are_named(tmp_path):
    save_file(TENSORS, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-4])
    torch.save(TENSORS, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:300])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    names = (
        "cut.safetensors",
        "cut.pth",
        "empty.pth",
        "text.pth",
        "list.pth",
        "other.pth",
        "no.pt",
    )
    for name in names:
        with pytest.raises(CheckpointError, match=name):
            read_source(tmp_path / name)
