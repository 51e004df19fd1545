"""Many thresholds in one pass: at each, exactly what counting with it alone gives."""

from __future__ import annotations

import math

import pytest
import torch
import torchmetrics.functional.classification as tm

from transferseg.errors import DataError, SpecError
from transferseg.metrics import SegmentationCounts, ThresholdCounts

AT = (0.1, 0.35, 0.5, 0.62, 0.9)


def batch(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, 9, 7, generator=generator).to(dtype)
    target = torch.randint(0, 2, logits.shape, generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    return logits, target


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_each_threshold_counts_as_alone(dtype):
    logits, target = batch(dtype)
    sweep = ThresholdCounts(["a", "b"], mode="multilabel", thresholds=AT)
    sweep.update(logits, target)
    for threshold in AT:
        alone = SegmentationCounts(["a", "b"], mode="multilabel", threshold=threshold)
        alone.update(logits, target)
        assert torch.equal(sweep.at(threshold).rows, alone.rows)
        assert sweep.at(threshold).configuration() == alone.configuration()
        for scheme in ("pooled", "per_image"):
            scores = sweep.scores(scheme).by_threshold[threshold]
            assert scores.to_dict() == alone.scores(scheme).to_dict()


def test_equals_torchmetrics_at_each_threshold():
    logits, target = batch()
    sweep = ThresholdCounts(2, mode="multilabel", thresholds=AT)
    sweep.update(logits, target)
    for threshold, dice in sweep.scores().values("mean_dice").items():
        theirs = tm.multilabel_f1_score(
            logits, target, num_labels=2, threshold=threshold, ignore_index=255
        )
        assert dice == pytest.approx(theirs.item(), rel=1e-5)


def test_best_is_the_lowest_of_the_largest_and_skips_the_undefined():
    sweep = ThresholdCounts(["polyp"], mode="binary", thresholds=[0.2, 0.4, 0.6, 0.9])
    sweep.update(torch.tensor([[[[-0.8, 1.0]]]]), torch.tensor([[[[0, 1]]]]))  # 0.31 and 0.73
    scores = sweep.scores()
    assert scores.values("mean_dice") == pytest.approx({0.2: 2 / 3, 0.4: 1, 0.6: 1, 0.9: 0})
    assert math.isnan(scores.values("mean_precision")[0.9])
    assert scores.best("mean_dice") == scores.best("mean_precision") == 0.4
    empty = ThresholdCounts(["polyp"], mode="binary", thresholds=[0.5])
    empty.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    with pytest.raises(DataError, match="undefined at every threshold"):
        empty.scores().best("mean_dice")
    for score in ("dice", "nothing", "images"):
        with pytest.raises(SpecError, match="no number of the scores"):
            scores.values(score)


def test_wrong_use():
    with pytest.raises(SpecError, match="has no threshold"):
        ThresholdCounts(3, mode="multiclass")
    for thresholds in ([], [0.5, 0.5], [0.6, 0.5]):
        with pytest.raises(SpecError, match="distinct and rising"):
            ThresholdCounts(1, mode="binary", thresholds=thresholds)
    with pytest.raises(SpecError, match="between 0 and 1"):
        ThresholdCounts(1, mode="binary", thresholds=[0.5, 1.0])
    with pytest.raises(SpecError, match=r"0.3 was not counted: \(0.5,\)"):
        ThresholdCounts(1, mode="binary", thresholds=[0.5]).at(0.3)


@pytest.mark.parametrize("value", [-30.0, 0.0, 30.0])
@pytest.mark.parametrize("truth", [0, 1])
def test_pixels_that_are_all_alike_equal_torchmetrics(value, truth):
    """Certain, undecided, empty and full; a probability at the threshold is background."""
    logits, target = torch.full((2, 1, 3, 3), value), torch.full((2, 1, 3, 3), truth)
    sweep = ThresholdCounts(["a"], mode="binary", thresholds=AT)
    sweep.update(logits, target)
    for threshold in AT:
        tp, fp, tn, fn, _ = tm.binary_stat_scores(
            logits.sigmoid().flatten(), target.flatten(), threshold=threshold
        ).tolist()
        assert sweep.at(threshold).rows.sum((0, 1)).tolist() == [tp, fp, fn, tn]
