"""What is measured after an epoch, and the one number that decides which epoch is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from transferseg.errors import TrainingError, unknown_name
from transferseg.training.evaluate import MeanLoss, Metric
from transferseg.training.targets import Loss

#: The number that decides which epoch is best: a name among the scores, or a function of them.
ScoreLike: TypeAlias = str | Callable[[Any], float]


@dataclass(frozen=True)
class Judge:
    """What is measured after an epoch and what number is made of it."""

    metrics: dict[str, Metric[Any]]
    score: ScoreLike
    mode: Literal["max", "min"]

    @property
    def name(self) -> str:
        """What the score is, and which way it is better: it must not change within a run."""
        what = self.score if isinstance(self.score, str) else self.score.__qualname__
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
    falls = isinstance(score, str) and (score == "loss" or score.startswith("loss_"))
    return Judge({**measured, "loss": MeanLoss(loss)}, score, mode or ("min" if falls else "max"))


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
