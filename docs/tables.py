"""Writes the table of encoder families in architectures.md, from the models themselves.

    python docs/tables.py

The families are those that the tests go through (`tests/models/families.py`); their published
members are described as `encoder_capabilities` finds them, and counted without memory for weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.models.families import FAMILIES  # noqa: E402 - the tests are no installed package

from transferseg.models import encoder_capabilities  # noqa: E402
from transferseg.models.capabilities import _build  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
BEGIN, END = "<!-- families: begin -->\n", "<!-- families: end -->\n"
HEAD = """\
| family | for example | maps at strides | output strides | padded to a multiple of | parameters |
|---|---|---|---|---|---|
"""


def row(family: str) -> str:
    """One family's line."""
    name = FAMILIES[family].published
    found = encoder_capabilities(name)
    with torch.device("meta"):
        model = _build(name, 3, found.output_strides[-1])
    strides, able = (", ".join(map(str, s)) for s in (found.strides, found.output_strides))
    padded = "not padded" if found.multiple == 1 else found.multiple
    maps = f"{found.plain.patch}; {strides} by a pyramid" if found.plain else strides
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return f"| {family} | `{name}` | {maps} | {able} | {padded} | {millions:.1f} M |\n"


def table(families: list[str]) -> str:
    """The whole table, or some of its lines."""
    return HEAD + "".join(map(row, families))


def write() -> None:
    """Replace the table in the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    new = before + BEGIN + table(list(FAMILIES)) + END + after
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    write()
