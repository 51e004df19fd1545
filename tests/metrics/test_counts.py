"""Counting: rows, thresholds, merging in any order and any split, refusals."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferseg.errors import SpecError
from transferseg.metrics import MultilabelCounts, SegmentationCounts

MODES = ("binary", "multiclass", "multilabel")


def fresh(mode, **options):
    classes = {"binary": 1, "multiclass": 3, "multilabel": 3}[mode]
    return SegmentationCounts(classes, mode=mode, **options)


def batch(mode, seed=0, images=5):
    generator = torch.Generator().manual_seed(seed)
    classes = 1 if mode == "binary" else 3
    logits = torch.randn(images, classes, 4, 3, generator=generator)
    shape = (images, 4, 3) if mode == "multiclass" else logits.shape
    target = torch.randint(0, 3 if mode == "multiclass" else 2, shape, generator=generator)
    target[torch.rand(shape, generator=generator) < 0.2] = 255
    return logits, target


def brute_force(mode, logits, target):
    """The rows, pixel by pixel in Python."""
    images, classes, height, width = logits.shape
    rows = torch.zeros(images, classes, 4, dtype=torch.int64)
    for b in range(images):
        for k in range(classes):
            for y in range(height):
                for x in range(width):
                    if mode == "multiclass":
                        label = target[b, y, x].item()
                        truth, said = label == k, logits[b, :, y, x].argmax().item() == k
                    else:
                        label = target[b, k, y, x].item()
                        truth, said = label == 1, torch.sigmoid(logits[b, k, y, x]).item() > 0.5
                    if label != 255:
                        place = {(1, 1): 0, (0, 1): 1, (1, 0): 2, (0, 0): 3}[truth, said]
                        rows[b, k, place] += 1
    return rows


@pytest.mark.parametrize("mode", MODES)
def test_rows_equal_a_count_by_pixel(mode):
    logits, target = batch(mode)
    counts = fresh(mode)
    counts.update(logits, target)
    assert torch.equal(counts.rows, brute_force(mode, logits, target))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", [0, 1, 4, 5])
def test_uneven_parts_add_up_exactly(mode, cut):
    logits, target = batch(mode)
    whole, first, second = fresh(mode), fresh(mode), fresh(mode)
    whole.update(logits, target)
    first.update(logits[:cut], target[:cut])
    second.update(logits[cut:], target[cut:])
    both = first + second
    assert torch.equal(both.rows, whole.rows)
    for scheme in ("pooled", "per_image"):
        assert str(both.scores(scheme).to_dict()) == str(whole.scores(scheme).to_dict())
    assert len(first.rows) == cut  # neither was changed


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.permutations(range(5)), st.sampled_from(MODES), st.sampled_from(["pooled", "per_image"]))
def test_the_order_of_the_images_does_not_matter(order, mode, scheme):
    logits, target = batch(mode)
    straight, shuffled = fresh(mode), fresh(mode)
    straight.update(logits, target)
    for index in order:
        shuffled.update(logits[index : index + 1], target[index : index + 1])
    # exactly equal, not nearly
    assert str(shuffled.scores(scheme).to_dict()) == str(straight.scores(scheme).to_dict())


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_threshold_is_on_the_probability(threshold, dtype):
    logits = torch.linspace(-4, 4, 801).reshape(1, 1, 1, -1).to(dtype)
    counts = fresh("binary", threshold=threshold)
    counts.update(logits, torch.ones_like(logits, dtype=torch.uint8))
    said = (logits.double().sigmoid() > threshold).sum().item()
    assert counts.rows[0, 0, 0].item() == said


def test_at_the_threshold_is_background():
    counts = fresh("binary")
    counts.update(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    assert counts.rows.tolist() == [[[0, 0, 1, 0]]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_any_target_dtype_in_binary(dtype):
    target = torch.tensor([[[[0, 1, 1, 0]]]]).to(dtype)
    counts = fresh("binary")
    counts.update(torch.tensor([[[[-1.0, 1.0, -1.0, 1.0]]]]), target)
    assert counts.rows.tolist() == [[[1, 1, 1, 1]]]


def test_ignore_index_that_the_dtype_does_not_have():
    """In uint8, -100 would wrap to 156: the comparison is made after the cast."""
    counts = SegmentationCounts(200, mode="multiclass", ignore_index=-100)
    target = torch.full((1, 2, 2), 156, dtype=torch.uint8)
    counts.update_masks(target, target)
    assert counts.rows[0, 156].tolist() == [4, 0, 0, 0]


def test_no_ignore_index():
    counts = fresh("binary", ignore_index=None)
    counts.update_masks(torch.ones(1, 1, 1, 2).bool(), torch.tensor([[[[255, 0]]]]))
    assert counts.rows.tolist() == [[[1, 1, 0, 0]]]


def test_masks_and_logits_count_alike():
    for mode in MODES:
        logits, target = batch(mode)
        hard = logits.argmax(1) if mode == "multiclass" else (logits > 0).to(torch.uint8)
        by_logits, by_masks = fresh(mode), fresh(mode)
        by_logits.update(logits, target)
        by_masks.update_masks(hard, target)
        assert torch.equal(by_logits.rows, by_masks.rows)


def test_images_of_several_sizes():
    counts = fresh("multiclass")
    for size in ((4, 4), (7, 3)):
        counts.update(torch.randn(1, 3, *size), torch.zeros(1, *size).long())
    assert counts.rows.sum(-1)[:, 0].tolist() == [16, 21]


def test_gathered_rows_and_state():
    logits, target = batch("multilabel")
    whole = fresh("multilabel")
    whole.update(logits, target)
    gathered = fresh("multilabel")
    gathered.append(gathered.count(logits, target))
    assert torch.equal(gathered.rows, whole.rows)
    again = SegmentationCounts.from_rows(whole.rows, like=fresh("multilabel"))
    assert torch.equal(again.rows, whole.rows)
    assert again.configuration() == whole.configuration()
    loaded = fresh("multilabel")
    loaded.update(logits, target)
    loaded.load_state_dict(whole.state_dict())
    assert torch.equal(loaded.rows, whole.rows)
    pickled = pickle.loads(pickle.dumps(whole))
    assert torch.equal((pickled + whole).rows, torch.cat([whole.rows] * 2))


def test_from_rows_leaves_like_alone():
    like = fresh("binary")
    like.update(*batch("binary"))
    empty = SegmentationCounts.from_rows(like.rows[:0], like=like)
    assert len(empty.rows) == 0
    empty.update(*batch("binary"))
    assert len(like.rows) == 5


def test_reset_and_to():
    counts = fresh("binary")
    counts.update(*batch("binary"))
    assert counts.to("cpu") is counts
    counts.reset()
    assert counts.rows.shape == (0, 1, 4)
    assert counts.to("meta").rows.device.type == "meta"


def test_counting_keeps_no_graph():
    logits, target = batch("binary")
    counts = fresh("binary")
    counts.update(logits.requires_grad_(), target)
    assert not counts.rows.requires_grad


def test_counting_does_not_read_values_back():
    """On the meta device there are no values: whatever would synchronise fails there."""
    for mode in MODES:
        logits, target = batch(mode)
        assert fresh(mode).count(logits.to("meta"), target.to("meta")).shape[-1] == 4


@pytest.mark.parametrize(
    "other",
    [
        SegmentationCounts(["a", "c"], mode="multilabel"),
        SegmentationCounts(["a", "b"], mode="multiclass"),
        SegmentationCounts(["a", "b"], mode="multilabel", threshold=0.4),
        SegmentationCounts(["a", "b"], mode="multilabel", ignore_index=None),
    ],
)
def test_only_equal_configurations_add(other):
    with pytest.raises(SpecError, match="cannot be added, they differ in"):
        SegmentationCounts(["a", "b"], mode="multilabel") + other


def test_only_one_kind_adds():
    with pytest.raises(SpecError, match="SegmentationCounts and MultilabelCounts"):
        SegmentationCounts(["a"], mode="binary") + MultilabelCounts(["a"])


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (2, {"mode": "binary"}, "binary has one class"),
        (1, {"mode": "multiclass"}, "multiclass two or more"),
        (["a", "a"], {"mode": "multilabel"}, "distinct"),
        ([], {"mode": "multilabel"}, "must be given"),
        (1, {"mode": "multi-label"}, "Did you mean 'multilabel'"),
        (1, {"mode": "binary", "threshold": 1.0}, "between 0 and 1, got 1.0"),
        (1, {"mode": "binary", "threshold": math.nan}, "between 0 and 1"),
    ],
)
def test_wrong_configurations(classes, options, message):
    with pytest.raises(SpecError, match=message):
        SegmentationCounts(classes, **options)


@pytest.mark.parametrize(
    ("mode", "logits", "target"),
    [
        ("binary", (2, 1, 4, 4), (2, 4, 4)),
        ("binary", (2, 3, 4, 4), (2, 3, 4, 4)),
        ("multilabel", (2, 3, 4, 4), (2, 3, 4, 5)),
        ("multilabel", (2, 2, 4, 4), (2, 2, 4, 4)),
        ("multiclass", (2, 3, 4, 4), (2, 3, 4, 4)),
        ("multiclass", (2, 4, 4), (2, 4, 4)),
        ("multiclass", (2, 3, 4, 4), (1, 4, 4)),
    ],
)
def test_wrong_shapes_name_both(mode, logits, target):
    with pytest.raises(SpecError) as error:
        fresh(mode).update(torch.zeros(logits), torch.zeros(target, dtype=torch.long))
    assert str(logits) in str(error.value)
    assert str(target) in str(error.value)


def test_wrong_dtypes():
    ints, floats = torch.zeros(1, 1, 2, 2).long(), torch.zeros(1, 1, 2, 2)
    with pytest.raises(SpecError, match="logits are of a floating dtype"):
        fresh("binary").update(ints, ints)
    with pytest.raises(SpecError, match="masks of an integer or bool dtype"):
        fresh("binary").update_masks(floats, ints)
    with pytest.raises(SpecError, match="target must be of an integer dtype"):
        fresh("multiclass").update(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2))


@pytest.mark.parametrize("rows", [torch.zeros(2, 3, 3).long(), torch.zeros(2, 3, 4)])
def test_rows_that_do_not_fit(rows):
    counts = fresh("multilabel")
    counts.update(*batch("multilabel"))
    before = counts.rows
    with pytest.raises(SpecError, match=r"rows must be \(images, 3, 4\) int64"):
        counts.append(rows)
    with pytest.raises(SpecError, match="rows must be"):
        counts.load_state_dict({"rows": rows})
    with pytest.raises(SpecError, match="one tensor 'rows'"):
        counts.load_state_dict({"row": before})
    assert torch.equal(counts.rows, before)


def test_repr_says_what_it_counts():
    counts = SegmentationCounts(["polyp"], mode="binary")
    counts.update(torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2))
    assert repr(counts) == (
        "<SegmentationCounts classes=('polyp',), mode='binary', threshold=0.5, ignore_index=255: "
        "2 images>"
    )
