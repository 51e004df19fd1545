"""The recipes of the registry in a size for tests, and models for them."""

from __future__ import annotations

import inspect

import torch

import tests.models.tiny_timm  # noqa: F401 - registers its models
import transferseg as ts
from transferseg.data import SyntheticRadiographs
from transferseg.training import RECIPES, Recipe

SMALL = {"size": 64, "crop": 48, "batch_size": 2, "steps": 2, "epochs": 1}
READER = SyntheticRadiographs(6, size=64)
IMAGENET = ts.spec.InputSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
MODELS = {
    "cnn": ("fcn", "test_resnet", {"auxiliary": True}),
    "vit": ("unet", "test_vit", {"channels": [16, 16, 8, 8, 8]}),
}


def small(name: str, **changes) -> Recipe:
    parameters = inspect.signature(RECIPES[name]).parameters
    return RECIPES[name](**{k: v for k, v in {**SMALL, **changes}.items() if k in parameters})


def build(kind: str, recipe: Recipe):
    architecture, encoder, options = MODELS[kind]
    torch.manual_seed(0)
    return ts.create_model(
        architecture, encoder, classes=READER.classes, mode=READER.mode,
        input_spec=recipe.input or IMAGENET, **options,
    )  # fmt: skip
