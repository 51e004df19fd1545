"""What every model does: every pair of architecture, family, channels and size, once at least.

`nox -s grid` goes through the whole product. Here are the architectures that read several maps;
those that read the deepest are in `test_contracts_one_map.py`, so that two cores share them.
"""

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.contract import check_contract
from tests.models.cover import pairs, pairwise
from tests.models.families import AXES, FAMILIES, SIZES, SMALL, contract_cases
from transferseg.models import DECODERS


def test_small_options_cover_every_architecture():
    assert set(SMALL) == set(DECODERS)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_a_cover_holds_every_pair(lengths):
    axes = [[f"{axis}{value}" for value in range(length)] for axis, length in enumerate(lengths)]
    cases = pairwise(*axes)
    wanted = {pair for case in product(*axes) for pair in pairs(case)}
    assert set().union(*map(pairs, cases)) == wanted
    assert max(a * b for a, b in combinations(lengths, 2)) <= len(cases) <= len(wanted)


def test_the_cover_is_whole_and_small():
    cases = pairwise(*AXES)
    assert {case[:2] for case in cases} == set(product(DECODERS, FAMILIES))
    assert {case[1:3] for case in cases} == set(product(FAMILIES, AXES[2]))
    assert {case[1::2] for case in cases} == set(product(FAMILIES, SIZES))
    assert len(cases) == len(DECODERS) * len(FAMILIES)


@pytest.mark.parametrize(
    ("architecture", "family", "channels", "size"), contract_cases(one_map=False)
)
def test_the_contract_of_a_model(architecture, family, channels, size, tmp_path):
    check_contract(architecture, FAMILIES[family].tiny, channels, size, tmp_path)
