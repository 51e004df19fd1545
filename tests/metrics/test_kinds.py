"""What every streaming metric keeps, and every score of a class."""

from __future__ import annotations

import json
import math
import pickle
import re

import numpy as np
import pytest
import torch

from tests.metrics.kinds import KINDS, OFF_DEVICE, batch
from transferseg import metrics
from transferseg.errors import DataError, SpecError
from transferseg.metrics.overlap import CLASS_SCORES, Confusion, unit_scores
from transferseg.metrics.rows import ImageRows

ON_DEVICE = [name for name in KINDS if name not in OFF_DEVICE]


def counted(name, *pair):
    metric = KINDS[name][0]()
    metric.update(*(pair or batch(name)))
    return metric


def test_every_streaming_metric_is_here():
    offered = {
        value
        for value in vars(metrics).values()
        if isinstance(value, type) and issubclass(value, ImageRows)
    }
    assert {type(build()) for build, _ in KINDS.values()} == offered


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_uneven_parts_add_up_exactly(name, cut):
    logits, target = batch(name)
    whole = counted(name)
    before, after = (
        counted(name, logits[:cut], target[:cut]),
        counted(name, logits[cut:], target[cut:]),
    )
    both = before + after
    assert torch.equal(both.rows.nan_to_num(-1), whole.rows.nan_to_num(-1))
    assert both.rows.dtype == whole.row_dtype == whole.rows.dtype
    assert both.rows.shape[1:] == whole.row_shape
    assert str(both.scores().__dict__) == str(whole.scores().__dict__)
    assert (len(before.rows), len(after.rows)) == (cut, 7 - cut)


@pytest.mark.parametrize("name", KINDS)
def test_sum_adds_the_parts_and_changes_none(name):
    logits, target = batch(name)
    parts = [counted(name, logits[at], target[at]) for at in ([0, 1], [2], [3, 4, 5, 6])]
    whole = sum(parts)
    assert str(whole.scores().__dict__) == str(counted(name).scores().__dict__)
    alone = sum(parts[:1])
    alone.update(logits, target)
    assert [len(part.rows) for part in parts] == [2, 1, 4]
    with pytest.raises(SpecError, match="only metrics of one kind can be added, got 1"):
        1 + parts[0]


@pytest.mark.parametrize("name", KINDS)
def test_rows_loaded_from_elsewhere_join_those_counted_since(name):
    """A state read into memory, counting that goes on on a device."""
    metric = KINDS[name][0]()
    metric.load_state_dict(counted(name).state_dict())
    metric.append(counted(name).rows.to("meta"))
    assert metric.rows.device.type == "meta"
    assert metric.rows.shape == (14, *metric.row_shape)


@pytest.mark.parametrize("name", KINDS)
def test_state_and_pickle_hold_everything(name):
    whole = counted(name)
    again = KINDS[name][0]()
    again.load_state_dict(whole.state_dict())
    copied = pickle.loads(pickle.dumps(whole))
    for other in (again, copied, type(whole).from_rows(whole.rows, like=again)):
        assert str(other.scores()) == str(whole.scores())
        assert other.configuration() == whole.configuration()
    whole.reset()
    assert len(whole.rows) == 0
    with pytest.raises(DataError, match="no image has been counted"):
        whole.scores()
    with pytest.raises(SpecError, match="only metrics of one kind"):
        whole + counted("labels" if name != "labels" else "classes")


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name][1][0] in ("mask", "index")])
def test_images_of_several_sizes_and_none_at_all(name):
    """Batches of other sizes, one of no image; as evaluation gives them."""
    logits, target = batch(name)
    metric = counted(name, logits[..., :4, :], target[..., :4, :])
    metric.update(logits[:0], target[:0])
    metric.update(logits, target)
    assert len(metric.rows) == 14
    apart = counted(name, logits[..., :4, :], target[..., :4, :]) + counted(name)
    assert str(metric.scores().__dict__) == str(apart.scores().__dict__)


@pytest.mark.parametrize("name", [n for n in ON_DEVICE if KINDS[n][1][0] in ("mask", "index")])
def test_a_volume_is_one_image_of_all_its_voxels(name):
    logits, target = batch(name)
    volumes = [tensor.unflatten(-2, (2, 3)) for tensor in (logits, target)]
    assert torch.equal(counted(name, *volumes).rows, counted(name).rows)
    if name in ("binary", "multiclass", "multilabel"):
        masks = logits.argmax(1) if name == "multiclass" else (logits > 0).to(torch.uint8)
        metric = KINDS[name][0]()
        pair = masks.unflatten(-2, (2, 3)), volumes[1]
        if name == "multiclass":  # (B, D, H, W) would be taken for one-hot masks of slices
            with pytest.raises(SpecError, match=r"masks must be \(B, H, W\)"):
                metric.update_masks(*pair)
            pair = [volume.flatten(1, 2) for volume in pair]
        metric.update_masks(*pair)
        assert torch.equal(metric.rows, counted(name).rows)
    with pytest.raises(SpecError, match=r"\[D,\] H, W\) in mode"):
        counted(name, *(tensor.unsqueeze(-1) for tensor in volumes))


