"""The docs' table of families says what the code does."""

import importlib.util
from pathlib import Path

import pytest

from tests.models.families import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"
#: known from shapes alone, without running the published encoder
CHEAP = ("plain", "vit", "swin")


@pytest.fixture(scope="module")
def tables():
    found = importlib.util.spec_from_file_location("tables", DOCS / "tables.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_table_has_every_family_in_order(tables):
    text = (DOCS / "architectures.md").read_text("utf-8")
    lines = text.split(tables.BEGIN)[1].split(tables.END)[0].splitlines()[2:]
    named = [tuple(cell.strip(" `") for cell in line.split("|")[1:3]) for line in lines]
    assert named == [(name, family.published) for name, family in FAMILIES.items()]


@pytest.mark.parametrize(
    "family",
    [n if n in CHEAP else pytest.param(n, marks=pytest.mark.grid) for n in FAMILIES],
)
def test_a_row_of_the_table_is_what_the_encoder_is(tables, family):
    assert tables.row(family) in (DOCS / "architectures.md").read_text("utf-8")
