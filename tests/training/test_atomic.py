from __future__ import annotations

import pytest

from transferseg.training.atomic import former_path, recovered, replacing, write_text


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_an_exception_leaves_the_former_folder(tmp_path):
    folder = tmp_path / "run"
    with replacing(folder) as partial:
        write_text(partial / "a", "1")

    def fail(partial):
        write_text(partial / "a", "2")
        write_text(partial, "a folder, not a file")

    with pytest.raises(OSError), replacing(folder) as partial:
        fail(partial)
    assert (folder / "a").read_text() == "1"
    assert names(tmp_path) == ["run"]
    with replacing(folder) as partial:
        write_text(partial / "b", "3")
    assert names(folder) == ["b"]
    assert names(tmp_path) == ["run"]


def test_cut_between_the_renames_the_former_folder_is_found_and_kept(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with replacing(folder) as partial:
        write_text(partial / "a", "1")
    rename = type(folder).rename

    def cut(self, target):
        if self.name.endswith(".partial"):
            raise OSError("cut")
        return rename(self, target)

    monkeypatch.setattr(type(folder), "rename", cut)
    with pytest.raises(OSError, match="cut"), replacing(folder) as partial:
        write_text(partial / "a", "2")
    assert not folder.exists()
    assert recovered(folder) == former_path(folder)
    with pytest.raises(OSError, match="cut"), replacing(folder) as partial:
        write_text(partial / "a", "3")
    assert (recovered(folder) / "a").read_text() == "1"  # the only complete version survives
    monkeypatch.undo()
    with replacing(folder) as partial:
        write_text(partial / "a", "4")
    assert recovered(folder) == folder
    assert names(tmp_path) == ["run"]
