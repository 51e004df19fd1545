"""What model a stage builds and how it trains it, as values."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from transferseg.errors import SpecError, TrainingError, unknown_name
from transferseg.models import Unfreezing
from transferseg.models.create import Weights, is_path
from transferseg.spec import InputSpec
from transferseg.stages.describe import describe_value
from transferseg.training import Recipe, ScheduleLike, adamw, cosine
from transferseg.training.recipe import PRECISIONS
from transferseg.training.state import OptimizerLike


@dataclass(frozen=True)
class ModelRecipe:
    """The model of a stage; which kind it is (segmenter, classifier, ...) the task decides.

    Attributes:
        encoder: a name of `list_encoders()`.
        architecture: of a segmentation stage; classifiers and autoencoders do without it.
        in_channels: channels of the image.
        weights: of the encoder where no parent gives it: see `create_model`.
        decoder_weights: a checkpoint whose decoder is taken where no parent gives it; None: random.
        input_spec: what the weights expect of an image; by default the parent's, else that of the
            encoder's weights.
        output_stride: see `create_model`; segmentation only.
        auxiliary: see `create_model`; an error where the task is not segmentation.
        options: the decoder's own (of a classifier: `dropout`), and `encoder_options` and, of a
            segmentation model, `dilation`: see `create_model`.

    Example:
        >>> ModelRecipe("resnet18", in_channels=1).replace(architecture="deeplabv3").architecture
        'deeplabv3'
    """

    encoder: str
    architecture: str = "unet"
    in_channels: int = 3
    weights: Weights = None
    decoder_weights: str | os.PathLike[str] | None = None
    input_spec: InputSpec | None = None
    output_stride: int | None = None
    auxiliary: bool | Mapping[str, Any] = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def replace(self, **changes: Any) -> ModelRecipe:  # noqa: ANN401 - field values
        """A copy with some fields changed."""
        return replace(self, **changes)

    def common(self) -> dict[str, Any]:
        """The arguments that every kind of model takes.

        Raises:
            SpecError: an auxiliary head, which a segmentation model alone has.
        """
        if self.auxiliary is not False:
            raise SpecError(
                "only a segmentation model has an auxiliary head; leave auxiliary=False in the "
                "ModelRecipe of this stage."
            )
        return self._common()

    def segmentation(self) -> dict[str, Any]:
        """The arguments that a segmentation model takes beside its names and classes."""
        own = {"output_stride": self.output_stride, "auxiliary": self.auxiliary}
        return {**own, **self._common()}

    def _common(self) -> dict[str, Any]:
        return {
            "in_channels": self.in_channels,
            "weights": self.weights,
            "input_spec": self.input_spec,
            **self.options,
        }

    def describe(self) -> dict[str, Any]:
        """JSON values; weights that are files stand by their content.

        Where there is no auxiliary head, nothing is said of it: stages from before there was any
        keep their keys.
        """
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if self.auxiliary is False:
            del values["auxiliary"]
        values["weights"] = Path(str(self.weights)) if is_path(self.weights) else self._tag()
        if self.decoder_weights is not None:
            values["decoder_weights"] = Path(self.decoder_weights)
        return {name: describe_value(value, what=name) for name, value in values.items()}

    def beginning(self, part: str) -> str:
        """Where the tensors of a part begin when no parent gives them, for lineage."""
        if part != "encoder" or self.weights is None:
            return "random"
        return f"weights {self.weights if is_path(self.weights) else self._tag()}"

    def _tag(self) -> str | None:
        """Timm's name of the weights: what "default" means changes with timm."""
        if self.weights is None:
            return None
        name = self.encoder if self.weights == "default" else f"{self.encoder}.{self.weights}"
        try:
            tag = timm.get_pretrained_cfg(name).tag
        except (RuntimeError, AttributeError) as error:
            raise SpecError(f"timm knows no weights {name!r}: {error}") from error
        return f"{self.encoder}.{tag}"


