from itertools import permutations

import pytest
import torch

from transferseg.errors import TransferError
from transferseg.transfer import ADAPTERS, GatedSkipSlice, ZeroSkipSlice, class_rows


@pytest.mark.parametrize("name", sorted(ADAPTERS))
@pytest.mark.parametrize(("given", "wanted"), list(permutations([1, 3, 4, 5, 12], 2)))
def test_adapters_give_the_wanted_shape_or_do_not_fit(name, given, wanted):
    adapter = ADAPTERS[name]
    source, target = torch.randn(2, given, 3, 3), torch.zeros(2, wanted, 3, 3)
    before = source.clone()
    if adapter.fits(tuple(source.shape), tuple(target.shape)):
        assert adapter.apply(source, target).shape == target.shape
    else:
        assert (name == "sum_input_channels" and wanted != 1) or (
            name == "first_input_channels" and wanted > given
        )
    assert torch.equal(source, before)


def test_channel_adapters_by_hand():
    source = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)

    def values(name, channels):
        return ADAPTERS[name].apply(source, torch.zeros(1, channels, 1, 1)).flatten().tolist()

    assert values("sum_input_channels", 1) == [9.0]
    assert values("mean_input_channels", 2) == [3.0, 3.0]
    assert values("repeat_input_channels", 6) == [0.5, 1.0, 3.0, 0.5, 1.0, 3.0]
    assert values("first_input_channels", 2) == [1.0, 2.0]


def test_repeat_keeps_the_response_to_equal_channels():
    source = torch.randn(4, 3, 3, 3)
    adapted = ADAPTERS["repeat_input_channels"].apply(source, torch.zeros(4, 6, 3, 3))
    torch.testing.assert_close(adapted.sum(1), source.sum(1))


def test_zero_skip_slice_by_hand():
    adapter = ZeroSkipSlice(1)
    opened = adapter.apply(torch.ones(1, 1, 1, 1), torch.full((1, 3, 1, 1), 7.0))
    assert opened.flatten().tolist() == [1.0, 0.0, 0.0]
    assert adapter.covers((1, 1, 1, 1), (1, 3, 1, 1)) == 1


def test_gated_skip_slice_by_hand():
    adapter = GatedSkipSlice(1, 0.25)
    source = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    assert adapter.apply(source, torch.zeros(1, 3, 1, 1)).flatten().tolist() == [1.0, 8.0, 12.0]
    assert source.flatten().tolist() == [1.0, 2.0, 3.0]
    assert adapter.covers((1, 3, 1, 1), (1, 3, 1, 1)) == 3
    assert not adapter.fits((1, 1, 1, 1), (1, 1, 1, 1))  # no skip beside the path
    assert not adapter.fits((1, 1, 1, 1), (1, 3, 1, 1))


def test_class_rows_refuses_names_that_do_not_exist():
    with pytest.raises(TransferError, match="tumour"):
        class_rows(["tumor"], ["lesion"], {"tumour": "lesion"})
    with pytest.raises(TransferError, match="two source classes one"):
        class_rows(["a", "b"], ["b"], {"a": "b"})
    assert not class_rows(["a", "b"], ["b"]).fits((3, 4), (1, 4))
