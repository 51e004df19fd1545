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
from transferseg.metrics.tables import json_number


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
            output: the reconstruction, (B, ...), any float dtype; computed in float64.
            target: the image that the model was given, of the same shape, any float dtype.

        Raises:
            SpecError: shapes that differ, or an integer dtype, naming both.
        """
        pair = f"got {describe(output)} and {describe(target)}."
        if output.shape != target.shape or output.ndim < 2 or not output.shape[1:].numel():
            raise SpecError(f"output and target must have one shape (B, ...) with values, {pair}")
        if not (output.is_floating_point() and target.is_floating_point()):
            raise SpecError(f"output and target must be of a floating dtype, {pair}")
        rows = [_image_row(*image) for image in zip(output, target, strict=True)]
        if not rows:
            return torch.zeros((0, 3), dtype=self.row_dtype, device=output.device)
        return torch.stack(rows)

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
        weights = rows[:, 2] if scheme == "pooled" else torch.ones_like(rows[:, 2])
        # fsum is exact, so that the order of the images does not show; NaN and infinity stay
        l1, l2 = (
            math.fsum((rows[:, place] * weights).tolist()) / math.fsum(weights.tolist())
            for place in (0, 1)
        )
        return ReconstructionScores(l1=l1, l2=l2, scheme=scheme, images=len(rows))


def _image_row(output: Tensor, target: Tensor) -> Tensor:
    """L1, L2 and number of values of one image, float32 (3,).

    Each image alone and summed in float64, so that its row is the same in any batch and on any
    number of threads and processes: in float32 the last digits depend on how a sum is cut up.
    """
    # Apple's GPUs have no float64
    wide = torch.float32 if output.device.type == "mps" else torch.float64
    difference = output.to(wide) - target.to(wide)
    l1, l2 = difference.abs().mean(), difference.square().mean()
    return torch.stack([l1, l2, torch.full_like(l1, difference.numel())]).float()
