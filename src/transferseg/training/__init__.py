"""Training: a loop of events over an explicit state, and the functions around it."""

from __future__ import annotations

from transferseg.training.best import BestCheckpoints, Checkpoint
from transferseg.training.ema import EMA
from transferseg.training.evaluate import MeanLoss, Metric, evaluate
from transferseg.training.events import EpochEvent, StepEvent, event_row
from transferseg.training.history import History
from transferseg.training.judge import ScoreLike
from transferseg.training.layer_decay import layer_decay_groups
from transferseg.training.logs import CSVLogger, JSONLLogger
from transferseg.training.loop import fit
from transferseg.training.modes import evaluation_mode
from transferseg.training.optimizers import OPTIMIZERS, adam, adamw, sgd, weight_decay_groups
from transferseg.training.predict import predict, predict_probabilities
from transferseg.training.progress import with_progress
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
from transferseg.training.state import OptimizerLike, TrainState
from transferseg.training.stopping import EarlyStopping
from transferseg.training.targets import Loss
from transferseg.training.trackers import log_to_trackers
from transferseg.training.train import train

__all__ = [
    "EMA",
    "OPTIMIZERS",
    "SCHEDULES",
    "BestCheckpoints",
    "CSVLogger",
    "Checkpoint",
    "EarlyStopping",
    "EpochEvent",
    "History",
    "JSONLLogger",
    "Loss",
    "MeanLoss",
    "Metric",
    "OptimizerLike",
    "Plateau",
    "Schedule",
    "ScheduleLike",
    "ScoreLike",
    "StepEvent",
    "TrainState",
    "adam",
    "adamw",
    "constant",
    "cosine",
    "evaluate",
    "evaluation_mode",
    "event_row",
    "fit",
    "layer_decay_groups",
    "log_to_trackers",
    "plateau",
    "polynomial",
    "predict",
    "predict_probabilities",
    "sgd",
    "train",
    "train_rotating",
    "weight_decay_groups",
    "with_progress",
]
