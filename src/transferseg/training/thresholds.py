"""The probability above which a pixel is foreground, chosen on validation data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from transferseg.errors import DataError, describe, some
from transferseg.metrics.overlap import EmptyScore, Scheme
from transferseg.metrics.sweep import THRESHOLDS, ThresholdCounts
from transferseg.spec import ModelSpec
from transferseg.training.evaluate import evaluate
from transferseg.training.targets import Loader, spec_of

#: Probabilities as `predict_probabilities` gives them, and the mask of the same image.
Pair: TypeAlias = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold, and what speaks for it.

    Attributes:
        threshold: with the largest score, the lowest of several.
        value: that score, on the very images on which the threshold was chosen: no estimate of
            what it will be on others.
        score: which score, such as "mean_dice".
        scheme: "pooled" or "per_image".
        images: how many images it was chosen on.
        curve: threshold -> score, thresholds rising; NaN where the score is undefined.

    Example:
        >>> print(ThresholdChoice(0.35, 0.81, "mean_dice", "pooled", 100, {0.35: 0.81, 0.5: 0.79}))
        threshold 0.35: pooled mean_dice 0.8100 on the 100 images that it was chosen on
    """

    threshold: float
    value: float
    score: str
    scheme: Scheme
    images: int
    curve: Mapping[float, float]

    def __str__(self) -> str:
        return (
            f"threshold {self.threshold:g}: {self.scheme} {self.score} {self.value:.4f} on the "
            f"{self.images} images that it was chosen on"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, the curve as pairs."""
        return {**asdict(self), "curve": [list(pair) for pair in self.curve.items()]}


@overload
def choose_threshold(
    model: nn.Module,
    data: Loader,
    *,
    score: str = "mean_dice",
    scheme: Scheme = "pooled",
    thresholds: Sequence[float] = THRESHOLDS,
    classes: Sequence[str] | None = None,
    empty: EmptyScore = "exclude",
    ignore_index: int | None = 255,
    progress: bool = False,
) -> ThresholdChoice: ...
@overload
def choose_threshold(
    model: ModelSpec,
    data: Iterable[Pair],
    *,
    score: str = "mean_dice",
    scheme: Scheme = "pooled",
    thresholds: Sequence[float] = THRESHOLDS,
    classes: Sequence[str] | None = None,
    empty: EmptyScore = "exclude",
    ignore_index: int | None = 255,
) -> ThresholdChoice: ...
def choose_threshold(
    model: nn.Module | ModelSpec,
    data: Loader | Iterable[Pair],
    *,
    score: str = "mean_dice",
    scheme: Scheme = "pooled",
    thresholds: Sequence[float] = THRESHOLDS,
    classes: Sequence[str] | None = None,
    empty: EmptyScore = "exclude",
    ignore_index: int | None = 255,
    progress: bool = False,
) -> ThresholdChoice:
    """The threshold with the best score on validation data, in one pass over them.

    Give it images that the model was neither trained nor will be tested on: a threshold chosen on
    test images makes their scores too good. Nothing is changed; the model takes the threshold by
    `model.spec = model.spec.replace(threshold=choice.threshold)`, and `predict` and saved
    checkpoints then have it.

    Args:
        model: a model, scored on a loader as `evaluate` does it; or the spec of one, with
            probabilities that are there already.
        data: a loader of validation batches; with a spec, pairs of probabilities and mask, each
            (H, W) for binary and (H, W, K) for multilabel models. By pairs the threshold is chosen
            on what `predict` decides on: the image's own size, its windows and views.
        score: a number of `SegmentationScores`: "mean_dice", "mean_iou", ...
        scheme: "pooled" over all pixels, or "per_image": the mean over images.
        thresholds: to choose from, rising; 0.05, 0.10, ... 0.95.
        classes: those that the score is the mean of; all by default. There is one threshold for
            all classes.
        empty: what a class without ground truth scores: see `SegmentationScores`.
        ignore_index: pixels with this target value count nowhere; None for no such value.
        progress: show a progress bar over the loader.

    Raises:
        SpecError: a multiclass model, where the likeliest class wins and nothing is to be chosen;
            thresholds, a score, class or scheme that do not exist.
        DataError: no pairs, or one that does not fit; a score that is undefined at every threshold.
        TrainingError: an empty loader, a model without a spec.

    Example:
        >>> spec = ModelSpec("unet", "none", ["lesion"], "binary")
        >>> pairs = [(np.array([[0.1, 0.3, 0.6]]), np.array([[0, 1, 1]]))]
        >>> choice = choose_threshold(spec, pairs, thresholds=[0.05, 0.2, 0.5])
        >>> choice.threshold, choice.value, spec.replace(threshold=choice.threshold).threshold
        (0.2, 1.0, 0.2)
    """
    spec = model if isinstance(model, ModelSpec) else spec_of(model)
    counts = ThresholdCounts(
        spec.classes, mode=spec.mode, thresholds=thresholds, ignore_index=ignore_index
    )
    if isinstance(model, ModelSpec):
        for number, pair in enumerate(cast("Iterable[Pair]", data)):
            counts.update(*_tensors(pair, spec, number, ignore_index))
    else:
        evaluate(model, cast("Loader", data), metrics=counts, progress=progress)
    scores = counts.scores(scheme, classes=classes, empty=empty)
    best = scores.best(score)
    curve = scores.values(score)
    return ThresholdChoice(best, curve[best], score, scheme, len(counts.rows), curve)


def _tensors(
    pair: Pair, spec: ModelSpec, number: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Logits and target of one image, both (1, K, H, W)."""
    chances, mask = (np.asarray(part) for part in pair)
    shape = "(H, W)" if spec.mode == "binary" else f"(H, W, {len(spec.classes)})"
    fits = chances.ndim == 2 if spec.mode == "binary" else chances.shape[2:] == (len(spec.classes),)
    if not fits or chances.size == 0 or chances.shape != mask.shape or chances.dtype.kind != "f":
        raise DataError(
            f"pair {number} (counted from 0): expected probabilities {shape} and a mask of the "
            f"same shape, got {describe(chances)} and {describe(mask)}."
        )
    if not (chances.min() >= 0 and chances.max() <= 1):  # written so that NaN fails too
        raise DataError(
            f"pair {number} (counted from 0): probabilities must lie within 0..1, got "
            f"{chances.min():g}..{chances.max():g}."
        )
    known = [0, 1] if ignore_index is None else [0, 1, ignore_index]
    other = mask[~np.isin(mask, known)]
    if other.size:
        raise DataError(
            f"pair {number} (counted from 0): a mask must hold {some(map(str, known))} alone, got "
            f"{other[0]:g}."
        )
    planes = (torch.from_numpy(np.atleast_3d(part).transpose(2, 0, 1)) for part in (chances, mask))
    values, target = (plane[None] for plane in planes)
    return values.double().logit(), target
