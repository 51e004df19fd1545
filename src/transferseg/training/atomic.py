"""Files and folders that are either the former ones or the new ones, never half of each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from transferseg.errors import TrainingError, TransfersegError


def partial_path(path: Path) -> Path:
    """Where the new one is written: a hidden sibling, on the same file system."""
    return path.parent / f".{path.name}.partial"


def former_path(path: Path) -> Path:
    """Where the former folder lies for the moment between the two renames."""
    return path.parent / f".{path.name}.former"


#: What a training does next when something of it could not be written.
_SAVE_AGAIN = "save again, or run the training again with resume=True"


@contextmanager
def writing(what: str, path: Path, *, then: str = _SAVE_AGAIN) -> Iterator[None]:
    """Tell a disk that is full and a place that is read-only as an error that says what to do.

    Args:
        what: is written, as the message says it.
        path: where.
        then: what to do once there is room.

    Raises:
        TrainingError: the system, torch or safetensors could not write.

    Example:
        >>> with writing("the model", Path("/run/best")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        transferseg.errors.TrainingError: the model could not be written to /run/best: [Errno 28] No
        space left on device (... free there). ...
    """
    try:
        yield
    except TransfersegError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's writers know no OSError
        raise TrainingError(
            f"{what} could not be written to {path}: {error} ({_free(path)} free there). What was "
            f"there before is as it was. Free space, or make the place writable; then {then}."
        ) from error


def _free(path: Path) -> str:
    there = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path())
    try:
        return f"{shutil.disk_usage(there).free / 1e6:,.1f} MB"
    except OSError:
        return "an unknown amount"


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


def write_bytes(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Replace a file in one step; missing folders are made.

    Args:
        path: the file.
        content: all of it.
        shared: other processes may write this file at the same moment, so that each prepares it
            under a name of its own; a kill leaves that one behind. Otherwise the next time uses it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_bytes(Path(folder) / "sub" / "a", b"new")
        ...     (Path(folder) / "sub" / "a").read_bytes()
        b'new'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    if shared:
        partial = partial.with_suffix(f".{os.getpid()}{partial.suffix}")
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
    for path in sorted(partial.rglob("*")):
        _sync(path)
    _sync(partial)
    replaced = folder.exists()
    if replaced:
        # Only with a former version in place may an older leftover go: it could be the last one.
        if former.exists():
            shutil.rmtree(former)
        folder.rename(former)
    try:
        partial.rename(folder)
    except OSError:
        if replaced:
            former.rename(folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(former, ignore_errors=True)  # if it stays, the next time removes it


def discard_folder(folder: Path) -> None:
    """Remove what `begin_folder` made, if `finish_folder` did not put it in its place."""
    shutil.rmtree(partial_path(folder), ignore_errors=True)


def recovered(folder: Path) -> Path:
    """The folder itself, or its former version if a replacement was cut between its two renames."""
    former = former_path(folder)
    return former if former.exists() and not folder.exists() else folder


def settle_folder(folder: Path) -> None:
    """Clear away what a replacement that was cut has left: afterwards `folder` is what counts.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     former_path(Path(root) / "run").mkdir()  # the kill came between the two renames
        ...     settle_folder(Path(root) / "run")
        ...     [path.name for path in Path(root).iterdir()]
        ['run']
    """
    former = recovered(folder)
    if former != folder:
        former.rename(folder)
    shutil.rmtree(former_path(folder), ignore_errors=True)
    discard_folder(folder)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Write a folder anew and swap it in at the end; an exception leaves the former one as it was.

    Args:
        folder: what is replaced, or made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     with replacing(Path(root) / "run") as partial:
        ...         _ = (partial / "a.txt").write_text("1")
        ...     sorted(path.name for path in (Path(root) / "run").iterdir())
        ['a.txt']
    """
    try:
        yield begin_folder(folder)
        finish_folder(folder)
    finally:
        discard_folder(folder)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folder; its renames are journalled
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
