"""Nobody that a stage is scored on has been seen by a stage before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transferseg.errors import CheckpointError, DataError, some
from transferseg.stages.data import StageData
from transferseg.stages.lineage import LINEAGE_FILE
from transferseg.stages.stage import Stage

SEEN_FILE = "seen.json"


@dataclass(frozen=True)
class Seen:
    """Whom one stage looked at, in training or to choose its best epoch; no names, only hashes.

    Attributes:
        stage: its name.
        people: hashes of `StageData.patients` and group, of its training and validation images.
        contents: their content hashes; () when the pictures were not read.
    """

    stage: str
    people: tuple[str, ...]
    contents: tuple[str, ...]


def seen_by(name: str, data: StageData) -> Seen:
    """What a stage of this name and data looks at."""
    facts = data.facts
    contents = {facts.contents[i] for i in data.seen} if facts.contents else set()
    people = {_person(data, facts.groups[i]) for i in data.seen}
    return Seen(name, tuple(sorted(people)), tuple(sorted(contents)))


def _person(data: StageData, group: str) -> str:
    return hashlib.sha256(f"{data.patients}\0{group}".encode()).hexdigest()


def check_chain(name: str, data: StageData, ancestors: Sequence[Seen]) -> None:
    """Check that no validation or test image of a stage was seen by a stage before it.

    Compared are groups, where both stages name patients alike (`StageData.patients`), and pictures
    by content, where both have read them.

    Raises:
        DataError: which stage saw what.
    """
    facts, held_out = data.facts, data.held_out
    people = {_person(data, facts.groups[i]): facts.groups[i] for i in held_out}
    contents = {facts.contents[i]: i for i in held_out} if facts.contents else {}
    for ancestor in ancestors:
        shared = sorted(people[person] for person in set(people) & set(ancestor.people))
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


def check_whole_chain(stage: Stage) -> dict[str, tuple[Seen, ...]]:
    """Refuse a chain in which a stage is scored on what an earlier one has seen; trains nothing.

    Checkpoints of stages that a chain begins with count with all that they have seen, as parent
    and as first weights of an encoder or decoder.

    Returns:
        Key of each stage -> whom the chain has seen when it is done, the stage itself last.
    """
    seen: list[Seen] = []
    by_stage = {}
    for one in stage.chain:
        for folder in one.begun_with:
            if (folder / LINEAGE_FILE).is_file():
                seen += read_seen(folder)
        check_chain(one.name, one.data, seen)
        seen.append(seen_by(one.name, one.data))
        by_stage[one.key] = tuple(seen)
    return by_stage


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
        return tuple(Seen(v["stage"], tuple(v["people"]), tuple(v["contents"])) for v in values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error!r}. Without it nobody knows whom the stage has seen."
        ) from error
