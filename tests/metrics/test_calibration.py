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


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_a_diverged_model_has_no_calibration(mode):
    """A NaN is no probability of 0: all-background images would make it perfect."""
    logits, target = batch(mode)
    whole = counted(mode, logits, target).scores()
    logits[0, 0, 3, 3] = math.nan
    target[0, ..., 3, 3] = 0
    scores = counted(mode, logits, target).scores()
    first, *others = scores.ece
    assert scores.nan_pixels == {first: 1, **dict.fromkeys(others, 0)}
    for found in (scores.ece, scores.mce, scores.brier):
        assert math.isnan(found[first])
    for name in others:
        assert scores.brier[name] == pytest.approx(whole.brier[name], abs=0.01)
    assert math.isnan(scores.mean_ece)
    assert math.isnan(scores.mean_brier)
    assert scores.to_dict()["nan_pixels"] == dict(scores.nan_pixels)
    assert "-" in str(scores)
    target[0, ..., 3, 3] = 255  # where nothing counts, the logit does not matter
    assert not math.isnan(counted(mode, logits, target).scores().mean_brier)
    lost = counted(mode, torch.full_like(logits, math.nan), target).scores()
    assert math.isnan(lost.mean_brier)


def test_labels_outside_the_classes_are_found():
    logits, target = batch("multiclass")
    for label in (K, -1):
        target[1, 0, 0] = label
        with pytest.raises(
            DataError, match=r"ground truth of 1 image\(s\), .* number 1, .* 0\.\.2"
        ):
            counted("multiclass", logits, target).scores()
    assert counted("multiclass", logits, target, ignore_index=-1).rows[1, 0, -1, 0] > 0


def test_sums_beyond_64_bits():
    """In units of 2^-24 a sum over 2^39 certain pixels is 2^63: no pixel of them may be lost."""
    counts = counted("binary", torch.full((1, 1, 1, 4), 40.0), torch.ones(1, 1, 1, 4))
    few = counts.scores()
    many = CalibrationCounts.from_rows(counts.rows.repeat(8, 1, 1, 1) * 2**35, like=counts)
    assert many.scores().ece == few.ece
    assert many.scores().brier == few.brier
    assert many.scores().probability["polyp"][-1] == 1


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_a_large_image_is_counted_in_pieces(mode, monkeypatch):
    logits, target = batch(mode)
    whole = counted(mode, logits, target).rows
    monkeypatch.setattr("transferseg.metrics.calibration._VALUES", 100)
    pieces = counted(mode, logits, target).rows
    assert torch.equal(pieces[..., 0], whole[..., 0])
    assert (pieces - whole).abs().max() <= 256  # units of 2^-24: softmax's last digit
    half = counted(mode, logits.half().to(memory_format=torch.channels_last), target)
    assert torch.equal(half.rows[..., 0].sum(-1), whole[..., 0].sum(-1))


@pytest.mark.parametrize("value", [-200.0, -1.0, 0.5, 200.0])
@pytest.mark.parametrize("truth", [0, 1])
def test_pixels_that_are_all_alike_equal_both_oracles(value, truth):
    """Certain and right, certain and wrong, neither; one class only, and one pixel."""
    for shape in ((1, 1, 1, 1), (2, 1, 3, 3)):
        logits, target = torch.full(shape, value), torch.full(shape, truth)
        scores = counted("binary", logits, target, bins=10).scores()
        p, t = logits.double().sigmoid().flatten(), target.flatten()
        for norm, found in (("l1", scores.ece), ("max", scores.mce)):
            theirs = tm.binary_calibration_error(p, t, n_bins=10, norm=norm).item()
            assert found["polyp"] == pytest.approx(theirs, abs=1e-6)
        brier = sk.brier_score_loss(t, p, labels=[0, 1])
        assert scores.brier["polyp"] == pytest.approx(brier, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.7, 200.0])
@pytest.mark.parametrize("truth", [0, 2])
def test_exclusive_pixels_that_are_all_alike_equal_both_oracles(value, truth):
    for size in ((1, 1), (3, 3)):
        logits = torch.tensor([value, 0.0, 0.0])[:, None, None].expand(2, K, *size)
        target = torch.full((2, *size), truth)
        scores = counted("multiclass", logits, target, bins=10).scores()
        p = logits.double().softmax(1)
        for norm, found in (("l1", scores.ece), ("max", scores.mce)):
            theirs = tm.multiclass_calibration_error(
                p, target, num_classes=K, n_bins=10, norm=norm
            ).item()
            assert found["confidence"] == pytest.approx(theirs, abs=1e-6)
        rows = p.movedim(1, -1).flatten(0, -2)
        brier = sk.brier_score_loss(target.flatten(), rows, labels=range(K), scale_by_half=False)
        assert scores.brier["confidence"] == pytest.approx(brier, abs=1e-6)


def test_certain_pixels_share_the_last_bin_and_limits_belong_to_the_bin_above():
    """Disagreements: for torchmetrics 1 has its own bin, for scikit-learn a limit is below."""
    logits = torch.tensor([[[[40.0, 0.5]]]])
    target = torch.tensor([[[[0, 1]]]])
    scores = counted("binary", logits, target, bins=2).scores()
    p, t = logits.double().sigmoid().flatten(), target.flatten()
    middle = (p[1].item() + 1) / 2
    assert scores.ece["polyp"] == pytest.approx(middle - 0.5, abs=1e-6)
    theirs = tm.binary_calibration_error(p, t, n_bins=2, norm="l1").item()
    assert theirs == pytest.approx((1 + 1 - p[1].item()) / 2)
    at_limit = counted("binary", torch.zeros(1, 1, 1, 2), target, bins=2).scores()
    assert at_limit.pixels == {"polyp": (0, 2)}
    _, said = calibration_curve([0, 1], [0.5, 0.6], n_bins=2)
    assert list(said) == pytest.approx([0.5, 0.6])  # two bins
