"""Everything that training changes, in one object that can be saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import extract_model_from_parallel, is_compiled_module, set_seed
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from transferseg.errors import TrainingError
from transferseg.training import saves, sharded
from transferseg.training.ema import EMA
from transferseg.training.record import EpochRecord
from transferseg.training.schedules import ScheduleLike

#: An optimizer, or what makes one from the model (`adamw`, or `functools.partial(adamw, lr=...)`).
OptimizerLike: TypeAlias = Optimizer | Callable[[nn.Module], Optimizer]


@dataclass(eq=False)
class TrainState:
    """Model, optimizer, schedule and counters of one training; made by `TrainState.prepare`.

    `fit` changes it and nothing else; between two of its events it may be saved, and a save that
    is loaded goes on as if it had never been interrupted: on a CPU to the last bit, in the middle
    of an epoch too.

    Attributes:
        model: as accelerate prepared it, to be called; `unwrapped` is the model itself.
        optimizer: as accelerate prepared it.
        accelerator: decides on device, precision, processes and accumulation.
        seed: of the run; the order of every epoch follows from it.
        schedule: what lays the learning-rate schedule, or None.
        total_steps: updates that the schedule is laid out for, None until the first `fit`.
        scheduler: the schedule laid over the optimizer, None until the first `fit`.
        step: complete optimizer updates.
        epoch: complete epochs.
        batches: batches done in the epoch under way, on each process.
        samples_seen: over all processes, since the start.
        seconds: spent in `fit`, since the start.
        history: one row of JSON values an epoch; `train` writes it, `save` keeps it.
        record: the losses of the epoch under way.
        epoch_seconds: spent in `fit` in the epoch under way.
        epoch_length: batches of the epoch under way, None before the first and where unknown.
        epoch_data_seconds: of `epoch_seconds`, waited for batches.
        epoch_skipped: updates left out in the epoch under way.
        under_way: what `train_rotating` has of its epoch under way, empty between two of them.
        ema: the average of the weights, if there is one; see `EMA`.

    Example:
        >>> import tempfile
        >>> from transferseg.training import adamw
        >>> state = TrainState.prepare(nn.Conv2d(1, 1, 3), optimizer=adamw)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     state.save(f"{folder}/last")
        ...     state.load(f"{folder}/last")
    """

    model: nn.Module
    optimizer: AcceleratedOptimizer
    accelerator: Accelerator
    unwrapped: nn.Module
    seed: int
    accumulation: int
    schedule: ScheduleLike | None = None
    total_steps: int | None = None
    scheduler: LRScheduler | None = None
    step: int = 0
    epoch: int = 0
    batches: int = 0
    samples_seen: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    record: EpochRecord = field(default_factory=EpochRecord)
    epoch_seconds: float = 0.0
    epoch_length: int | None = None
    epoch_data_seconds: float = 0.0
    epoch_skipped: int = 0
    under_way: dict[str, Any] = field(default_factory=dict)
    ema: EMA | None = None

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        *,
        optimizer: OptimizerLike,
        schedule: ScheduleLike | None = None,
        total_steps: int | None = None,
        accelerator: Accelerator | None = None,
        seed: int = 0,
    ) -> TrainState:
        """Hand model and optimizer to accelerate, once, and seed every random generator.

        Args:
            model: what is trained; it is moved to the accelerator's device.
            optimizer: over this model's parameters, or a function that makes it from the model.
            schedule: `cosine(...)`, `polynomial(...)`, `constant(...)`, `plateau(...)`, or any
                function (optimizer, total_steps) -> torch scheduler stepped after every update.
            total_steps: updates that the schedule is laid out for; the first `fit` decides when
                not given. To lengthen a saved run, give the new number here.
            accelerator: holds no model yet; a plain `Accelerator()` when not given. It decides on
                precision (`mixed_precision="bf16"`, "fp16") and compiles the model
                (`dynamo_backend="inductor"`, or `dynamo_plugin=TorchDynamoPlugin(...)` with a
                mode): `model` is then the compiled one, and `unwrapped`, which is saved, exported
                and evaluated, stays the model itself, with its own names.
            seed: 0 to 2**32 - 1; seeds Python, NumPy and torch here (each process differently), and
                the order of every epoch.

        Raises:
            TrainingError: a compiled model, an accelerator that already holds a model, an
                optimizer of another model or one already prepared, a setting that `fit` cannot work
                with, processes that do not know of each other, a way to spread the training that
                is not supported.

        Example:
            >>> from transferseg.training import adamw, cosine
            >>> state = TrainState.prepare(
            ...     nn.Conv2d(1, 1, 3), optimizer=adamw, schedule=cosine()
            ... )
            >>> state.step, state.epoch
            (0, 0)
        """
        accelerator = Accelerator() if accelerator is None else accelerator
        _check_accelerator(accelerator)
        sharded.check_processes(accelerator)
        if not 0 <= seed < 2**32:
            raise TrainingError(f"seed must lie in 0..2**32 - 1, got {seed}.")
        model = _released(model)
        made = optimizer if isinstance(optimizer, Optimizer) else optimizer(model)
        _check_optimizer(made, model)
        sharded.share_weights(model, accelerator)
        set_seed(seed, device_specific=True)
        prepared, prepared_optimizer = accelerator.prepare(model, made)
        state = cls(
            model=prepared,
            optimizer=prepared_optimizer,
            accelerator=accelerator,
            unwrapped=model,
            seed=seed,
            accumulation=accelerator.gradient_accumulation_steps,
            schedule=schedule,
            total_steps=total_steps,
        )
        # free_memory() forgets models and optimizers of an earlier training, but not these.
        gone = _ScheduleMemory | EMA
        others = [o for o in accelerator._custom_objects if not isinstance(o, gone)]
        accelerator._custom_objects = [*others, _ScheduleMemory(state)]
        return state

    def lay_schedule(self, total_steps: int | None) -> None:
        """Lay the schedule over the optimizer, if that has not been done.

        The scheduler is not prepared by accelerate: a prepared one steps once for every process at
        every update, so that with four processes a cosine would be over after a quarter of the
        run. `fit` steps it itself, once after each complete update, and it is saved with the rest.

        Args:
            total_steps: number of updates at which the `fit` that asks will end, None if unknown.

        Raises:
            TrainingError: the number is unknown or beyond what the schedule was laid out for, and
                the schedule depends on it.
        """
        if self.schedule is None:
            return
        bounded = getattr(self.schedule, "bounded", True)
        planned = self.total_steps if self.total_steps is not None else total_steps
        if bounded and planned is None:
            raise TrainingError(
                "the number of updates is unknown (a loader without length), and the schedule "
                "depends on it: give fit(..., steps=...) or TrainState.prepare(total_steps=...)."
            )
        if bounded and planned is not None and (total_steps or 0) > planned:
            raise TrainingError(
                f"the schedule was laid out for {planned} updates, but this training would end at "
                f"{total_steps}; give TrainState.prepare(..., total_steps={total_steps})."
            )
        self.total_steps = planned
        if self.scheduler is None:
            self.scheduler = self.schedule(self.optimizer.optimizer, planned or 0)
            self.optimizer.__setstate__({})  # float16: it wraps the step anew, as the schedule did

    def step_schedule(self) -> None:
        """One complete update is done; a plateau schedule waits for its score."""
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()

    def step_plateau(self, score: float) -> None:
        """Tell a plateau schedule the score of an evaluation; nothing for other schedules."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(score)

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of the parameter groups."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimizer changes; gradients of others mean nothing."""
        own = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return [parameter for parameter in self.model.parameters() if id(parameter) in own]

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the whole state; the former save stays until the new one is complete on disk.

        Every process calls it, and what fails on one is raised on all. It reads the pending losses,
        so that a state after a loss that is not finite never replaces a good one. accelerate's own
        files in the folder are pickles: load only what you saved yourself.

        Args:
            folder: made if it does not exist; a save in it is replaced.

        Raises:
            TrainingError: a loss that is not finite; the folder holds something else than a save;
                it cannot be written (disk full, read-only): the former save is whole, and the
                state may be trained on and saved again.
        """
        saves.save(self, Path(folder))

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the model alone, by its own `save_pretrained(folder)`.

        Every process calls it, and one writes; weights that are spread over the processes (FSDP)
        are gathered for it.

        Raises:
            TrainingError: it could not be written.
        """
        saves.save_model(self, Path(folder))

    def load(self, folder: str | PathLike[str]) -> None:
        """Go on from a save: weights, optimizer, schedule, counters, random generators.

        Prepare the state as the saved one was prepared, with a model of the same architecture.

        Raises:
            TrainingError: no save, a damaged one, or one that does not fit; it names every
                difference, and unless the damage shows only while reading nothing has changed.
        """
        saves.load(self, Path(folder))

    def resume(self, folder: str | PathLike[str]) -> bool:
        """Go on from the save in a folder if there is one: True; else begin: False.

        What a kill has left half written there is put in order first. Every process calls it.

        Raises:
            TrainingError: see `load`.
        """
        return saves.resume(self, Path(folder))

    def conditions(self) -> dict[str, Any]:
        """What must be the same for a save to be continued, as JSON values."""
        optimizer = self.optimizer.optimizer
        spread = {"sharding": "FSDP2"} if sharded.is_sharded(self.accelerator) else {}
        return {
            **spread,
            "seed": self.seed,
            "processes": self.accelerator.num_processes,
            "gradient_accumulation_steps": self.accumulation,
            "mixed_precision": self.accelerator.mixed_precision,
            "optimizer": type(optimizer).__name__,
            "parameter_groups": [len(group["params"]) for group in optimizer.param_groups],
            "schedule": _described(self.schedule),
            "ema": None if self.ema is None else repr(self.ema),
        }

    def layout(self) -> dict[str, list[int]]:
        """Shapes of the model's tensors by name."""
        return {name: list(value.shape) for name, value in self.unwrapped.state_dict().items()}


