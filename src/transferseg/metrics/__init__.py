"""Metrics: streaming counts, one row an image, and scores that say what they are."""

from transferseg.metrics.classification import MultilabelCounts, MultilabelScores
from transferseg.metrics.counts import SegmentationCounts
from transferseg.metrics.multiclass import MulticlassCounts, MulticlassScores
from transferseg.metrics.reconstruction import ReconstructionError, ReconstructionScores
from transferseg.metrics.scores import SegmentationScores

__all__ = [
    "MulticlassCounts",
    "MulticlassScores",
    "MultilabelCounts",
    "MultilabelScores",
    "ReconstructionError",
    "ReconstructionScores",
    "SegmentationCounts",
    "SegmentationScores",
]
