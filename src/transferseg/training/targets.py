"""Images, targets and losses of a batch, by name and with errors that say what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, get_args

from torch import Tensor, nn
from torch.utils.data import DataLoader

from transferseg.errors import TrainingError, unknown_name
from transferseg.spec import ModelSpec
from transferseg.types import Batch, Target

#: What is trained on or evaluated: a torch loader, plain or prepared by accelerate.
Loader: TypeAlias = DataLoader[Any]


class Loss(Protocol):
    """What training minimises: (logits, target) -> scalar.

    It may have `terms(logits, target)` as well, a dict whose entry "loss" is that scalar and whose
    other entries are detached parts to be logged.
    """

    def __call__(self, logits: Tensor, target: Tensor, /) -> Tensor:
        """The loss, a scalar with a gradient."""
        ...


def check_target(target: str) -> None:
    """Refuse a target name that does not exist."""
    if target not in get_args(Target):
        raise TrainingError(unknown_name("target", target, get_args(Target)))


def spec_of(model: nn.Module) -> ModelSpec:
    """The model's spec: its classes and mode are what labels are checked against."""
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise TrainingError(
            f"{type(model).__name__} has no ModelSpec as its .spec, which says what its classes "
            "and its input are; build it with create_model, or set model.spec = ModelSpec(...)."
        )
    return spec


def pick(batch: Batch, name: str) -> Tensor:
    """A tensor of the batch by name."""
    value = batch.get(name) if isinstance(batch, Mapping) else None
    if not isinstance(value, Tensor):
        has = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise TrainingError(f"the batch has no tensor {name!r}: it has {has}.")
    return value


def sample_ids(batch: Batch) -> tuple[str, ...]:
    """The ids of a batch's samples, empty if it names none."""
    return tuple(map(str, batch.get("id", ())))


def check_first(batch: Batch, model: nn.Module, target: str) -> None:
    """Check shapes, dtypes and label values of one batch against the model's spec."""
    from transferseg.data.validate import check_batch

    spec = spec_of(model)
    check_batch(
        batch, classes=len(spec.classes), mode=spec.mode, target=target,
        channels=spec.input.channels,
    )  # fmt: skip


def loss_terms(loss: Loss, output: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar to minimise and the detached scalars to log, "loss" first."""
    terms = getattr(loss, "terms", None)
    parts: dict[str, Any] = dict(terms(output, target)) if callable(terms) else {}
    value = parts.pop("loss") if parts else loss(output, target)
    if not isinstance(value, Tensor) or value.ndim != 0:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TrainingError(f"the loss must be a scalar tensor, got {shape}; reduce it (mean).")
    return value, {"loss": value.detach(), **{name: part.detach() for name, part in parts.items()}}
