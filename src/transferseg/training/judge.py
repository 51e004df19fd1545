"""What is measured after an epoch, and the one number that decides which epoch is best."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from transferseg.errors import TrainingError, some, unknown_name
from transferseg.spec import ModelSpec
from transferseg.training.evaluate import MeanLoss, Metric
from transferseg.training.events import plain_number
from transferseg.training.targets import Loss
from transferseg.types import Target

#: The number that decides which epoch is best: a name among the scores, or a function of them.
ScoreLike: TypeAlias = str | Callable[[Any], float]
#: Names of scores that fall as a model gets better: losses, and of `transferseg.metrics` errors,
#: distances, false alarms and misses; perhaps a mean over classes, or of a class, which follows.
_FALLING = re.compile(
    r"(mean_)?(loss|l1|l2|ece|mce|brier|hd|hd95|assd|absolute_volume_difference"
    r"|false_positives_per_image|false_alarms|false_alarm_images|missed|missed_images)(_.*)?"
)

#: What is called of a metric in training.
_WAYS = ("update", "scores", "reset", "to")


def better(score: ScoreLike) -> Literal["max", "min"]:
    """Which way a score is better, by its name; "max" for a function and for unknown names.

    Example:
        >>> better("mean_dice"), better("mean_hd95"), better("assd_lung"), better("loss")
        ('max', 'min', 'min', 'min')
    """
    return "min" if isinstance(score, str) and _FALLING.fullmatch(score) else "max"


@dataclass(frozen=True)
class Judge:
    """What is measured after an epoch and what number is made of it."""

    metrics: dict[str, Metric[Any]]
    score: ScoreLike
    mode: Literal["max", "min"]

    @property
    def name(self) -> str:
        """What the score is, and which way it is better: it must not change within a run."""
        score: Any = getattr(self.score, "func", self.score)  # that of a functools.partial
        named = getattr(score, "__qualname__", type(score).__qualname__)
        what = score if isinstance(score, str) else named
        return f"{what} ({self.mode})"

    def read(self, results: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
        """The score, and the columns of the history."""
        scores, flat = results.get("scores"), flat_scores(results)
        if callable(self.score):
            value = self.score(results["loss"] if scores is None else scores)
        elif self.score in flat:
            value = flat[self.score]
        else:
            raise TrainingError(unknown_name("score", self.score, flat))
        return float(value), {f"validation_{name}": number for name, number in flat.items()}


def make_judge(
    metrics: Metric[Any] | None,
    score: ScoreLike | None,
    mode: Literal["max", "min"] | None,
    loss: Loss,
    validation: bool,
) -> Judge | None:
    """The judge that the options of `train` describe, None without validation.

    Raises:
        TrainingError: options without validation, metrics without a score, or what is no metric.
    """
    if not validation:
        given = {"metrics": metrics, "score": score, "mode": mode}
        names = [name for name, value in given.items() if value is not None]
        if names:
            raise TrainingError(f"{' and '.join(names)} without a validation loader to measure on.")
        return None
    check_metric(metrics)
    if metrics is not None and score is None:
        raise TrainingError(
            "say which score decides about the best epoch: score='mean_dice', another name among "
            "the metrics' scores, score='loss', or a function of the scores."
        )
    measured: dict[str, Metric[Any]] = {} if metrics is None else {"scores": metrics}
    score = score or "loss"
    return Judge({**measured, "loss": MeanLoss(loss)}, score, mode or better(score))


def check_metric(metrics: Any) -> None:  # noqa: ANN401 - a caller's value
    """Refuse what is no metric: nothing would be called of it before the first epoch is over.

    Raises:
        TrainingError: a class, several metrics, or anything else.

    Example:
        >>> check_metric({"loss": MeanLoss(nn.functional.mse_loss)})
        Traceback (most recent call last):
        transferseg.errors.TrainingError: metrics must be one metric, made as ... got a dict. ...
    """
    fits = all(callable(getattr(metrics, name, None)) for name in _WAYS)
    if metrics is None or (fits and not isinstance(metrics, type)):
        return
    given = (
        f"the class {metrics.__name__}"
        if isinstance(metrics, type)
        else f"a {type(metrics).__name__}"
    )
    raise TrainingError(
        f"metrics must be one metric, made as SegmentationCounts(classes, mode=...) is, with "
        f"{some(_WAYS)}; got {given}. Several at once: a loop of `fit` and `evaluate`."
    )


def check_score(judge: Judge | None, model: nn.Module, target: Target) -> None:
    """Refuse the name of a score that the metrics do not have, before anything is trained.

    Which names they have is seen from a few pixels of every class. A metric that cannot count
    those, and the terms of a loss, which are known when it is called, are left to the first
    evaluation.

    Args:
        judge: of the training, if it has one.
        model: its spec says what is counted.
        target: what is counted.

    Raises:
        TrainingError: there is no such score.

    Example:
        >>> from transferseg.metrics import SegmentationCounts
        >>> model = nn.Conv2d(1, 1, 1)
        >>> model.spec = ModelSpec("unet", "none", ["lesion"], "binary")
        >>> counts = SegmentationCounts(["lesion"], mode="binary")
        >>> judge = make_judge(counts, "mean_dise", None, nn.functional.mse_loss, True)
        >>> check_score(judge, model, "mask")
        Traceback (most recent call last):
        transferseg.errors.TrainingError: unknown score 'mean_dise': ... Did you mean 'mean_dice'...
    """
    spec = getattr(model, "spec", None)
    if judge is None or callable(judge.score) or not isinstance(spec, ModelSpec):
        return
    terms = getattr(getattr(judge.metrics["loss"], "loss", None), "terms", None)
    name = str(judge.score)
    if name == "loss" or (callable(terms) and name.startswith("loss_")):
        return
    known = _names(judge.metrics["scores"], spec, target) if "scores" in judge.metrics else []
    if known is not None and name not in known:
        raise TrainingError(unknown_name("score", name, [*known, "loss"]))


def _names(metric: Metric[Any], spec: ModelSpec, target: Target) -> list[str] | None:
    """The scores of a metric by name, None if it must see more for them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = copy.copy(metric)
            trial.reset()
            trial.to("cpu")
            trial.update(*_every_class(spec, target))
            return list(flat_numbers(trial.scores()))
    except Exception:  # of anybody's metric: it is called as it is meant to be in the evaluation
        return None


