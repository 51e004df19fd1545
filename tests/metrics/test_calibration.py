"""Calibration against torchmetrics and scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
import torchmetrics.functional.classification as tm
from sklearn.calibration import calibration_curve

from transferseg.errors import DataError, SpecError
from transferseg.metrics import CalibrationCounts

K = 3
NAMES = ("background", "lung", "heart")


def batch(mode, seed=0, ignored=0.2):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 1 if mode == "binary" else K, 16, 16, generator=generator)
    shape = (2, 16, 16) if mode == "multiclass" else logits.shape
    target = torch.randint(0, K if mode == "multiclass" else 2, shape, generator=generator)
    target[torch.rand(shape, generator=generator) < ignored] = 255
    return logits, target


def counted(mode, logits, target, **options):
    names = ["polyp"] if mode == "binary" else NAMES
    counts = CalibrationCounts(names, mode=mode, **options)
    counts.update(logits, target)
    return counts


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("mode", ["binary", "multilabel"])
def test_independent_classes_equal_both_oracles(mode, bins):
    logits, target = batch(mode)
    scores = counted(mode, logits, target, bins=bins).scores()
    for k, name in enumerate(scores.ece):
        keep = target[:, k] != 255
        p, y = logits[:, k][keep].double().sigmoid(), target[:, k][keep]
        for norm, found in (("l1", scores.ece), ("max", scores.mce)):
            theirs = tm.binary_calibration_error(p, y, n_bins=bins, norm=norm)
            assert found[name] == pytest.approx(theirs.item(), abs=2e-6)
        assert scores.brier[name] == pytest.approx(sk.brier_score_loss(y, p), abs=1e-6)
        true, said = calibration_curve(y, p, n_bins=bins)
        filled = np.array(scores.pixels[name]) > 0
        assert np.array(scores.frequency[name])[filled] == pytest.approx(true, abs=1e-6)
        assert np.array(scores.probability[name])[filled] == pytest.approx(said, abs=1e-6)
        assert sum(scores.pixels[name]) == keep.sum()
    assert scores.mean_ece == pytest.approx(np.mean(list(scores.ece.values())))
    assert scores.mean_brier == pytest.approx(np.mean(list(scores.brier.values())))


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_exclusive_classes_equal_both_oracles(bins):
    logits, target = batch("multiclass")
    scores = counted("multiclass", logits, target, bins=bins).scores()
    assert list(scores.ece) == ["confidence"]
    for norm, found in (("l1", scores.ece), ("max", scores.mce)):
        theirs = tm.multiclass_calibration_error(
            logits.double().softmax(1), target, num_classes=K, n_bins=bins, norm=norm,
            ignore_index=255,
        )  # fmt: skip
        assert found["confidence"] == pytest.approx(theirs.item(), abs=2e-6)
    keep = target != 255
    p = logits.double().softmax(1).movedim(1, -1)[keep]
    brier = sk.brier_score_loss(target[keep], p, labels=range(K), scale_by_half=False)
    assert scores.brier["confidence"] == pytest.approx(brier, abs=1e-6)


def test_edges_of_bins_and_certain_pixels():
    """A limit belongs to the bin above it; 1 to the last."""
    logits = torch.tensor([[[[-200.0, 0.0, 200.0]]]])
    scores = counted("binary", logits, torch.tensor([[[[0, 1, 1]]]]), bins=2).scores()
    assert scores.pixels == {"polyp": (1, 2)}
    assert scores.probability == {"polyp": (0.0, 0.75)}
    assert scores.frequency == {"polyp": (0.0, 1.0)}
    assert scores.ece["polyp"] == pytest.approx(2 / 3 * 0.25)
    assert scores.brier["polyp"] == pytest.approx(0.25 / 3)


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_sums_do_not_depend_on_the_order_of_pixels_and_images(mode):
    logits, target = batch(mode)
    whole = counted(mode, logits, target)
    turned = counted(mode, logits.flip(-1, -2), target.flip(-1, -2))
    assert torch.equal(whole.rows, turned.rows)
    swapped = counted(mode, logits.flip(0), target.flip(0))
    assert swapped.scores().to_dict() == whole.scores().to_dict()


def test_nothing_to_count():
    logits, target = batch("binary")
    scores = counted("binary", logits, torch.full_like(target, 255)).scores()
    assert math.isnan(scores.ece["polyp"])
    assert math.isnan(scores.mce["polyp"])
    assert math.isnan(scores.brier["polyp"])
    restored = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert restored["mean_ece"] is None
    assert restored["frequency"]["polyp"] == [None] * 15
    with pytest.raises(DataError, match="no image has been counted"):
        CalibrationCounts(1, mode="binary").scores()
    with pytest.raises(SpecError, match="1 or more"):
        CalibrationCounts(1, mode="binary", bins=0)
