"""Every architecture over every family, whole: `nox -s grid`; deselected elsewhere (long)."""

from itertools import product

import pytest

from tests.models.contract import check_contract, example
from tests.models.exports import CHECKS, cells
from tests.models.families import FAMILIES
from tests.models.test_contracts import AXES

pytestmark = pytest.mark.grid


@pytest.mark.parametrize(("architecture", "family", "channels", "size"), list(product(*AXES)))
def test_contract(architecture, family, channels, size, tmp_path):
    check_contract(architecture, FAMILIES[family].tiny, channels, size, tmp_path)


def _test(check):
    @pytest.mark.parametrize(("architecture", "family"), list(cells(check)))
    def test(architecture, family):
        difference, most = CHECKS[check]
        assert difference(example(architecture, FAMILIES[family].tiny)) < most

    return test


test_compiled = _test("compiled")
test_exported_batch = _test("exported_batch")
test_exported_size = _test("exported_size")
test_onnx_batch = _test("onnx_batch")
test_onnx_size = _test("onnx_size")
