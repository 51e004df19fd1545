"""What every streaming metric is: one row of numbers an image, kept on the device of the data."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from transferseg.errors import SpecError, describe

R = TypeVar("R", bound="ImageRows")


class ImageRows(ABC):
    """Rows of numbers, one an image; merging, across batches or processes, is concatenation.

    Rows stay on the device of the data, and nothing is read back before `scores`, so that counting
    never waits for the device. A subclass says what a row holds (`row_shape`, `row_dtype`), what
    must be equal for two to be merged (`configuration`), and how rows become scores.

    Over several processes, rows can be gathered batch by batch, without accelerate's duplicates of
    the last batch, `counts.append(accelerator.gather_for_metrics(counts.count(logits, target)))`,
    or whole metrics can be added at the end: `sum(metrics)`.
    """

    #: dtype of the rows
    row_dtype: torch.dtype

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._device = torch.device("cpu")  # of the rows while there are none

    @property
    @abstractmethod
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""

    @abstractmethod
    def configuration(self) -> dict[str, object]:
        """What must be equal for two of a kind to be merged, by name."""

    @property
    def rows(self) -> Tensor:
        """All rows, (images, *row_shape), in the order in which they were counted.

        Where parts lie on several devices, on that of the last one.
        """
        if not self._parts:
            return torch.zeros((0, *self.row_shape), dtype=self.row_dtype, device=self._device)
        if len(self._parts) > 1:
            device = self._parts[-1].device  # loaded rows may lie elsewhere
            self._parts = [torch.cat([part.to(device) for part in self._parts])]
        return self._parts[0]

    def append(self, rows: Tensor) -> None:
        """Add rows that were counted elsewhere.

        Raises:
            SpecError: another shape or dtype than this metric's rows.
        """
        if rows.shape[1:] != self.row_shape or rows.dtype != self.row_dtype:
            expected = str(self.row_dtype).removeprefix("torch.")
            raise SpecError(
                f"rows must be (images, {', '.join(map(str, self.row_shape))}) {expected}, "
                f"got {describe(rows)}."
            )
        self._parts.append(rows.detach())

    @classmethod
    def from_rows(cls: type[R], rows: Tensor, *, like: R) -> R:
        """A metric of the given rows, configured as `like`, whose own rows are not taken.

        Raises:
            SpecError: another shape or dtype than the rows of `like`.
        """
        new = copy.copy(like)
        new._parts, new._device = [], rows.device
        new.append(rows)
        return new

    def __add__(self: R, other: R) -> R:
        """The rows of both, those of `self` first and on its device; neither is changed.

        Raises:
            SpecError: another kind of metric, or another configuration; it names what differs.
        """
        if type(other) is not type(self):
            raise SpecError(
                f"only metrics of one kind can be added, got {type(self).__name__} and "
                f"{type(other).__name__}."
            )
        mine, yours = self.configuration(), other.configuration()
        differing = [
            f"{name} ({mine[name]!r} and {yours[name]!r})"
            for name in mine
            if mine[name] != yours[name]
        ]
        if differing:
            raise SpecError(
                f"these {type(self).__name__} cannot be added, they differ in "
                f"{', '.join(differing)}; count both with one configuration."
            )
        rows = self.rows
        return self.from_rows(torch.cat([rows, other.rows.to(rows.device)]), like=self)

    def __radd__(self: R, other: int) -> R:
        """0 + metric, with which `sum(metrics)` begins.

        Raises:
            SpecError: another number than 0.
        """
        if other != 0:
            raise SpecError(
                f"only metrics of one kind can be added, got {other!r} and {type(self).__name__}."
            )
        return self.from_rows(self.rows, like=self)

    def reset(self) -> None:
        """Forget every image."""
        self._parts = []

    def to(self: R, device: torch.device | str) -> R:
        """Move the rows to a device; gives itself."""
        self._device = torch.device(device)
        self._parts = [part.to(device) for part in self._parts]
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The rows as the tensor "rows"; the configuration is the constructor's."""
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the rows of a state dict in place of the own ones.

        Raises:
            SpecError: other entries than "rows", or rows that do not fit.
        """
        if set(state) != {"rows"}:
            raise SpecError(f"a metric's state is the one tensor 'rows', got {sorted(state)}.")
        before, self._parts = self._parts, []
        try:
            self.append(state["rows"])
        except SpecError:
            self._parts = before
            raise

    def __repr__(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.configuration().items()]
        images = sum(len(part) for part in self._parts)
        return f"<{type(self).__name__} {', '.join(options)}: {images} images>"