@pytest.mark.parametrize("name", KINDS)
def test_scores_are_strict_json(name):
    scores = counted(name).scores()
    if not isinstance(scores, metrics.SweepScores):
        json.dumps(scores.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", ON_DEVICE)
def test_counting_reads_no_value_back(name):
    """On the meta device there are no values: whatever would synchronise fails there."""
    pair = [tensor.to("meta") for tensor in batch(name)]
    metric = KINDS[name][0]().to("meta")
    metric.update(*pair)
    assert metric.rows.shape == (7, *metric.row_shape)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ON_DEVICE)
def test_counting_on_a_gpu_waits_for_nothing_and_equals_the_cpu(name):
    logits, target = (tensor.cuda() for tensor in batch(name))
    metric = KINDS[name][0]().to("cuda")
    metric.update(logits, target)
    metric.reset()
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.update(logits, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metric.rows.is_cuda
    if name in ("binary", "multiclass", "multilabel"):
        masks = logits.argmax(1) if name == "multiclass" else (logits > 0).to(torch.uint8)
        torch.cuda.set_sync_debug_mode("error")
        try:
            metric.update_masks(masks, target)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(metric.rows[7:], metric.rows[:7])
        metric.load_state_dict({"rows": metric.rows[:7]})
    tolerance = 1e-6 * metrics.calibration._UNIT if name in ("calibration", "confidence") else 1e-6
    assert torch.allclose(
        metric.rows.cpu().double(), counted(name).rows.double(), atol=tolerance * 30,
        equal_nan=True,
    )  # fmt: skip


def degenerate(name):
    """Batches of nothing new, one image, one pixel, one value, no number, no ground truth."""
    logits, target = batch(name)
    yield logits[:1], target[:1]
    if logits.ndim == 4:
        yield logits[:1, :, :1, :1], target[:1, ..., :1, :1]
        yield logits, torch.full_like(target, 255)
    else:
        yield logits, torch.full_like(target, torch.nan)
    for value in (0.0, 90.0, -90.0, torch.inf, -torch.inf, torch.nan):
        yield torch.full_like(logits, value), target
        yield torch.full_like(logits, value), torch.zeros_like(target)
    yield (
        torch.where(torch.arange(7).reshape(-1, *[1] * (logits.ndim - 1)) == 3, torch.nan, logits),
        target,
    )


@pytest.mark.parametrize("name", KINDS)
def test_degenerate_batches_are_the_sum_of_their_images(name):
    """In strict JSON, without a warning, and as if each image had come alone."""
    for logits, target in degenerate(name):
        if name == "classes" and not target.isnan().all() and target.amax() == 0:
            continue  # a row without a class is refused
        whole = counted(name, logits, target)
        pairs = zip(logits.split(1), target.split(1), strict=True)
        apart = sum(counted(name, *pair) for pair in pairs)
        scores = whole.scores()
        assert str(apart.scores().__dict__) == str(scores.__dict__)
        assert str(scores)
        if not isinstance(scores, metrics.SweepScores):
            json.dumps(scores.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", CLASS_SCORES)
def test_a_class_score_is_what_its_text_says(name):
    score = CLASS_SCORES[name]
    tp, fp, fn, tn = rows = np.random.default_rng(0).integers(1, 99, size=(4, 50)).astype(float)
    text = re.sub(r"\|([^|]*)\|", r"abs(\1)", score.text)
    text = re.sub(r"(?<=[\w)])\s*\((?!FP - FN\)$)", " * (", text.replace("abs(", "abs["))
    text = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", text).replace("abs[", "abs(")
    expected = eval(text, {"TP": tp, "FP": fp, "FN": fn, "TN": tn, "abs": np.abs})
    np.testing.assert_allclose(score.formula(Confusion(*rows)), expected)


@pytest.mark.parametrize("name", CLASS_SCORES)
@pytest.mark.parametrize("empty", ["exclude", "one", "zero"])
def test_every_class_score_of_degenerate_counts(name, empty):
    perfect, ignored, without, clean = [5, 0, 0, 5], [0] * 4, [0, 3, 0, 5], [0, 0, 0, 9]
    rows = np.array([[perfect], [ignored], [without], [clean]])
    values = unit_scores(rows, empty)[name][:, 0]
    score = CLASS_SCORES[name]
    assert values[0] == score.best
    assert math.isnan(values[1])
    policy = {"exclude": (math.nan, math.nan), "one": (0, 1), "zero": (0, 0)}[empty]
    own = {"specificity": (5 / 8, 1), "kappa": (0, math.nan)}.get(name, (math.nan, math.nan))
    assert tuple(values[2:]) == pytest.approx(policy if score.overlap else own, nan_ok=True)
