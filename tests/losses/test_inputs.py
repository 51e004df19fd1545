"""Shapes and dtypes are checked, with both shapes in the message; ignored pixels are neutral."""

from __future__ import annotations

import pytest
import torch

from transferseg.errors import SpecError
from transferseg.losses.inputs import check_segmentation, full_precision, prepare, weight_buffer


@pytest.mark.parametrize(
    ("mode", "logits", "target"),
    [
        ("binary", (2, 1, 4, 4), (2, 4, 4)),
        ("binary", (2, 2, 4, 4), (2, 2, 4, 4)),
        ("binary", (2, 1, 4, 4), (2, 1, 4, 5)),
        ("multilabel", (2, 3, 4, 4), (2, 4, 4)),
        ("multilabel", (2, 3, 4), (2, 3, 4)),
        ("multiclass", (2, 3, 4, 4), (2, 3, 4, 4)),
        ("multiclass", (2, 3, 4, 4), (3, 4, 4)),
        ("multiclass", (2, 3, 4, 4), (2, 1, 4, 4)),
        ("multiclass", (2, 1, 4, 4), (2, 4, 4)),
    ],
)
def test_wrong_shapes_name_both(mode, logits, target):
    with pytest.raises(SpecError) as error:
        check_segmentation(torch.zeros(logits), torch.zeros(target, dtype=torch.long), mode)
    assert str(logits) in str(error.value)
    assert str(target) in str(error.value)


@pytest.mark.parametrize(
    ("mode", "logits", "target"),
    [
        ("binary", torch.long, torch.uint8),
        ("binary", torch.float32, torch.complex64),
        ("multiclass", torch.long, torch.long),
        ("multiclass", torch.float32, torch.float32),
        ("multiclass", torch.float32, torch.bool),
    ],
)
def test_wrong_dtypes_name_both(mode, logits, target):
    classes = 2 if mode == "multiclass" else 1
    shape = (1, 2, 2) if mode == "multiclass" else (1, 1, 2, 2)
    with pytest.raises(SpecError) as error:
        check_segmentation(
            torch.zeros(1, classes, 2, 2, dtype=logits), torch.zeros(shape, dtype=target), mode
        )
    assert str(logits).removeprefix("torch.") in str(error.value)
    assert str(target).removeprefix("torch.") in str(error.value)


def test_negative_ignore_index_with_unsigned_target():
    """In uint8, -100 would wrap to 156: the comparison is made after the cast."""
    target = torch.tensor([[[0, 1], [1, 156]]], dtype=torch.uint8)
    pixels = prepare(torch.zeros(1, 2, 2, 2), target, mode="multiclass", ignore_index=-100)
    assert pixels.counted.all()


def test_autocast_is_off_inside():
    with torch.amp.autocast("cpu", dtype=torch.bfloat16):
        with full_precision(torch.zeros(1)):
            assert (torch.eye(2) @ torch.eye(2)).dtype == torch.float32
        assert (torch.eye(2) @ torch.eye(2)).dtype == torch.bfloat16


def test_full_precision_on_a_device_without_autocast():
    with full_precision(torch.zeros(1, device="meta")):
        pass


def test_weight_buffer_is_a_copy():
    weight = torch.ones(2, dtype=torch.float64)
    buffer = weight_buffer("class_weight", weight)
    weight.zero_()
    assert buffer.tolist() == [1.0, 1.0]
    assert buffer.dtype == torch.float64
    assert weight_buffer("class_weight", None) is None


@pytest.mark.parametrize(
    ("mode", "logits", "target", "advice"),
    [
        ("binary", (2, 1, 4, 4), (2, 4, 4), r"Use target.unsqueeze\(1\)"),
        ("multilabel", (2, 3, 4, 4), (2, 4, 4), "Is it 'multiclass'"),
        ("multiclass", (2, 3, 4, 4), (2, 1, 4, 4), r"Use target.squeeze\(1\)"),
        ("multiclass", (2, 3, 4, 4), (2, 3, 4, 4), r"target.argmax\(dim=1\)"),
    ],
)
def test_a_wrong_shape_says_what_to_do(mode, logits, target, advice):
    with pytest.raises(SpecError, match=advice):
        check_segmentation(torch.zeros(logits), torch.zeros(target, dtype=torch.long), mode)


@pytest.mark.parametrize("ignore_index", [0, 1])
def test_a_probability_is_no_ignored_value(ignore_index):
    """Every one-hot pixel has a 0 and a 1: all would be ignored, and the loss 0."""
    rows = torch.eye(2).reshape(1, 2, 1, 2)
    check_segmentation(rows, rows, "multiclass", 255)
    with pytest.raises(SpecError, match=f"ignore_index {ignore_index} is a probability"):
        check_segmentation(rows, rows, "multiclass", ignore_index)
