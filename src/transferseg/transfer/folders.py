"""Which file of a folder holds the weights, and weights that lie in several files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transferseg.errors import CheckpointError, some
from transferseg.transfer.files import WEIGHTS_FILE

#: How the name of a file ends that tells in which files the tensors are.
INDEX_SUFFIX = ".index.json"
#: What a folder may hold, in the order in which it is looked for.
WEIGHT_FILES = (
    WEIGHTS_FILE,
    f"{WEIGHTS_FILE}{INDEX_SUFFIX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
)


def weights_file(path: Path) -> Path:
    """The file with the weights, or the index of several, of a folder; a file is itself.

    Raises:
        CheckpointError: the folder has none; it says what there is.

    Example:
        >>> weights_file(Path("model.pth")).name
        'model.pth'
    """
    if not path.is_dir():
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    there = [file.name for file in sorted(path.iterdir())]
    raise CheckpointError(
        f"{path} holds no weights: expected one of {', '.join(WEIGHT_FILES)}, got "
        f"{some(there) or 'an empty folder'}. Pass the file itself if it has another name."
    )


def shard_files(index: Path) -> list[Path]:
    """The files that an index names, all of which must lie beside it.

    Raises:
        CheckpointError: no index, or a name that leads elsewhere.
    """
    names = sorted({str(name) for name in _table(index).values()})
    for name in names:
        if Path(name).name != name or name in ("", ".."):
            raise CheckpointError(f"{index} names {name!r}, which is not a file beside it.")
    return [index.parent / name for name in names]


def joined(index: Path, shards: Sequence[Mapping[Any, Any]]) -> dict[Any, Any]:
    """What the files of an index hold together, which must be what it lists.

    Raises:
        CheckpointError: tensors that are missing, too many, or in two files; it names them.
    """
    values: dict[Any, Any] = {}
    for shard in shards:
        if twice := [key for key in shard if key in values]:
            raise CheckpointError(f"{index}: {some(twice)} stand in two of its files.")
        values |= shard
    table = _table(index)
    missing = [key for key in table if key not in values]
    more = [key for key in values if key not in table]
    if missing or more:
        raise CheckpointError(
            f"{index} does not fit its files: they lack {some(missing) or 'nothing'}, and hold "
            f"besides {some(more) or 'nothing'}."
        )
    return values


def _table(index: Path) -> Mapping[str, Any]:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index of shards: {error!r}.") from error
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index} is not an index of shards: its weight_map names no file.")
    return table
