"""Streaming reconstruction errors of an autoencoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from transferseg.errors import DataError, SpecError, describe, unknown_name
from transferseg.metrics.overlap import Scheme
from transferseg.metrics.rows import ImageRows
from transferseg.metrics.tables import json_number, mean


@dataclass(frozen=True)
class ReconstructionScores:
    """Mean reconstruction errors.

    Attributes:
        l1: mean absolute difference, in units of the target.
        l2: mean squared difference, in squared units of the target.
        scheme: "per_image": the mean over images of each image's mean; "pooled": the mean over all
            values of all images. They differ only for images of several sizes.
        images: how many images were counted.

    Example:
        >>> print(ReconstructionScores(l1=0.1, l2=0.02, scheme="per_image", images=4))
        per image, the mean over 4 images: L1 0.1000, L2 0.0200
    """

    l1: float
    l2: float
    scheme: Scheme
    images: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; None where an error is not finite."""
        return {
            "scheme": self.scheme,
            "images": self.images,
            "l1": json_number(self.l1),
            "l2": json_number(self.l2),
        }

    def __str__(self) -> str:
        how = "pooled over" if self.scheme == "pooled" else "per image, the mean over"
        images = f"{self.images} image{'' if self.images == 1 else 's'}"
        return f"{how} {images}: L1 {self.l1:.4f}, L2 {self.l2:.4f}"


class ReconstructionError(ImageRows):
    """Mean absolute (L1) and mean squared (L2) difference of each image, streaming.

    Rows are float32 on the device of the data, (images, 3): L1, L2, number of values.

    Example:
        >>> error = ReconstructionError()
        >>> error.update(torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, 1, 4, 4))
        >>> print(error.scores())
        per image, the mean over 2 images: L1 0.5000, L2 0.2500
    """

    row_dtype = torch.float32

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(3,)."""
        return (3,)

    def configuration(self) -> dict[str, object]:
        """Nothing to configure."""
        return {}

    @torch.no_grad()
    def count(self, output: Tensor, target: Tensor) -> Tensor:
        """The rows of one batch, without adding them: float32 (B, 3).

        Args:
            output: the reconstruction, (B, ...), any float dtype; computed in at least float32.
            target: the image that the model was given, of the same shape, any float dtype.

        Raises:
            SpecError: shapes that differ, or an integer dtype, naming both.
        """
        pair = f"got {describe(output)} and {describe(target)}."
        if output.shape != target.shape or output.ndim < 2 or not output.shape[1:].numel():
            raise SpecError(f"output and target must have one shape (B, ...) with values, {pair}")
        if not (output.is_floating_point() and target.is_floating_point()):
            raise SpecError(f"output and target must be of a floating dtype, {pair}")
        wide = torch.promote_types(output.dtype, torch.float32)
        difference = (output.to(wide) - target.to(wide)).flatten(1)
        l1, l2 = difference.abs().mean(1), difference.square().mean(1)
        return torch.stack([l1, l2, torch.full_like(l1, difference.shape[1])], dim=1).float()

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count one batch: see `count`."""
        self.append(self.count(output, target))

    def scores(self, scheme: Scheme = "per_image") -> ReconstructionScores:
        """The mean errors of everything counted so far.

        Args:
            scheme: "per_image" (the mean over images) or "pooled" (over all values).

        Raises:
            SpecError: an unknown scheme.
            DataError: nothing counted.
        """
        if scheme not in get_args(Scheme):
            raise SpecError(unknown_name("scheme", str(scheme), get_args(Scheme)))
        rows = self.rows.cpu().double()
        if not len(rows):
            raise DataError("no image has been counted, so there is no error; an empty split?")
        if not bool(rows.isfinite().all()):
            l1, l2 = rows[:, :2].mean(0).tolist()  # NaN or infinite, as the outputs are
        elif scheme == "per_image":
            l1, l2 = mean(rows[:, 0].tolist()), mean(rows[:, 1].tolist())
        else:
            values = math.fsum(rows[:, 2].tolist())
            l1, l2 = (
                math.fsum((rows[:, place] * rows[:, 2]).tolist()) / values for place in (0, 1)
            )
        return ReconstructionScores(l1=l1, l2=l2, scheme=scheme, images=len(rows))
