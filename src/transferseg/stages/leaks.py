"""Nobody that a stage is scored on has been seen by a stage before it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transferseg.errors import CheckpointError, DataError, some
from transferseg.stages.data import StageData

SEEN_FILE = "seen.json"


@dataclass(frozen=True)
class Seen:
    """Whom one stage looked at, in training or to choose its best epoch.

    Attributes:
        stage: its name.
        patients: whose names the groups are; see `StageData.patients`.
        groups: of its training and validation images.
        contents: their content hashes; () when the pictures were not read.
    """

    stage: str
    patients: str
    groups: tuple[str, ...]
    contents: tuple[str, ...]


def seen_by(name: str, data: StageData) -> Seen:
    """What a stage of this name and data looks at."""
    facts = data.facts
    contents = {facts.contents[i] for i in data.seen} if facts.contents else set()
    groups = {facts.groups[i] for i in data.seen}
    return Seen(name, data.patients, tuple(sorted(groups)), tuple(sorted(contents)))


def check_chain(name: str, data: StageData, ancestors: Sequence[Seen]) -> None:
    """Check that no validation or test image of a stage was seen by a stage before it.

    Compared are groups, where both stages name patients alike (`StageData.patients`), and pictures
    by content, where both have read them.

    Raises:
        DataError: which stage saw what.
    """
    facts, held_out = data.facts, data.held_out
    groups = {facts.groups[i] for i in held_out}
    contents = {facts.contents[i]: i for i in held_out} if facts.contents else {}
    for ancestor in ancestors:
        shared = sorted(groups & set(ancestor.groups)) if ancestor.patients == data.patients else []
        if shared:
            raise DataError(
                f"stage {name!r} is validated or tested on {len(shared)} group(s) that stage "
                f"{ancestor.stage!r} before it has seen: {some(shared)}. Split all stages of a "
                "chain by the same patients, or leave these out of the earlier one."
            )
        same = sorted(data.reader.ids[contents[h]] for h in set(contents) & set(ancestor.contents))
        if same:
            raise DataError(
                f"stage {name!r} is validated or tested on {len(same)} picture(s) that stage "
                f"{ancestor.stage!r} before it has seen: {some(same)}. Leave them out of one."
            )


def seen_text(seen: Sequence[Seen]) -> str:
    """JSON text of whom a chain has seen."""
    return json.dumps([asdict(one) for one in seen])


def read_seen(folder: Path) -> tuple[Seen, ...]:
    """Whom a stage's checkpoint and its ancestors have seen.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / SEEN_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            Seen(v["stage"], v["patients"], tuple(v["groups"]), tuple(v["contents"]))
            for v in values
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}.") from error
