"""Training: a loop of events over an explicit state, and the functions around it."""

from __future__ import annotations

from transferseg.training.evaluate import MeanLoss, Metric, evaluate
from transferseg.training.events import EpochEvent, StepEvent
from transferseg.training.folder import FolderReport, predict_folder
from transferseg.training.history import History
from transferseg.training.judge import ScoreLike
from transferseg.training.layer_decay import layer_decay_groups
from transferseg.training.loop import fit
from transferseg.training.modes import evaluation_mode
from transferseg.training.optimizers import OPTIMIZERS, adam, adamw, sgd, weight_decay_groups
from transferseg.training.postprocess import fill_holes, largest_components, remove_small
from transferseg.training.predict import predict, predict_probabilities
from transferseg.training.rotating import train_rotating
from transferseg.training.schedules import (
    SCHEDULES,
    Plateau,
    Schedule,
    ScheduleLike,
    constant,
    cosine,
    plateau,
    polynomial,
)
from transferseg.training.speed import Speed, measure_speed
from transferseg.training.state import OptimizerLike, TrainState
from transferseg.training.stopping import EarlyStopping
from transferseg.training.targets import Loss
from transferseg.training.thresholds import ThresholdChoice, choose_threshold
from transferseg.training.train import train

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "EarlyStopping",
    "EpochEvent",
    "FolderReport",
    "History",
    "Loss",
    "MeanLoss",
    "Metric",
    "OptimizerLike",
    "Plateau",
    "Schedule",
    "ScheduleLike",
    "ScoreLike",
    "Speed",
    "StepEvent",
    "ThresholdChoice",
    "TrainState",
    "adam",
    "adamw",
    "choose_threshold",
    "constant",
    "cosine",
    "evaluate",
    "evaluation_mode",
    "fill_holes",
    "fit",
    "largest_components",
    "layer_decay_groups",
    "measure_speed",
    "plateau",
    "polynomial",
    "predict",
    "predict_folder",
    "predict_probabilities",
    "remove_small",
    "sgd",
    "train",
    "train_rotating",
    "weight_decay_groups",
]
