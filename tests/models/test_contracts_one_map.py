"""The contract of the architectures that read the deepest map alone; see `test_contracts.py`."""

import pytest

from tests.models.contract import check_contract
from tests.models.families import FAMILIES, contract_cases


@pytest.mark.parametrize(
    ("architecture", "family", "channels", "size"), contract_cases(one_map=True)
)
def test_the_contract_of_a_model(architecture, family, channels, size, tmp_path):
    check_contract(architecture, FAMILIES[family].tiny, channels, size, tmp_path)