@dataclass(frozen=True)
class TrainingRecipe:
    """How a stage trains; every field can be an axis of a study.

    Attributes:
        epochs: at most; with `StageData.folds`, rounds of the rotation.
        batch_size: images an update, from 1.
        optimizer: see `TrainState.prepare`.
        schedule: see `TrainState.prepare`; None keeps the learning rate.
        patience: epochs without a better score after which to stop; None goes on to the end.
        minimum_delta: how much better counts.
        clip_norm: largest norm of the gradient; None does not clip.
        channels_last: memory format; faster convolutions on most machines.
        precision: "no", "fp16" or "bf16", as accelerate takes it.
        accumulation: batches an optimizer update.
        workers: processes that prepare batches; 0 does it in the training process.
        freeze: what never trains, as `models.freeze` takes it.
        unfreeze: what begins to train at which epoch; see `fit`.
        auxiliary_weight: of the auxiliary head's loss; see `fit`.
        ema_decay: of an average of the weights, which is scored and kept; see `train`.

    Raises:
        TrainingError: a number out of range, an unknown precision.

    Example:
        >>> TrainingRecipe(epochs=2, batch_size=4).patience is None
        True
    """

    epochs: int = 50
    batch_size: int = 16
    optimizer: OptimizerLike = adamw
    schedule: ScheduleLike | None = field(default_factory=cosine)
    patience: int | None = None
    minimum_delta: float = 0.0
    clip_norm: float | None = None
    channels_last: bool = False
    precision: str = "no"
    accumulation: int = 1
    workers: int = 0
    freeze: Sequence[str] = ()
    unfreeze: Unfreezing | None = None
    auxiliary_weight: float | None = None
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.freeze, str):
            object.__setattr__(self, "freeze", (self.freeze,))
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulation", 1), ("workers", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise TrainingError(f"{name} must be a whole number from {least}, got {value!r}.")
        if self.precision not in PRECISIONS:
            raise TrainingError(unknown_name("precision", self.precision, PRECISIONS))

    @classmethod
    def of(cls, recipe: Recipe, **changes: Any) -> TrainingRecipe:  # noqa: ANN401 - field values
        """How a recipe of `training` trains, with some fields changed.

        Size, augmentation and folds belong to the stage's data, loss and score to its task.

        Args:
            recipe: such as `transferseg.training.khadka2020()`.
            changes: field values; `epochs` where the recipe counts updates.

        Raises:
            TrainingError: a recipe that counts updates, and no `epochs`.

        Example:
            >>> from transferseg.training import khadka2020
            >>> TrainingRecipe.of(khadka2020(), workers=2).batch_size
            16
        """
        names = cls.__dataclass_fields__.keys() & recipe.__dataclass_fields__.keys()
        values = {name: getattr(recipe, name) for name in names} | changes
        if values["epochs"] is None:
            raise TrainingError(
                f"{recipe.name} counts updates ({recipe.steps}), a stage counts epochs; give "
                "TrainingRecipe.of(recipe, epochs=...)."
            )
        return cls(**values)

    def replace(self, **changes: Any) -> TrainingRecipe:  # noqa: ANN401 - field values
        """A copy with some fields changed."""
        return replace(self, **changes)

    @contextmanager
    def accelerator(self) -> Iterator[Accelerator]:
        """A new accelerator of this precision and accumulation, for a while.

        accelerate keeps the precision of the first accelerator for the whole process; stages of one
        process may differ in it, and what comes after them must not inherit it.
        """
        shared = AcceleratorState._shared_state
        before = dict(shared)
        shared.clear()
        try:
            yield Accelerator(
                mixed_precision=self.precision, gradient_accumulation_steps=self.accumulation
            )
        finally:
            shared.clear()
            shared.update(before)

    def options(self) -> dict[str, Any]:
        """The arguments of `train` that are settings of the training."""
        names = (
            "epochs", "optimizer", "schedule", "patience", "minimum_delta", "clip_norm",
            "channels_last", "unfreeze", "auxiliary_weight", "ema_decay",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def describe(self) -> dict[str, Any]:
        """JSON values; the number of workers changes no result and is left out.

        So are freezing where nothing is frozen, and what is not given of an auxiliary head or an
        average: stages from before there was any keep their keys.
        """
        names = [name for name in self.__dataclass_fields__ if name != "workers"]
        values = {name: describe_value(getattr(self, name), what=name) for name in names}
        for name in ("auxiliary_weight", "ema_decay"):
            if values[name] is None:
                del values[name]
        return {k: v for k, v in values.items() if v or k not in ("freeze", "unfreeze")}