@dataclass
class _ScheduleMemory:
    """The scheduler's state as accelerate saves it, registered before there is a scheduler."""

    state: TrainState

    def state_dict(self) -> dict[str, Any]:
        scheduler = self.state.scheduler
        return {} if scheduler is None else dict(scheduler.state_dict())

    def load_state_dict(self, values: dict[str, Any]) -> None:
        if self.state.scheduler is not None:
            self.state.scheduler.load_state_dict(values)


def _check_accelerator(accelerator: Accelerator) -> None:
    if accelerator._models:
        raise TrainingError(
            "the accelerator already holds a model, and would save and unscale it together with "
            "this one; use a new Accelerator for each training, or call its free_memory() first."
        )
    if accelerator.project_configuration.automatic_checkpoint_naming:
        raise TrainingError(
            "automatic_checkpoint_naming would write saves into folders of accelerate's choice; "
            "turn it off in the ProjectConfiguration."
        )
    if not accelerator.gradient_state.sync_with_dataloader:
        raise TrainingError(
            "sync_with_dataloader=False carries half an accumulation into the next epoch, which no "
            "save could hold; leave it True in the GradientAccumulationPlugin."
        )


def _check_optimizer(optimizer: Any, model: nn.Module) -> None:  # noqa: ANN401 - a caller's value
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, AcceleratedOptimizer):
        raise TrainingError(
            f"expected a torch optimizer that is not prepared yet, got {type(optimizer).__name__}."
        )
    own = {id(parameter) for parameter in model.parameters()}
    for group in optimizer.param_groups:
        if any(id(parameter) not in own for parameter in group["params"]):
            raise TrainingError(
                "the optimizer holds parameters that the model does not have; build it from the "
                "model that is trained, or give a function: optimizer=adamw."
            )


def _released(model: nn.Module) -> nn.Module:
    """The model without the marks of an earlier training.

    accelerate returns a model that it has once prepared as it is, with the device and the autocast
    of that time, whatever the new accelerator says.
    """
    if is_compiled_module(model):
        raise TrainingError(
            "the model is compiled, and its weights would be saved under other names; give the "
            "model itself, and Accelerator(dynamo_backend='inductor') or "
            "Accelerator(dynamo_plugin=TorchDynamoPlugin(...)) to compile it."
        )
    model = extract_model_from_parallel(model, keep_fp32_wrapper=False)
    model.__dict__.pop("_is_accelerate_prepared", None)
    return model


def _described(schedule: ScheduleLike | None) -> str | None:
    """A schedule as text that is the same in another process."""
    if schedule is None or hasattr(schedule, "bounded"):
        return None if schedule is None else repr(schedule)
    return getattr(schedule, "__qualname__", type(schedule).__qualname__)
