"""Scores of a model over a loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import reduce
from operator import add
from typing import Any, Protocol, TypeVar, cast, overload

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderStateMixin
from accelerate.utils import extract_model_from_parallel, gather_object, send_to_device
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm

from transferseg.errors import TrainingError
from transferseg.training import sharded
from transferseg.training.inference import device_of, dtype_of
from transferseg.training.loaders import prepared
from transferseg.training.modes import evaluation_mode
from transferseg.training.targets import (
    Loader,
    Loss,
    check_first,
    check_target,
    loss_terms,
    pick,
)
from transferseg.types import Target

S = TypeVar("S", covariant=True)


class Metric(Protocol[S]):
    """A streaming metric: counts that grow with batches and add up across processes."""

    def update(self, logits: Tensor, target: Tensor, /) -> object:
        """Count one batch."""
        ...

    def __add__(self, other: Any, /) -> Any:  # noqa: ANN401 - of its own kind
        """The counts of both."""
        ...

    def scores(self) -> S:
        """What has been counted, as scores."""
        ...

    def reset(self) -> object:
        """Forget everything."""
        ...

    def to(self, device: Any, /) -> Any:  # noqa: ANN401 - itself
        """Keep the counts on a device."""
        ...


@overload
def evaluate(
    model: nn.Module,
    loader: Loader,
    *,
    metrics: Metric[S],
    accelerator: Accelerator | None = None,
    target: Target = "mask",
    progress: bool = False,
) -> S: ...
@overload
def evaluate(
    model: nn.Module,
    loader: Loader,
    *,
    metrics: Mapping[str, Metric[Any]],
    accelerator: Accelerator | None = None,
    target: Target = "mask",
    progress: bool = False,
) -> dict[str, Any]: ...
def evaluate(
    model: nn.Module,
    loader: Loader,
    *,
    metrics: Metric[Any] | Mapping[str, Metric[Any]],
    accelerator: Accelerator | None = None,
    target: Target = "mask",
    progress: bool = False,
) -> Any:
    """Count every sample of a loader once, in evaluation mode, and return the scores.

    Every submodule gets its own training mode back, and torch's CPU generator its state, so that
    evaluating in the middle of training changes nothing in it. The metrics are reset first and keep
    their counts afterwards, for other readings of them (`metrics.scores("per_image")`). Over
    several processes each counts its share without duplicates, and the counts are added; images
    may then differ in size from batch to batch.

    Args:
        model: plain or prepared; it is evaluated where it is, or moved to the accelerator's device.
            Images go in at the dtype of its weights (float16 after `model.half()`).
        loader: batches as the data room makes them.
        metrics: one metric, or several by name.
        accelerator: of the training, for its device, precision and processes; without one the model
            is called as it is, in this process.
        target: "mask", "label" or "image".
        progress: show a progress bar, in the main process.

    Returns:
        `metrics.scores()`, or a dict of them by name.

    Raises:
        TrainingError: an empty loader; over several processes, a loader that is already prepared or
            has an iterable data set (its samples could not be told from their duplicates).
        DataError: the first batch does not fit the model's spec.

    Example:
        >>> from transferseg.spec import InputSpec, ModelSpec
        >>> model = nn.Conv2d(1, 1, 1)
        >>> model.spec = ModelSpec("autoencoder", "none", ["grey"], "binary", input=InputSpec(1))
        >>> _ = nn.init.ones_(model.weight), nn.init.ones_(model.bias)
        >>> loader = torch.utils.data.DataLoader([{"image": torch.rand(1, 4, 4)}] * 3, batch_size=2)
        >>> evaluate(model, loader, metrics=MeanLoss(nn.functional.l1_loss), target="image")
        {'loss': 1.0}
    """
    check_target(target)
    named = dict(metrics) if isinstance(metrics, Mapping) else {"": metrics}
    model, device = _placed(model, accelerator)
    for metric in named.values():
        metric.reset()
        metric.to(device)
    autocast = nullcontext() if accelerator is None else accelerator.autocast()
    dtype, empty = dtype_of(model), True
    # A loader without a generator of its own draws a number from the global one when it starts.
    with evaluation_mode(model), torch.random.fork_rng(devices=[]), torch.no_grad(), autocast:
        for batch, counts in _batches(loader, accelerator, device, progress):
            if empty and counts:
                check_first(batch, model, target)
                empty = False
            image = pick(batch, "image")
            logits = model(image.to(dtype))
            if not counts:
                continue
            wanted = image if target == "image" else pick(batch, target)
            for metric in named.values():
                metric.update(logits.float(), wanted)
    if empty and (accelerator is None or accelerator.num_processes == 1):
        raise TrainingError("the loader gave no batches; an empty split?")
    scores = {name: _over_processes(m, accelerator).scores() for name, m in named.items()}
    return scores if isinstance(metrics, Mapping) else scores[""]


def _placed(model: nn.Module, accelerator: Accelerator | None) -> tuple[nn.Module, torch.device]:
    """The model without its wrapper for several processes, and the device that it is on.

    The wrapper would exchange buffers in every forward pass, and wait for processes that have one
    batch less. They are exchanged once instead: every process scores the model that is saved. A
    compiled model is called as it is before compilation: that for training is of no use here, and
    images of many sizes would each be compiled for anew.
    """
    if accelerator is None:
        return model, device_of(model)
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    sharded.share_buffers(model, accelerator)
    if not sharded.is_sharded(accelerator):  # those have their places
        model = model.to(accelerator.device)
    return model, accelerator.device


def check_shares(loader: Loader, accelerator: Accelerator | None) -> None:
    """Refuse a loader whose samples several processes could not share without repeats.

    Raises:
        TrainingError: one that is already prepared, or of an iterable data set.

    Example:
        >>> check_shares(torch.utils.data.DataLoader([1, 2]), Accelerator(cpu=True))
    """
    if accelerator is None or accelerator.num_processes == 1:
        return
    if isinstance(loader, DataLoaderStateMixin):
        raise TrainingError(
            "over several processes, evaluate needs a plain DataLoader: one that accelerate has "
            "prepared repeats samples to fill its last batches."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise TrainingError(
            "over several processes, evaluate needs a map-style data set: the shares of an "
            "iterable one are filled up with repeated samples."
        )


def _batches(
    loader: Loader, accelerator: Accelerator | None, device: torch.device, progress: bool
) -> Iterator[tuple[Any, bool]]:
    """Batches on the device, with whether they count: see `sharded.in_step`."""
    check_shares(loader, accelerator)
    if isinstance(loader, DataLoaderStateMixin):  # perhaps that of a training under way, which
        loader = cast(Any, loader).base_dataloader  # would take our last batch for its own
    if accelerator is not None:
        shared: Any = prepared(accelerator, loader, even_batches=False)
        shared.set_epoch = lambda _: None  # its data may be those of a training under way
        loader = shared
    hidden = not progress or (accelerator is not None and not accelerator.is_main_process)
    bar = tqdm(loader, desc="evaluate", leave=False, disable=hidden)
    batches = (send_to_device(batch, device) for batch in bar)
    if accelerator is None or not sharded.is_sharded(accelerator):
        yield from ((batch, True) for batch in batches)
    else:
        first = torch.as_tensor(loader.dataset[0]["image"])[None].to(device)
        yield from sharded.in_step(batches, accelerator, {"image": first})


def _over_processes(metric: Metric[S], accelerator: Accelerator | None) -> Metric[S]:
    if accelerator is None or accelerator.num_processes == 1:
        return metric
    metric.to("cpu")  # counts are small, and travel as objects
    own: object = metric
    if isinstance(own, MeanLoss):  # not its loss: a lambda could not
        return cast("Metric[S]", own.with_parts(gather_object(own.parts)))
    return cast("Metric[S]", reduce(add, gather_object([metric])))


class MeanLoss:
    """A loss as a metric: its mean, and that of its terms, over samples.

    Each batch counts with its number of samples; the sums are float64 on the host.

    Args:
        loss: (logits, target) -> scalar; see `Loss`.

    Example:
        >>> mean = MeanLoss(nn.functional.mse_loss)
        >>> mean.update(torch.ones(3, 1), torch.zeros(3, 1))
        >>> mean.update(torch.zeros(1, 1), torch.zeros(1, 1))
        >>> mean.scores()
        {'loss': 0.75}
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        #: of every batch the scalars by name, and its number of samples
        self.parts: list[tuple[dict[str, Tensor], int]] = []

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add one batch; its scalars stay on the device until `scores`."""
        self.parts.append((loss_terms(self.loss, logits, target)[1], len(logits)))

    def __add__(self, other: MeanLoss) -> MeanLoss:
        """The batches of both."""
        return self.with_parts(self.parts + other.parts)

    def with_parts(self, parts: list[tuple[dict[str, Tensor], int]]) -> MeanLoss:
        """A new one of the same loss, with these batches."""
        other = MeanLoss(self.loss)
        other.parts = parts
        return other

    def scores(self) -> dict[str, float]:
        """Means by name, "loss" first.

        Raises:
            TrainingError: nothing has been added.
        """
        count = sum(weight for _, weight in self.parts)
        if not count:
            raise TrainingError("no batch has been counted, so there is no mean loss.")
        totals: dict[str, float] = {}
        for terms, weight in self.parts:
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value.item() * weight
        return {name: total / count for name, total in totals.items()}

    def reset(self) -> None:
        """Forget every batch."""
        self.parts = []

    def to(self, device: torch.device | str) -> MeanLoss:
        """Move the kept scalars; gives itself."""
        self.parts = [
            ({name: value.to(device) for name, value in terms.items()}, weight)
            for terms, weight in self.parts
        ]
        return self
