"""What lesions and surfaces share: whole masks on the CPU, image by image, then a row of each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferseg.errors import SpecError, describe
from transferseg.metrics.counts import SegmentationCounts
from transferseg.metrics.rows import ImageRows
from transferseg.metrics.scores import refuse_labels
from transferseg.types import TargetMode


class ObjectRows(ImageRows):
    """Rows that need to see the masks of an image as a whole, in two or three dimensions.

    The masks are read on the CPU (scipy), so that each update waits for the device: for evaluation,
    not for every training step. A subclass computes the row of one image.

    Args:
        classes: names in the order of the logits' channels, or their number.
        mode: "binary", "multiclass" or "multilabel"; the masks of each class are read alone.
        threshold: binary and multilabel: the probability above which a pixel is foreground.
        ignore_index: pixels with this target value are background in both masks.

    Raises:
        SpecError: an unknown mode, classes that do not fit it, a threshold outside 0..1.
    """

    def __init__(
        self,
        classes: int | Sequence[str],
        *,
        mode: TargetMode,
        threshold: float,
        ignore_index: int | None,
    ) -> None:
        super().__init__()
        like = SegmentationCounts(
            classes, mode=mode, threshold=threshold, ignore_index=ignore_index
        )
        self.classes, self.mode, self._logit = like.classes, like.mode, like.logit
        self.threshold, self.ignore_index = threshold, ignore_index

    def configuration(self) -> dict[str, object]:
        """Classes, mode, threshold and ignore_index."""
        names = ("classes", "mode", "threshold", "ignore_index")
        return {name: getattr(self, name) for name in names}

    @abstractmethod
    def image_row(self, prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[Any]:
        """The row of one image, from its masks (classes, [D,] H, W)."""

    @torch.no_grad()
    def count(self, logits: Tensor, target: Tensor) -> Tensor:
        """The rows of one batch, without adding them; on the CPU.

        Args:
            logits: raw scores, (B, K, H, W) or (B, K, D, H, W), any float dtype.
            target: multiclass: class indices (B, [D,] H, W), integers in 0..K-1 or `ignore_index`;
                binary and multilabel: the shape of the logits, any real dtype, foreground above
                0.5.

        Raises:
            SpecError: a shape or dtype that does not fit, naming both.
            DataError: labels outside the classes, naming the first image.
        """
        pair = f"got logits {describe(logits)} and target {describe(target)}."
        if not logits.is_floating_point():
            raise SpecError(f"logits are of a floating dtype (`update`), {pair}")
        if logits.ndim not in (4, 5) or logits.shape[1] != len(self.classes):
            raise SpecError(f"logits must be (B, {len(self.classes)}, [D,] H, W), {pair}")
        if self.mode == "multiclass":
            return self._rows(logits.argmax(1), target)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self._rows(wide > self._logit, target)

    def _rows(self, hard: Tensor, target: Tensor) -> Tensor:
        """Of hard masks in the shape of the target."""
        pair = f"got a prediction {describe(hard)} and a target {describe(target)}."
        channels = self.mode != "multiclass"
        if hard.shape != target.shape or hard.ndim not in (3 + channels, 4 + channels):
            raise SpecError(f"both must have one shape that fits mode {self.mode!r}, {pair}")
        if channels and hard.shape[1] != len(self.classes):
            raise SpecError(f"there are {len(self.classes)} classes, {pair}")
        if not channels and (target.is_floating_point() or target.dtype is torch.bool):
            raise SpecError(f"target must be of an integer dtype in mode {self.mode!r}, {pair}")
        said, real = hard.cpu().numpy(), _wide(target).cpu().numpy()
        if not channels:
            self._check_labels(said, real)
        rows = [self._masks_row(*image) for image in zip(said, real, strict=True)]
        if not rows:
            return torch.zeros((0, *self.row_shape), dtype=self.row_dtype)
        return torch.from_numpy(np.stack(rows))

    def _counted(self, real: NDArray[Any]) -> NDArray[np.bool_]:
        if self.ignore_index is None:
            return np.ones(real.shape, bool)
        counted: NDArray[np.bool_] = real != self.ignore_index
        return counted

    def _check_labels(self, said: NDArray[Any], real: NDArray[Any]) -> None:
        """Of exclusive classes; both (B, [D,] H, W)."""
        number, counted = len(self.classes), self._counted(real)
        for what, labels in (("ground truth", real), ("prediction", said)):
            wrong = counted & ((labels < 0) | (labels >= number))
            refuse_labels(f"batch's {what}", np.array([some.any() for some in wrong], bool), number)

    def _masks_row(self, said: NDArray[Any], real: NDArray[Any]) -> NDArray[Any]:
        counted = self._counted(real)
        if self.mode != "multiclass":
            return self.image_row((said > 0) & counted, (real > 0.5) & counted)
        classes = np.arange(len(self.classes)).reshape(-1, *[1] * real.ndim)
        return self.image_row((said == classes) & counted, (real == classes) & counted)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count one batch: see `count`."""
        self.append(self.count(logits, target).to(self._device))

    @torch.no_grad()
    def update_masks(self, prediction: Tensor, target: Tensor) -> None:
        """Count one batch of hard masks, in the shape of the target; foreground above 0.

        Raises:
            SpecError: shapes that do not fit, or a floating prediction.
            DataError: labels outside the classes, naming the first image.
        """
        if prediction.is_floating_point():
            raise SpecError(f"masks are of an integer or bool dtype, got {describe(prediction)}.")
        self.append(self._rows(prediction, target).to(self._device))


def _wide(target: Tensor) -> Tensor:
    """In a dtype that NumPy has and that holds every `ignore_index`."""
    return target.float() if target.is_floating_point() else target.long()
