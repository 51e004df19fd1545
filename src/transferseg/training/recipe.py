"""What a recipe is: a frozen value that says how a model is trained, and options made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from transferseg.data import Augment, PreparedDataset, RandomScaleCrop, Reader, RotatingKFold
from transferseg.data.samples import target_size
from transferseg.errors import TrainingError, unknown_name
from transferseg.metrics import SegmentationCounts
from transferseg.spec import InputSpec
from transferseg.training.auxiliary import has_auxiliary
from transferseg.training.ema import EMA
from transferseg.training.loaders import epoch_batches
from transferseg.training.schedules import ScheduleLike
from transferseg.training.state import TrainState
from transferseg.training.targets import Loader, Loss, spec_of

#: Precisions that a recipe can ask for, as accelerate names them.
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True, repr=False)
class Recipe:
    """How a segmentation model is trained, as one value: read it, change it, train with it.

    The functions of `transferseg.training.recipes` make recipes. Nothing in one is applied behind
    your back: `train_options` and `fit_options` give the arguments of `train` and `fit` as a dict,
    `dataset` and `loader` make what they are given.

    Attributes:
        name: of the recipe.
        optimizer: a function of the model, such as `functools.partial(sgd, lr=0.01)`.
        schedule: of the learning rate; None keeps it.
        loss: a function of the keyword `mode`, such as `BCEDiceLoss`.
        batch_size: images a batch, on each process.
        size: height and width to which every image is resized, in training and validation.
        epochs: passes over the training images; this or `steps`.
        steps: complete optimizer updates.
        augment: of the training images, after they are resized.
        input: the values that images are brought to, for `create_model(input_spec=...)`; None is
            what the model's weights expect.
        score: of `SegmentationCounts`, the score that chooses the best epoch; None measures the
            loss alone.
        patience: epochs without a better score after which to stop; None goes on to the end.
        clip_norm: largest norm of the gradient; None does not clip.
        precision: "no", "bf16" or "fp16"; "no" is what accelerate is configured to.
        channels_last: memory format, faster convolutions on most machines.
        auxiliary_weight: of the auxiliary head's loss, for models with such a head; None is 0.4.
        ema_decay: of an average of the weights (`EMA`), which is what is scored; None for none.
        folds: validation by rotation (`train_rotating`); None validates on images of their own.

    Raises:
        TrainingError: a number out of range, neither or both of epochs and steps, an unknown
            precision.

    Example:
        >>> from transferseg.training import zhou2022_sgd
        >>> recipe = zhou2022_sgd(steps=200)
        >>> recipe.optimizer(nn.Conv2d(3, 1, 3)).defaults["lr"], recipe.steps, recipe.crop
        (0.01, 200, (512, 512))
        >>> recipe.replace(batch_size=4).batch_size
        4
    """

    name: str
    optimizer: Callable[[nn.Module], Optimizer]
    schedule: ScheduleLike | None
    loss: Callable[..., Loss]
    batch_size: int
    size: int | tuple[int, int]
    epochs: int | None = None
    steps: int | None = None
    augment: Augment | None = None
    input: InputSpec | None = None
    score: str | None = None
    patience: int | None = None
    clip_norm: float | None = None
    precision: str = "no"
    channels_last: bool = False
    auxiliary_weight: float | None = None
    ema_decay: float | None = None
    folds: RotatingKFold | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise TrainingError(
                f"{self.name}: give one of epochs and steps, got epochs={self.epochs}, "
                f"steps={self.steps}; replace(epochs=..., steps=None) changes which one counts."
            )
        for name in ("batch_size", "epochs", "steps", "patience"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise TrainingError(
                    f"{self.name}: {name} must be 1 or more, a whole number, got {value!r}."
                )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise TrainingError(f"{self.name}: clip_norm must be above 0, got {self.clip_norm}.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise TrainingError(
                f"{self.name}: ema_decay must be 0 or more and below 1, got {self.ema_decay}."
            )
        target_size(self.size)
        if self.precision not in PRECISIONS:
            raise TrainingError(unknown_name("precision", self.precision, PRECISIONS))

    def __repr__(self) -> str:
        """Every field that is not None, functions by their names."""
        return _text(self)

    def describe(self) -> dict[str, Any]:
        """JSON values, the same in every process: numbers as they are, the others as text."""
        plain = (bool, int, float, str, type(None))
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: v if isinstance(v, plain) else _text(v) for name, v in values.items()}

    def replace(self, **changes: Any) -> Recipe:  # noqa: ANN401 - field values
        """A copy with some fields changed.

        A schedule's warm-up stays as many updates as it is: with fewer steps, or with epochs, give
        `schedule=` too, or the steps to the function that makes the recipe.
        """
        return replace(self, **changes)

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of what trains: of the crop, where `augment` has one."""
        for step in getattr(self.augment, "steps", (self.augment,)):
            if isinstance(step, RandomScaleCrop):
                return step.shape
        height, width = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        return height, width

    def dataset(
        self,
        model: nn.Module,
        reader: Reader,
        indices: Sequence[int] | None = None,
        *,
        train: bool = False,
        seed: int = 0,
        cache: bool = False,
    ) -> PreparedDataset:
        """The images of a reader as this recipe prepares them.

        Args:
            model: with a `.spec`, which says what its weights expect of an image.
            reader: the data.
            indices: see `PreparedDataset`.
            train: augment.
            seed: see `PreparedDataset`.
            cache: see `PreparedDataset`.

        Raises:
            TrainingError: the model expects other values than the recipe brings images to.
        """
        expected = spec_of(model).input
        if self.input is not None and self.input != expected:
            raise TrainingError(
                f"{self.name} brings images to {self.input}, but the model expects {expected}; "
                "build it with create_model(..., input_spec=recipe.input), or keep what the model "
                "expects with recipe.replace(input=None)."
            )
        return PreparedDataset(
            reader, indices, input=expected, size=self.size, seed=seed, cache=cache,
            augment=self.augment if train else None,
        )  # fmt: skip

    def loader(self, data: PreparedDataset, *, shuffle: bool = False, workers: int = 0) -> Loader:
        """Batches of a data set; `shuffle` for training."""
        return DataLoader(data, batch_size=self.batch_size, shuffle=shuffle, num_workers=workers)

    def accelerator(self, **options: Any) -> Accelerator:  # noqa: ANN401 - accelerate's own
        """A new `Accelerator` of this precision; other options are accelerate's.

        Raises:
            TrainingError: this process has an accelerator of another precision, which accelerate
                keeps for good.
        """
        try:
            asked = None if self.precision == "no" else self.precision
            return Accelerator(mixed_precision=asked, **options)
        except ValueError as error:
            raise TrainingError(f"{self.name} trains in {self.precision}: {error}") from error

    def prepare(
        self, model: nn.Module, *, accelerator: Accelerator | None = None, seed: int = 0
    ) -> TrainState:
        """`TrainState.prepare` with this optimizer, schedule and precision; `EMA`, if it has one.

        Args:
            model: what is trained.
            accelerator: see `TrainState.prepare`; one of this precision when not given.
            seed: see `TrainState.prepare`.
        """
        state = TrainState.prepare(
            model,
            optimizer=self.optimizer,
            schedule=self.schedule,
            accelerator=accelerator or self.accelerator(),
            seed=seed,
        )
        if self.ema_decay is not None:
            EMA(state, decay=self.ema_decay)
        return state

    def fit_options(self, model: nn.Module) -> dict[str, Any]:
        """The arguments of `fit(state, loader, ...)`.

        Args:
            model: with a `.spec`, to whose mode the loss is made.

        Returns:
            "loss", "epochs" or "steps", "clip_norm", "channels_last", "auxiliary_weight".
        """
        return {**self._options(model), "epochs": self.epochs, "steps": self.steps}

    def train_options(
        self, model: nn.Module, loader: Loader, *, accelerator: Accelerator | None = None
    ) -> dict[str, Any]:
        """The arguments of `train(model, loader, validation_loader, ...)`.

        `train` counts complete epochs. For a recipe that counts updates they are as many as hold
        its updates, so that the last epoch may do more; `fit` with `fit_options` ends at the very
        update.

        Args:
            model: see `fit_options`.
            loader: of the training images: its length says how many updates an epoch has.
            accelerator: see `prepare`.

        Raises:
            TrainingError: a recipe that counts updates, and a loader without a length, or one of
                batches of one sample that a BatchNorm of the model cannot take.
        """
        accelerator = accelerator or self.accelerator()
        epochs = self.epochs
        if self.steps is not None:
            batches = epoch_batches(accelerator, loader, model)
            if batches is None:
                raise TrainingError(
                    f"{self.name} counts updates, and the loader does not know how many batches an "
                    "epoch has; train with fit(state, loader, **recipe.fit_options(model))."
                )
            each = accelerator.gradient_accumulation_steps
            epochs = math.ceil(self.steps / math.ceil(max(1, batches) / each))
        return {**self._run_options(model, accelerator), "epochs": epochs}

    def fold_options(
        self, model: nn.Module, *, accelerator: Accelerator | None = None
    ) -> dict[str, Any]:
        """The arguments of `train_rotating` or `cross_validate` beside data and folds.

        Where the recipe has `folds`, they are among them, for `train_rotating`.

        Args:
            model: see `fit_options`.
            accelerator: see `prepare`.

        Raises:
            TrainingError: a recipe that counts updates: folds differ in size.
        """
        if self.epochs is None:
            raise TrainingError(
                f"{self.name} counts updates, and folds count epochs; give "
                "recipe.replace(epochs=..., steps=None), and schedule= if its warm-up is long."
            )
        folds = {} if self.folds is None else {"folds": self.folds}
        own = {"batch_size": self.batch_size, "epochs": self.epochs, **folds}
        return {**self._run_options(model, accelerator or self.accelerator()), **own}

    def _options(self, model: nn.Module) -> dict[str, Any]:
        return {
            "loss": self.loss(mode=spec_of(model).mode),
            "clip_norm": self.clip_norm,
            "channels_last": self.channels_last,
            "auxiliary_weight": self.auxiliary_weight if has_auxiliary(model) else None,
        }

    def _run_options(self, model: nn.Module, accelerator: Accelerator) -> dict[str, Any]:
        spec = spec_of(model)
        judged: dict[str, Any] = {}
        if self.score is not None:
            counts = SegmentationCounts(spec.classes, mode=spec.mode, threshold=spec.threshold)
            judged = {"metrics": counts, "score": self.score}
        return {
            **self._options(model),
            **judged,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "patience": self.patience,
            "ema_decay": self.ema_decay,
            "accelerator": accelerator,
        }


def _text(value: Any) -> str:  # noqa: ANN401 - any setting
    """A setting as text without addresses in memory: functions and classes by their names."""
    if isinstance(value, partial):
        options = [*map(_text, value.args), *_pairs(value.keywords)]
        return f"{_text(value.func)}({', '.join(options)})"
    if is_dataclass(value) and not isinstance(value, type):
        shown = {f.name: getattr(value, f.name) for f in fields(value) if f.name[0] != "_"}
        given = {name: own for name, own in shown.items() if own is not None}
        return f"{type(value).__name__}({', '.join(_pairs(given))})"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_text, value))})"
    return getattr(value, "__name__", None) or repr(value)


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_text(value)}" for name, value in values.items()]
