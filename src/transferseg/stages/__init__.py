"""Stages: one training each, with a parent to begin from and a lineage to show for it."""

from transferseg.stages.data import Facts, StageData
from transferseg.stages.describe import describe_value
from transferseg.stages.lineage import Lineage, StageRecord, TensorOrigin, read_lineage
from transferseg.stages.recipes import ModelRecipe, TrainingRecipe
from transferseg.stages.run import StageCheckpoint, run_stage
from transferseg.stages.stage import Stage
from transferseg.stages.tasks import TASKS, Classify, Reconstruct, Segment, SegmentBoxes, Task

__all__ = [
    "TASKS",
    "Classify",
    "Facts",
    "Lineage",
    "ModelRecipe",
    "Reconstruct",
    "Segment",
    "SegmentBoxes",
    "Stage",
    "StageCheckpoint",
    "StageData",
    "StageRecord",
    "Task",
    "TensorOrigin",
    "TrainingRecipe",
    "describe_value",
    "read_lineage",
    "run_stage",
]
