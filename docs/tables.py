"""Writes the tables of encoder families in architectures.md, from the models themselves.

    python docs/tables.py

The families are those that the tests go through (`tests/models/families.py`); their published
members are described as `encoder_capabilities` finds them, and counted without memory for weights.
What exports is what `nox -s grid` has written into exports.json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.models import record  # noqa: E402 - the tests are no installed package
from tests.models.families import FAMILIES  # noqa: E402

import transferseg as ts  # noqa: E402
from transferseg.errors import SpecError  # noqa: E402
from transferseg.models import DECODERS  # noqa: E402
from transferseg.models.encoders import DILATIONS, Encoder  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
ARCHITECTURES = tuple(DECODERS)
#: a check of the grid -> as the table says it
CHECKS = {
    "compile": "compile",
    "export_batch": "export",
    "export_size": "export of a free size",
    "onnx_batch": "ONNX",
    "onnx_size": "ONNX of a free size",
}


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def _head(*cells: str) -> str:
    return _line(*cells) + "|---" * len(cells) + "|\n"


def _millions(module: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f}"


def _styles(name: str, output_stride: int) -> list[str]:
    """The ways in which an encoder is dilated."""
    found = []
    for style in DILATIONS:
        try:
            Encoder(name, output_stride=output_stride, dilation=style)
        except SpecError:
            continue
        found.append(f"`{style}`")
    return found


def family_row(family: str) -> str:
    """What a family's published member is."""
    name = FAMILIES[family].published
    can = ts.encoder_capabilities(name)
    with torch.device("meta"):
        model = Encoder(name).model
        dilated = len(can.output_strides) > 1
        styles = _styles(name, can.output_strides[0]) if dilated else ["not dilated"]
    strides, able = (", ".join(map(str, s)) for s in (can.strides, can.output_strides))
    maps = f"{can.plain.patch}; {strides} by a pyramid" if can.plain else strides
    padded = "not padded" if can.multiple == 1 else can.multiple
    return _line(
        family, f"`{name}`", maps, able, ", ".join(styles), padded, f"{_millions(model)} M"
    )


def families() -> str:
    """Family by family: the published encoder."""
    head = ("family", "for example", "maps at strides", "output strides", "dilation")
    return _head(*head, "padded to a multiple of", "parameters") + "".join(
        map(family_row, FAMILIES)
    )


def model_cell(architecture: str, family: str) -> str:
    """Millions of parameters of a whole model, and the stride of its deepest map."""
    with torch.device("meta"):
        model = ts.create_model(architecture, FAMILIES[family].published, classes=2)
    return f"{_millions(model)}, {model.encoder.strides[-1]}"


def models() -> str:
    """Architecture x family: the whole model over the published encoder."""
    head = _head("family", *(f"`{architecture}`" for architecture in ARCHITECTURES))
    rows = (_line(f, *(model_cell(a, f) for a in ARCHITECTURES)) for f in FAMILIES)
    return head + "".join(rows)


def export_cell(outcomes: dict[str, str]) -> str:
    """What a cell of the grid says: all, all but something, or that it was not run."""
    if any(check not in outcomes for check in CHECKS):
        return "not run"
    without = [said for check, said in CHECKS.items() if outcomes[check] != "ok"]
    return f"not: {', '.join(without)}" if without else "all"


def exports() -> str:
    """Architecture x family: what the grid has recorded of the tiny member."""
    results: dict[str, Any] = record.load()
    cells = results["exports"]
    head = _head("family", *(f"`{architecture}`" for architecture in ARCHITECTURES))
    rows = (
        _line(f, *(export_cell(cells.get(a, {}).get(f, {})) for a in ARCHITECTURES))
        for f in FAMILIES
    )
    said = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return f"{head}{''.join(rows)}\nRecorded with {said}.\n"


TABLES = {"families": families, "models": models, "exports": exports}


def between(text: str, name: str) -> tuple[str, str, str]:
    """What is before a table in the page, the table, and what is after it."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, rest = text.split(begin)
    table, after = rest.split(end)
    return before + begin, table, end + after


def write() -> None:
    """Replace the tables in the page."""
    for name, table in TABLES.items():
        before, _, after = between(PAGE.read_text(encoding="utf-8"), name)
        PAGE.write_text(before + table() + after, encoding="utf-8")


if __name__ == "__main__":
    write()
