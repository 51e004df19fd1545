"""Metrics: streaming counts, one row an image, and scores that say what they are."""

from transferseg.metrics.bootstrap import Interval, bootstrap_interval
from transferseg.metrics.calibration import CalibrationCounts, CalibrationScores
from transferseg.metrics.classification import MultilabelCounts, MultilabelScores
from transferseg.metrics.components import LesionMatch, label_lesions, match_lesions
from transferseg.metrics.counts import SegmentationCounts
from transferseg.metrics.distances import SurfaceCounts, SurfaceScores
from transferseg.metrics.distribution import Distribution, ImageScores, distribution
from transferseg.metrics.lesions import LesionCounts, LesionScores
from transferseg.metrics.multiclass import MulticlassCounts, MulticlassScores
from transferseg.metrics.overlap import CLASS_SCORES, ClassScore
from transferseg.metrics.ranks import RankCorrelation, Spread, rank_correlation, spread
from transferseg.metrics.reconstruction import ReconstructionError, ReconstructionScores
from transferseg.metrics.scores import SegmentationScores
from transferseg.metrics.statistics import PairedTest, holm, paired_test
from transferseg.metrics.surface import SurfaceDistances, surface_distances
from transferseg.metrics.sweep import SweepScores, ThresholdCounts

__all__ = [
    "CLASS_SCORES",
    "CalibrationCounts",
    "CalibrationScores",
    "ClassScore",
    "Distribution",
    "ImageScores",
    "Interval",
    "LesionCounts",
    "LesionMatch",
    "LesionScores",
    "MulticlassCounts",
    "MulticlassScores",
    "MultilabelCounts",
    "MultilabelScores",
    "PairedTest",
    "RankCorrelation",
    "ReconstructionError",
    "ReconstructionScores",
    "SegmentationCounts",
    "SegmentationScores",
    "Spread",
    "SurfaceCounts",
    "SurfaceDistances",
    "SurfaceScores",
    "SweepScores",
    "ThresholdCounts",
    "bootstrap_interval",
    "distribution",
    "holm",
    "label_lesions",
    "match_lesions",
    "paired_test",
    "rank_correlation",
    "spread",
    "surface_distances",
]
