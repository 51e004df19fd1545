"""Files and folders that are either the former ones or the new ones, never half of each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def partial_path(path: Path) -> Path:
    """Where the new one is written: a hidden sibling, on the same file system."""
    return path.parent / f".{path.name}.partial"


def former_path(path: Path) -> Path:
    """Where the former folder lies for the moment between the two renames."""
    return path.parent / f".{path.name}.former"


def write_text(path: Path, text: str) -> None:
    """Replace a file's text in one step.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(Path(folder) / "a.txt", "new")
        ...     (Path(folder) / "a.txt").read_text()
        'new'
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step; missing folders are made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_bytes(Path(folder) / "sub" / "a", b"new")
        ...     (Path(folder) / "sub" / "a").read_bytes()
        b'new'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def begin_folder(folder: Path) -> Path:
    """Make the empty sibling in which a new version of `folder` is written.

    What an interrupted run has left there is removed.
    """
    partial = partial_path(folder)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def finish_folder(folder: Path) -> None:
    """Put what `begin_folder` made in the place of `folder`.

    Its files reach the disk first; the former folder is removed last. A folder cannot replace a
    full one in a single rename, so for a moment only `former_path(folder)` exists: see
    `recovered`.
    """
    partial, former = partial_path(folder), former_path(folder)
    for file in sorted(partial.rglob("*")):
        if file.is_file():
            _sync(file)
    _sync(partial)
    if folder.exists():
        # Only with a former version in place may an older leftover go: it could be the last one.
        if former.exists():
            shutil.rmtree(former)
        folder.rename(former)
    partial.rename(folder)
    _sync(folder.parent)
    if former.exists():
        shutil.rmtree(former)


def recovered(folder: Path) -> Path:
    """The folder itself, or its former version if a replacement was cut between its two renames."""
    former = former_path(folder)
    return former if former.exists() and not folder.exists() else folder


@contextmanager
def replacing(
    folder: Path, *, main: bool = True, wait: Callable[[], object] = lambda: None
) -> Iterator[Path]:
    """Write a folder anew and swap it in at the end; an exception leaves the former one as it was.

    Args:
        folder: what is replaced, or made.
        main: whether this process is the one that makes and swaps the folder.
        wait: returns when every process has called it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     with replacing(Path(root) / "run") as partial:
        ...         _ = (partial / "a.txt").write_text("1")
        ...     sorted(path.name for path in (Path(root) / "run").iterdir())
        ['a.txt']
    """
    partial = begin_folder(folder) if main else partial_path(folder)
    wait()
    try:
        yield partial
        wait()
        if main:
            finish_folder(folder)
        wait()
    finally:
        if main:
            shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folder; its renames are journalled
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
