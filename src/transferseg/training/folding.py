"""What training over folds has in common, with one model or with one for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler

from transferseg.data.samples import PreparedDataset
from transferseg.errors import TrainingError, some
from transferseg.training.evaluate import Metric
from transferseg.training.targets import Loader


def check_data(data: PreparedDataset, validation_data: PreparedDataset) -> None:
    """Check that two data sets have the same images, each once, and the second no augmentation.

    Raises:
        TrainingError: they do not fit each other.
    """
    if validation_data.augment is not None:
        raise TrainingError(
            "the validation data are augmented; prepare them without: PreparedDataset(..., "
            "augment=None)."
        )
    ids, others = ids_of(data), ids_of(validation_data)
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise TrainingError(
            f"image(s) {some(twice)} stand twice in the data, and would train and validate in one "
            "run; give each position once."
        )
    if ids != others:
        pairs = zip(ids, others, strict=False)
        at = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(others)))
        raise TrainingError(
            "the validation data must be the same images in the same order, but of "
            f"{len(ids)} and {len(others)} images those at position {at} are "
            f"{some(ids[at : at + 1]) or 'none'} and {some(others[at : at + 1]) or 'none'}."
        )


def ids_of(data: PreparedDataset) -> tuple[str, ...]:
    """The id of each item, without reading an image."""
    every = data.reader.ids
    return tuple(every[index] for index in data.indices)


def training_part(
    data: PreparedDataset, positions: Iterable[int], *, batch_size: int, workers: int
) -> Loader:
    """Shuffled batches of some positions of a data set, which keep the seeds of the whole."""
    sampler = SubsetRandomSampler(list(positions), generator=torch.Generator())
    return DataLoader(data, batch_size=batch_size, sampler=sampler, num_workers=workers)


def held_out_part(
    data: PreparedDataset, positions: Sequence[int], *, batch_size: int, workers: int
) -> Loader:
    """Batches of some positions of a data set, in order."""
    return DataLoader(Subset(data, positions), batch_size=batch_size, num_workers=workers)


class Growing:
    """A metric that `evaluate` adds to without resetting it, and whose scores are its counts."""

    def __init__(self, metric: Metric[Any]) -> None:
        self.metric = metric

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count one batch."""
        self.metric.update(logits, target)

    def __add__(self, other: Growing) -> Growing:
        """The counts of both."""
        return Growing(self.metric + other.metric)

    def scores(self) -> Metric[Any]:
        """The metric itself, with the counts of all processes."""
        return self.metric

    def reset(self) -> None:
        """Keep the counts of the folds before."""

    def to(self, device: torch.device | str) -> Growing:
        """Keep the counts on a device."""
        self.metric.to(device)
        return self
