"""The docs' tables of families say what the code does, and what the grid has recorded."""

import importlib.util
from pathlib import Path

import pytest

from tests.models import record
from tests.models.families import FAMILIES
from transferseg.models import DECODERS

DOCS = Path(__file__).parents[2] / "docs"
#: known from shapes alone, without running the published encoder
CHEAP = ("plain", "vit", "swin")


@pytest.fixture(scope="module")
def tables():
    found = importlib.util.spec_from_file_location("tables", DOCS / "tables.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page():
    return (DOCS / "architectures.md").read_text("utf-8")


def cells(tables, page, name):
    """The cells of a table in the page, by line and column."""
    lines = tables.between(page, name)[1].splitlines(keepends=True)
    head, _, *rows = ([cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines[:20])
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@pytest.mark.parametrize("name", ["families", "models", "exports"])
def test_a_table_has_every_family_in_order(tables, page, name):
    assert list(cells(tables, page, name)) == list(FAMILIES)


@pytest.mark.parametrize("name", ["models", "exports"])
def test_a_table_has_every_architecture(tables, page, name):
    assert all(list(row) == list(DECODERS) for row in cells(tables, page, name).values())


@pytest.mark.parametrize(
    "family",
    [n if n in CHEAP else pytest.param(n, marks=pytest.mark.grid) for n in FAMILIES],
)
def test_a_row_of_families_is_what_the_encoder_is(tables, page, family):
    assert tables.family_row(family) in tables.between(page, "families")[1]


@pytest.mark.parametrize(("architecture", "family"), [("unet", "plain"), ("fcn", "swin")])
def test_a_model_has_the_parameters_and_the_stride_of_the_table(tables, page, architecture, family):
    given = cells(tables, page, "models")[family][architecture]
    assert given == tables.model_cell(architecture, family)


def test_the_table_of_exports_is_what_the_grid_recorded(tables, page):
    assert tables.between(page, "exports")[1] == tables.exports()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "all"),
        ({"export_size": "refused: so"}, "not: export of a free size"),
        ({"compile": "failed: so", "onnx_size": "failed: so"}, "not: compile, ONNX of a free size"),
        ({"onnx_batch": None}, "not run"),
    ],
)
def test_a_cell_says_what_was_not_found(tables, changed, said):
    found = dict.fromkeys(tables.CHECKS, "ok") | changed
    assert tables.export_cell({k: v for k, v in found.items() if v is not None}) == said


def test_the_record_has_outcomes_of_known_cells_and_checks():
    results = record.load()
    assert set(results) == {"versions", "exports", "inductor", "contracts"}
    assert set(results["versions"]) == {"python", *record.PACKAGES}
    for kind in ("exports", "inductor", "contracts"):
        assert set(results[kind]) <= set(DECODERS)
        for by_family in results[kind].values():
            assert set(by_family) <= set(FAMILIES)
            for found in by_family.values():
                assert kind == "contracts" or set(found) <= set(record.EXPORTS)
                starts = ("ok", "refused: ", "failed: ")
                assert all(outcome.startswith(starts) for outcome in found.values())
