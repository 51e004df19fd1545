"""What is measured after an epoch, and the one number that decides which epoch is best."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from transferseg.errors import TrainingError, unknown_name
from transferseg.training.evaluate import MeanLoss, Metric
from transferseg.training.targets import Loss

#: The number that decides which epoch is best: a name among the scores, or a function of them.
ScoreLike: TypeAlias = str | Callable[[Any], float]
#: Names of scores that fall as a model gets better: losses, and of `transferseg.metrics` errors,
#: distances, false alarms and misses; perhaps a mean over classes, or of a class, which follows.
_FALLING = re.compile(
    r"(mean_)?(loss|l1|l2|ece|mce|brier|hd|hd95|assd|absolute_volume_difference"
    r"|false_positives_per_image|false_alarms|false_alarm_images|missed|missed_images)(_.*)?"
)


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
        TrainingError: options without validation, or metrics without a score.
    """
    if not validation:
        given = {"metrics": metrics, "score": score, "mode": mode}
        names = [name for name, value in given.items() if value is not None]
        if names:
            raise TrainingError(f"{' and '.join(names)} without a validation loader to measure on.")
        return None
    if metrics is not None and score is None:
        raise TrainingError(
            "say which score decides about the best epoch: score='mean_dice', another name among "
            "the metrics' scores, score='loss', or a function of the scores."
        )
    measured: dict[str, Metric[Any]] = {} if metrics is None else {"scores": metrics}
    score = score or "loss"
    return Judge({**measured, "loss": MeanLoss(loss)}, score, mode or better(score))


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
    for name, value in scores.items():
        if isinstance(value, Mapping):
            flat.update(flat_numbers(value, f"{prefix}{name}_"))
        elif value is None or isinstance(value, int | float):  # None: undefined, as JSON says it
            flat[f"{prefix}{name}"] = math.nan if value is None else value
    return flat