def _every_class(spec: ModelSpec, target: Target) -> tuple[Tensor, Tensor]:
    """Logits of zero and a target in which every class is there and is absent."""
    classes, exclusive = len(spec.classes), spec.mode == "multiclass"
    if target == "image":
        image = torch.zeros(1, spec.input.channels, 8, 8)
        return image, image
    if target == "label":
        label = torch.eye(classes) if exclusive else torch.tensor([[0.0], [1.0]])
        label = label.expand(-1, classes).contiguous()
        return torch.zeros_like(label), label
    side = max(8, math.ceil(math.sqrt(classes)))
    numbers = torch.arange(side * side).reshape(1, side, side)
    if exclusive:
        mask = numbers % classes
    else:
        mask = (numbers % 2)[:, None].expand(-1, classes, -1, -1).to(torch.uint8)
    return torch.zeros(1, classes, side, side), mask


def flat_scores(results: Mapping[str, Any]) -> dict[str, Any]:
    """Scores ("scores", if measured) and the loss with its terms ("loss") by one name each.

    The loss's terms have names of their own: its "dice" is no score, and falls as that rises.
    """
    terms = {k if k == "loss" else f"loss_{k}": v for k, v in results["loss"].items()}
    return {**flat_numbers(results.get("scores")), **terms}


def flat_numbers(scores: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401
    """The numbers in nested scores, by names joined with underscores; NaN for undefined ones."""
    if hasattr(scores, "to_dict"):
        scores = scores.to_dict()
    if not isinstance(scores, Mapping):
        return {}
    flat: dict[str, Any] = {}
    for name, value in ((name, plain_number(value)) for name, value in scores.items()):
        if isinstance(value, Mapping):
            flat.update(flat_numbers(value, f"{prefix}{name}_"))
        elif value is None or isinstance(value, int | float):  # None: undefined, as JSON says it
            flat[f"{prefix}{name}"] = math.nan if value is None else value
    return flat
