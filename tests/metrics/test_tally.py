"""Both ways of counting, NumPy's by pieces and the device's at once, against torch's argmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.metrics import tally
from transferseg.metrics.tally import exclusive_counts, overlapping_counts

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
            torch.int8, torch.int16, torch.int32, torch.int64)  # fmt: skip


@pytest.fixture(params=["numpy", "device"])
def way(request, monkeypatch):
    if request.param == "device":
        monkeypatch.setattr(tally, "_in_memory", lambda *tensors: False)
    return request.param


def oracle(predicted, true, counted):
    """By class: bool (B, K, n) each."""
    pairs = [(predicted & true), (predicted & ~true), (~predicted & true), (~predicted & ~true)]
    return torch.stack([(pair & counted).sum(-1) for pair in pairs], dim=-1)


def exclusive(logits, target, ignore_index):
    classes = torch.arange(logits.shape[1]).reshape(1, -1, 1)
    said, truth = logits.argmax(1).flatten(1), target.long().flatten(1)
    counted = torch.ones_like(truth) > 0 if ignore_index is None else truth != ignore_index
    return oracle(said[:, None] == classes, truth[:, None] == classes, counted[:, None])


def numbers(seed, shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    # halves, so that many pixels have two largest logits
    return ((torch.randn(shape, generator=generator) * 2).round() / 2).to(dtype)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 999),
    classes=st.sampled_from([2, 3, 19, 255, 256, 300]),
    images=st.integers(1, 3),
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from(DTYPES),
    labels=st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]),
    ignore=st.sampled_from([None, 0, 1, 255, -100]),
)
def test_exclusive_counts_are_those_of_argmax(seed, classes, images, sides, dtype, labels, ignore):
    logits = numbers(seed, (images, classes, *sides), dtype)
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, min(classes, 255), (images, *sides), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    target = target.to(labels)
    found = exclusive_counts(logits, target, classes=classes, ignore_index=ignore)
    assert torch.equal(found, exclusive(logits, target, ignore))
    hard = exclusive_counts(logits.argmax(1), target, classes=classes, ignore_index=ignore)
    assert torch.equal(hard, found)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 999),
    classes=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
    mask=st.sampled_from([torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32]),
    ignore=st.sampled_from([None, 1, 255, -100]),
)
def test_overlapping_counts_are_those_of_a_comparison(seed, classes, dtype, mask, ignore):
    logits = numbers(seed, (2, classes, 5, 7), dtype)
    target = (numbers(seed + 1, logits.shape) > 0).to(mask)
    if mask is not torch.bool:
        target[:, :, 0] = 255
    found = overlapping_counts(logits, target, above=[-0.5, 0.0, 0.7], ignore_index=ignore)
    value = target.double()
    counted = torch.ones_like(value) > 0 if ignore is None else value != ignore
    for place, limit in enumerate((-0.5, 0.0, 0.7)):
        flat = (t.flatten(2) for t in (logits.double() > limit, value > 0.5, counted))
        assert torch.equal(found[:, :, place], oracle(*flat))


def test_both_ways_over_many_pieces(way, monkeypatch):
    """More pixels than a piece has, whatever the layout in memory."""
    monkeypatch.setattr(tally, "_VALUES", 2048)
    logits = numbers(0, (2, 3, 50, 61))
    target = torch.randint(0, 4, (2, 50, 61), generator=torch.Generator().manual_seed(1))
    expected = exclusive(logits, target, 3)
    masks = (logits > 0.3).to(torch.uint8)
    several = overlapping_counts(logits, masks, above=[0.0], ignore_index=255)
    wide = logits.to(memory_format=torch.channels_last), logits.transpose(2, 3).contiguous()
    for layout in (logits, wide[0], wide[1].transpose(2, 3), logits.flip(3).flip(3)):
        counts = exclusive_counts(layout, target, classes=3, ignore_index=3)
        assert torch.equal(counts, expected)
        again = overlapping_counts(layout, masks, above=[0.0], ignore_index=255)
        assert torch.equal(again, several)
    volume = exclusive_counts(
        logits.reshape(2, 3, 5, 10, 61), target.reshape(2, 5, 10, 61), classes=3, ignore_index=3
    )
    assert torch.equal(volume, expected)


def test_labels_outside_and_nan(way):
    labels = torch.tensor([[0, 5, -1, 1, 2, 2]])
    truth = torch.tensor([[0, 1, 2, -7, 9, 2]])
    rows = exclusive_counts(labels, truth, classes=3, ignore_index=9)
    assert rows.tolist() == [[[1, 0, 0, 4], [0, 1, 1, 3], [1, 0, 1, 3]]]
    nan = torch.nan
    logits = torch.tensor([[[nan, 1.0, 0.0], [nan, nan, -torch.inf], [9.0, 2.0, 0.0]]])
    assert logits.argmax(1).tolist() == [[0, 1, 0]]
    rows = exclusive_counts(logits, torch.tensor([[0, 1, 0]]), classes=3, ignore_index=None)
    assert rows[0, :, 0].tolist() == [2, 1, 0]
    below = overlapping_counts(logits, logits > 0, above=[0.5], ignore_index=None)
    assert below.tolist() == [[[[1, 0, 0, 2]], [[0, 0, 0, 3]], [[2, 0, 0, 1]]]]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("classes", [2, 129, 300, 1024])
def test_labels_of_every_integer_dtype(way, dtype, classes):
    """Those that are negative, or too large, are no class, however few bits they have."""
    values = torch.tensor([0, 1, 1, 2, 100, 127, 128, 255, 299, 1023, 40_000, -1, -100, -32_000])
    values = values.abs() if dtype is torch.uint64 else values  # as int64 they read as negative
    labels = values.to(dtype)[None]  # in fewer bits they are others: as they are read back
    plain, classes_of = labels.long(), torch.arange(classes)[:, None]
    for ignore in (None, -1, 1, 255):
        counted = torch.ones_like(plain) > 0 if ignore is None else plain != ignore
        expected = oracle(plain == classes_of, plain == classes_of, counted)
        found = exclusive_counts(labels, labels, classes=classes, ignore_index=ignore)
        assert torch.equal(found[0], expected)
    turned = plain.flip(1)
    expected = oracle(plain == classes_of, turned == classes_of, torch.ones_like(plain) > 0)
    found = exclusive_counts(labels, turned, classes=classes, ignore_index=None)
    assert torch.equal(found[0], expected)
    found = exclusive_counts(plain, turned.to(dtype), classes=classes, ignore_index=None)
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_masks_of_every_integer_dtype(way, dtype):
    minus = 1 if dtype is torch.uint64 else -1  # as int64 they read as negative
    masks = torch.tensor([[[0, 1, 2, 127, minus, 100 * minus]]]).to(dtype)
    truth = torch.tensor([[[0, 1, 0, 1, 0, 1]]])
    said = torch.tensor([[value > 0 for value in masks.flatten().tolist()]])
    expected = oracle(said, truth[0] > 0, said | True)
    assert torch.equal(
        overlapping_counts(masks, truth, above=[0], ignore_index=None)[0, :, 0], expected
    )
    expected = oracle(truth[0] > 0, said, said | True)
    found = overlapping_counts(truth, masks, above=[0], ignore_index=-1)[0, :, 0]
    ignored = masks.flatten().tolist().count(-1)  # where the dtype has it
    assert torch.equal(found, expected - torch.tensor([0, 0, 0, ignored]))


def test_more_classes_than_a_table_holds(monkeypatch):
    logits = numbers(0, (2, 5, 4, 4))
    target = torch.randint(0, 5, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    table = exclusive_counts(logits, target, classes=5, ignore_index=None)
    monkeypatch.setattr(tally, "_TABLE", 4)
    assert torch.equal(exclusive_counts(logits, target, classes=5, ignore_index=None), table)


def test_no_images_and_no_pixels():
    assert exclusive_counts(
        torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4).long(), classes=3, ignore_index=255
    ).shape == (0, 3, 4)
    empty = torch.zeros(2, 3, 0, 4)
    assert overlapping_counts(empty, empty, above=[0.0], ignore_index=None).sum() == 0


def test_threads_count_what_one_does():
    logits = numbers(0, (5, 3, 20, 20)).requires_grad_()
    target = torch.randint(0, 3, (5, 20, 20), generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = exclusive_counts(logits, target, classes=3, ignore_index=None)
        torch.set_num_threads(3)
        with torch.no_grad():
            assert torch.equal(exclusive_counts(logits, target, classes=3, ignore_index=None), one)
    finally:
        torch.set_num_threads(before)
