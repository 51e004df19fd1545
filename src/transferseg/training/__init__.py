"""Training: a loop of events over an explicit state, and the functions around it."""

from __future__ import annotations

from transferseg.training.evaluate import MeanLoss, Metric, evaluate
from transferseg.training.events import EpochEvent, StepEvent
from transferseg.training.history import History
from transferseg.training.judge import ScoreLike
from transferseg.training.layer_decay import layer_decay_groups
from transferseg.training.loop import fit
from transferseg.training.modes import evaluation_mode
from transferseg.training.optimizers import OPTIMIZERS, adam, adamw, sgd, weight_decay_groups
from transferseg.training.predict import predict, predict_probabilities
from transferseg.training.rotating import train_rotating
from transferseg.training.saving import save_every
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
from transferseg.training.train import train

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "EarlyStopping",
    "EpochEvent",
    "History",
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
    "fit",
    "layer_decay_groups",
    "plateau",
    "polynomial",
    "predict",
    "predict_probabilities",
    "save_every",
    "sgd",
    "train",
    "train_rotating",
    "weight_decay_groups",
]
