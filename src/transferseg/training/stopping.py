"""When to stop: no better score for a number of evaluations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from transferseg.errors import TrainingError, unknown_name
from transferseg.training.plan import whole


@dataclass
class EarlyStopping:
    """Watch a score: is it the best so far, has it stopped improving?

    The best is the best, by however little. What keeps training going is an improvement by more
    than `minimum_delta` over the score of the last improvement. A NaN is neither. The whole state
    follows from the scores it has seen, so a resumed run shows it the former scores again.

    Attributes:
        patience: evaluations without improvement after which to stop, from 1; None never stops.
        minimum_delta: how much better a score must be to count, 0 or more, in the score's units.
        mode: "max" where higher scores are better, "min" where lower ones are.
        best: the best score so far, None before the first that is a number.
        best_count: which update gave it, counted from 1; 0 before.
        count: updates so far.

    Raises:
        TrainingError: a patience that is no whole number from 1, a delta that is none from 0, an
            unknown mode.

    Example:
        >>> stopping = EarlyStopping(patience=2)
        >>> [stopping.update(score) for score in (0.5, 0.6, 0.6, 0.4)]
        [True, True, False, False]
        >>> stopping.should_stop, stopping.best, stopping.best_count
        (True, 0.6, 2)
    """

    patience: int | None = None
    minimum_delta: float = 0.0
    mode: Literal["max", "min"] = "max"
    best: float | None = field(default=None, init=False)
    best_count: int = field(default=0, init=False)
    count: int = field(default=0, init=False)
    _reference: float | None = field(default=None, init=False, repr=False)
    _reference_count: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.patience is not None:
            self.patience = whole("patience", self.patience, 1)
        if not self.minimum_delta >= 0:  # written so that NaN fails too
            raise TrainingError(f"minimum_delta must be 0 or more, got {self.minimum_delta}.")
        if self.mode not in ("max", "min"):
            raise TrainingError(unknown_name("mode", self.mode, ("max", "min")))

    def update(self, score: float) -> bool:
        """Take the score of one more evaluation; True when it is the best so far."""
        self.count += 1
        if math.isnan(score):
            return False
        if self._reference is None or self._gain(score, self._reference) > self.minimum_delta:
            self._reference, self._reference_count = score, self.count
        if self.best is not None and not self._gain(score, self.best) > 0:  # NaN of infinities
            return False
        self.best, self.best_count = score, self.count
        return True

    def _gain(self, score: float, reference: float) -> float:
        return score - reference if self.mode == "max" else reference - score

    @property
    def should_stop(self) -> bool:
        """Whether `patience` evaluations have passed since the last improvement."""
        return self.patience is not None and self.count - self._reference_count >= self.patience
