"""What is written, and what is refused before anything is."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from transferseg.errors import BrokenWeightsError, CheckpointError, TransferError
from transferseg.transfer import ChannelAdapter, transfer_weights

WHOLE = {"part.weight": torch.arange(12.0).view(3, 4), "part.bias": torch.ones(3)}


def target(dtype=torch.float32):
    return nn.ModuleDict({"part": nn.Linear(4, 3)}).to(dtype)


def with_bias(value, dtype=torch.float32):
    return {**WHOLE, "part.bias": torch.tensor([1.0, value, 2.0], dtype=dtype)}


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_file_with_broken_values_is_named(name, value, tmp_path):
    file, model = tmp_path / name, target()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    tensors = with_bias(value)
    (save_file if name.endswith("safetensors") else torch.save)(tensors, file)
    with pytest.raises(BrokenWeightsError, match=r"'part\.bias' holds NaN or infinite") as caught:
        transfer_weights(file, model, parts="part")
    assert str(file) in str(caught.value)
    assert isinstance(caught.value, CheckpointError)
    assert isinstance(caught.value, TransferError)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_values_that_cancel_are_still_found():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tensors = {**WHOLE, "part.bias": torch.tensor([float("inf"), -float("inf"), 0]).to(dtype)}
        with pytest.raises(BrokenWeightsError, match="NaN or infinite"):
            transfer_weights(tensors, target(), parts="part")


def test_large_values_are_no_broken_ones():
    largest = torch.finfo(torch.float32).max
    model = target()
    transfer_weights({**WHOLE, "part.bias": torch.full((3,), largest)}, model, parts="part")
    assert model["part"].bias.tolist() == [largest] * 3


@pytest.mark.parametrize(
    ("given", "wanted", "value"),
    [
        (torch.float64, torch.float32, 1e300),
        (torch.float32, torch.float16, 70000.0),
        (torch.bfloat16, torch.float16, 70000.0),
    ],
)
def test_values_too_large_for_the_target(given, wanted, value):
    with pytest.raises(BrokenWeightsError, match=rf"'part\.bias' .* in {wanted}"):
        transfer_weights(with_bias(value, given), target(wanted), parts="part")


@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_take_the_type_of_the_target(given, wanted):
    model = target(wanted)
    tensors = {key: value.to(given) for key, value in WHOLE.items()}
    transfer_weights(tensors, model, parts="part")
    assert torch.equal(model["part"].weight, WHOLE["part.weight"].to(given).to(wanted))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_fractions(dtype, tmp_path):
    tensors = {key: value.to(dtype) for key, value in WHOLE.items()}
    torch.save(tensors, tmp_path / "whole.pth")
    with pytest.raises(BrokenWeightsError, match=r"whole\.pth holds 'part\.weight' as .*Quantised"):
        transfer_weights(tmp_path / "whole.pth", target(), parts="part")


def test_what_is_copied_as_it_is_goes_straight_into_the_target(monkeypatch):
    """No second copy of the weights is made: neither of what is copied nor of what is checked."""
    made = []
    for name in ("clone", "to"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original, **options):
            result = original(self, *args, **options)
            if result.data_ptr() != self.data_ptr():
                made.append(tuple(result.shape))
            return result

        monkeypatch.setattr(torch.Tensor, name, counted)
    model = target()
    transfer_weights(WHOLE, model, parts="part")
    assert made == []
    transfer_weights(model, model, parts="part")  # the target itself is copied first
    assert sorted(made) == [(3,), (3, 4)]


def test_an_adapted_value_is_checked_too():
    model = nn.ModuleDict({"part": nn.Conv2d(1, 1, 1, bias=False)}).half()
    kernel = torch.full((1, 3, 1, 1), 30000.0)
    with pytest.raises(BrokenWeightsError, match=r"in torch\.float16"):
        transfer_weights(
            {"part.weight": kernel},
            model,
            parts="part",
            adapt={"part.weight": ChannelAdapter("sum")},
        )
