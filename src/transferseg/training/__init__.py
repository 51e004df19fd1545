"""Training: a loop of events over an explicit state, and the functions around it."""

from __future__ import annotations

from transferseg.training.best import BestCheckpoints, Checkpoint
from transferseg.training.cross_validation import cross_validate
from transferseg.training.crossed import CrossValidation, Spread
from transferseg.training.ema import EMA
from transferseg.training.evaluate import MeanLoss, Metric, evaluate
from transferseg.training.events import EpochEvent, StepEvent, event_row
from transferseg.training.folder import FolderReport, predict_folder
from transferseg.training.history import History
from transferseg.training.judge import ScoreLike
from transferseg.training.layer_decay import layer_decay_groups
from transferseg.training.logs import CSVLogger, JSONLLogger
from transferseg.training.loop import fit
from transferseg.training.modes import evaluation_mode
from transferseg.training.optimizers import OPTIMIZERS, adam, adamw, sgd, weight_decay_groups
from transferseg.training.postprocess import fill_holes, largest_components, remove_small
from transferseg.training.predict import predict, predict_probabilities
from transferseg.training.progress import with_progress
from transferseg.training.recipe import Recipe
from transferseg.training.recipes import (
    RECIPES,
    khadka2020,
    merand2021,
    modern,
    zhou2022_adamw,
    zhou2022_sgd,
)
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
from transferseg.training.speed import Speed, measure_speed
from transferseg.training.state import OptimizerLike, TrainState
from transferseg.training.stopping import EarlyStopping
from transferseg.training.targets import Loss
from transferseg.training.thresholds import ThresholdChoice, choose_threshold
from transferseg.training.trackers import log_to_trackers
from transferseg.training.train import train

__all__ = [
    "EMA",
    "OPTIMIZERS",
    "RECIPES",
    "SCHEDULES",
    "BestCheckpoints",
    "CSVLogger",
    "Checkpoint",
    "CrossValidation",
    "EarlyStopping",
    "EpochEvent",
    "FolderReport",
    "History",
    "JSONLLogger",
    "Loss",
    "MeanLoss",
    "Metric",
    "OptimizerLike",
    "Plateau",
    "Recipe",
    "Schedule",
    "ScheduleLike",
    "ScoreLike",
    "Speed",
    "Spread",
    "StepEvent",
    "ThresholdChoice",
    "TrainState",
    "adam",
    "adamw",
    "choose_threshold",
    "constant",
    "cosine",
    "cross_validate",
    "evaluate",
    "evaluation_mode",
    "event_row",
    "fill_holes",
    "fit",
    "khadka2020",
    "largest_components",
    "layer_decay_groups",
    "log_to_trackers",
    "measure_speed",
    "merand2021",
    "modern",
    "plateau",
    "polynomial",
    "predict",
    "predict_folder",
    "predict_probabilities",
    "remove_small",
    "save_every",
    "sgd",
    "train",
    "train_rotating",
    "weight_decay_groups",
    "with_progress",
    "zhou2022_adamw",
    "zhou2022_sgd",
]
