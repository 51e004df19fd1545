from __future__ import annotations

from pathlib import Path

import pytest

from transferseg.training.atomic import (
    former_path,
    partial_path,
    recovered,
    replacing,
    settle_folder,
    write_text,
)

from .tiny import Stop


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


def break_rename(monkeypatch, error):
    """The second of the two renames fails."""
    rename = Path.rename

    def cut(self, target):
        if self.name.endswith(".partial"):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", cut)


def test_an_error_between_the_renames_puts_the_former_folder_back(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with replacing(folder) as partial:
        write_text(partial / "a", "1")
    break_rename(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space"), replacing(folder) as partial:
        write_text(partial / "a", "2")
    assert (folder / "a").read_text() == "1"
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("there", [True, False])
def test_what_a_kill_has_left_is_settled(tmp_path, there):
    folder = tmp_path / "run"
    former_path(folder).mkdir()
    write_text(former_path(folder) / "a", "1")
    partial_path(folder).mkdir()
    if there:
        write_text(folder / "a", "2")
    settle_folder(folder)
    assert names(tmp_path) == ["run"]
    assert (folder / "a").read_text() == ("2" if there else "1")
    settle_folder(tmp_path / "none")
    assert names(tmp_path) == ["run"]


def test_cut_between_the_renames_the_former_folder_is_found_and_kept(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with replacing(folder) as partial:
        write_text(partial / "a", "1")
    break_rename(monkeypatch, Stop("cut"))
    with pytest.raises(Stop), replacing(folder) as partial:
        write_text(partial / "a", "2")
    assert not folder.exists()
    assert recovered(folder) == former_path(folder)
    with pytest.raises(Stop), replacing(folder) as partial:
        write_text(partial / "a", "3")
    assert (recovered(folder) / "a").read_text() == "1"  # the only complete version survives
    monkeypatch.undo()
    with replacing(folder) as partial:
        write_text(partial / "a", "4")
    assert recovered(folder) == folder
    assert names(tmp_path) == ["run"]
