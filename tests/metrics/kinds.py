"""Every streaming metric with a batch for it: what the contract tests run over."""

from __future__ import annotations

import torch

from transferseg import metrics

BINARY = ("mask", 1)  # the shape of its batches, and how many classes
MANY = ("mask", 3)

KINDS = {
    "binary": (lambda: metrics.SegmentationCounts(["a"], mode="binary"), BINARY),
    "multiclass": (lambda: metrics.SegmentationCounts(3, mode="multiclass"), ("index", 3)),
    "multilabel": (lambda: metrics.SegmentationCounts(3, mode="multilabel"), MANY),
    "thresholds": (lambda: metrics.ThresholdCounts(3, mode="multilabel"), MANY),
    "calibration": (lambda: metrics.CalibrationCounts(3, mode="multilabel"), MANY),
    "confidence": (lambda: metrics.CalibrationCounts(3, mode="multiclass"), ("index", 3)),
    "lesions": (lambda: metrics.LesionCounts(3, mode="multilabel", size_limits=[3]), MANY),
    "surfaces": (lambda: metrics.SurfaceCounts(3, mode="multilabel"), MANY),
    "labels": (lambda: metrics.MultilabelCounts(3), ("label", 3)),
    "classes": (lambda: metrics.MulticlassCounts(3), ("label", 3)),
    "reconstruction": (metrics.ReconstructionError, ("image", 3)),
}
# they read masks on the CPU, as their docstrings say
OFF_DEVICE = ("lesions", "surfaces")


def batch(name: str, *, images: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and target, with ignored pixels or missing labels, and images without ground truth."""
    what, classes = KINDS[name][1]
    generator = torch.Generator().manual_seed(seed)
    shape = (images, classes) if what == "label" else (images, classes, 6, 5)
    logits = torch.randn(shape, generator=generator)
    if what == "image":
        return logits, torch.randn(shape, generator=generator)
    wanted = (images, 6, 5) if what == "index" else shape
    target = torch.randint(0, classes if what == "index" else 2, wanted, generator=generator)
    lost = torch.rand(wanted, generator=generator) < 0.1
    if name == "classes":
        target = torch.eye(classes)[target.argmax(1)]
    if what == "label":
        return logits, target.float().masked_fill(lost, torch.nan)
    target[0] = 0
    return logits, target.masked_fill(lost, 255)
