"""transferseg: move every pretrained weight you can find into a segmentation model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module that defines it; imported on first use, so that `import transferseg` is cheap
_PUBLIC: dict[str, str] = {
    "InputSpec": "spec",
    "ModelSpec": "spec",
    "transfer_weights": "transfer",
    "TransferReport": "transfer",
    "inspect_checkpoint": "load",
    "load_checkpoint": "load",
    "CheckpointInfo": "load",
    "create_model": "models",
    "create_classifier": "models",
    "create_autoencoder": "models",
    "list_architectures": "models",
    "list_encoders": "models",
    "encoder_capabilities": "models",
    "Segmenter": "models",
    "Autoencoder": "models",
    "Classifier": "models",
    "TrainState": "training",
    "fit": "training",
    "train": "training",
    "evaluate": "training",
    "predict": "training",
    "predict_folder": "training",
    "Stage": "stages",
    "StageData": "stages",
    "ModelRecipe": "stages",
    "TrainingRecipe": "stages",
    "run_stage": "stages",
    "Study": "study",
    "TwoStep": "study",
    "run_study": "study",
}
# room -> module; the tasks of stages are named so often that they have a door of their own
_ROOMS: dict[str, str] = {
    **{
        room: room
        for room in (
            "data", "errors", "load", "losses", "metrics", "models", "plots", "stages", "study",
            "training", "transfer",
        )
    },
    "tasks": "stages.tasks",
}  # fmt: skip

__all__ = [*_PUBLIC, *_ROOMS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name in _PUBLIC:
        value = getattr(importlib.import_module(f"transferseg.{_PUBLIC[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"transferseg.{_ROOMS[name]}")
    raise AttributeError(f"module 'transferseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:  # what __getattr__ finds, for type checkers and editors
    from transferseg import data as data
    from transferseg import errors as errors
    from transferseg import load as load
    from transferseg import losses as losses
    from transferseg import metrics as metrics
    from transferseg import models as models
    from transferseg import plots as plots
    from transferseg import stages as stages
    from transferseg import study as study
    from transferseg import training as training
    from transferseg import transfer as transfer
    from transferseg.load import CheckpointInfo as CheckpointInfo
    from transferseg.load import inspect_checkpoint as inspect_checkpoint
    from transferseg.load import load_checkpoint as load_checkpoint
    from transferseg.models import Autoencoder as Autoencoder
    from transferseg.models import Classifier as Classifier
    from transferseg.models import Segmenter as Segmenter
    from transferseg.models import create_autoencoder as create_autoencoder
    from transferseg.models import create_classifier as create_classifier
    from transferseg.models import create_model as create_model
    from transferseg.models import encoder_capabilities as encoder_capabilities
    from transferseg.models import list_architectures as list_architectures
    from transferseg.models import list_encoders as list_encoders
    from transferseg.spec import InputSpec as InputSpec
    from transferseg.spec import ModelSpec as ModelSpec
    from transferseg.stages import ModelRecipe as ModelRecipe
    from transferseg.stages import Stage as Stage
    from transferseg.stages import StageData as StageData
    from transferseg.stages import TrainingRecipe as TrainingRecipe
    from transferseg.stages import run_stage as run_stage
    from transferseg.stages import tasks as tasks
    from transferseg.study import Study as Study
    from transferseg.study import TwoStep as TwoStep
    from transferseg.study import run_study as run_study
    from transferseg.training import TrainState as TrainState
    from transferseg.training import evaluate as evaluate
    from transferseg.training import fit as fit
    from transferseg.training import predict as predict
    from transferseg.training import predict_folder as predict_folder
    from transferseg.training import train as train
    from transferseg.transfer import TransferReport as TransferReport
    from transferseg.transfer import transfer_weights as transfer_weights
