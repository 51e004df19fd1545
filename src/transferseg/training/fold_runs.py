"""The trainings of a cross-validation, one after the other over one state."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from transferseg.data.folds import Fold
from transferseg.data.samples import PreparedDataset
from transferseg.data.splits import split_by_group
from transferseg.training import saves
from transferseg.training.ema import EMA
from transferseg.training.evaluate import Metric, evaluate
from transferseg.training.events import StepEvent, event_row
from transferseg.training.folding import Growing, held_out_part, training_part
from transferseg.training.history import History
from transferseg.training.judge import Judge
from transferseg.training.loop import fit
from transferseg.training.progress import UpdateBar
from transferseg.training.run import Run, running
from transferseg.training.state import TrainState


class Beginning:
    """What a state was when it was prepared, kept to begin from again."""

    def __init__(self, state: TrainState) -> None:
        scaler = state.accelerator.scaler
        self._weights = {
            name: value.detach().cpu().clone()
            for name, value in state.unwrapped.state_dict().items()
        }
        self._optimizer = copy.deepcopy(state.optimizer.optimizer.state_dict())
        self._scaler = None if scaler is None else copy.deepcopy(scaler.state_dict())

    def restore(self, state: TrainState) -> None:
        """Make the state what `TrainState.prepare` gave."""
        state.unwrapped.load_state_dict(self._weights)
        state.optimizer.optimizer.load_state_dict(copy.deepcopy(self._optimizer))
        state.optimizer.zero_grad()
        accelerator = state.accelerator
        accelerator._custom_objects = [  # an average belongs to one fold
            each for each in accelerator._custom_objects if not isinstance(each, EMA)
        ]
        if self._scaler is not None:
            accelerator.scaler.load_state_dict(copy.deepcopy(self._scaler))
        accelerator.step = 0  # of batches within an accumulation
        for field in fields(TrainState):  # all counters, and the schedule's scheduler
            if field.name == "schedule":
                continue
            if field.default is not MISSING:
                setattr(state, field.name, field.default)
            elif field.default_factory is not MISSING:
                setattr(state, field.name, field.default_factory())
        set_seed(state.seed, device_specific=True)


@dataclass(frozen=True)
class FoldRuns:
    """The folds over one state."""

    state: TrainState
    data: PreparedDataset
    validation_data: PreparedDataset
    batch_size: int
    workers: int
    epochs: int
    share: float | None
    judge: Judge | None
    metrics: Mapping[str, Metric[Any]]
    place: Path | None
    progress: bool
    fit_options: Mapping[str, Any]
    run_options: Mapping[str, Any]

    def fold(self, fold: Fold, number: int, of: int) -> tuple[History, dict[str, Metric[Any]]]:
        """Train a fold, and count what it holds out."""
        folder = None if self.place is None else self.place / f"fold{number}"
        bar = UpdateBar(self.state, self.epochs, self.progress, unit=f"fold {number}/{of}, epoch")
        begun = running(
            self.state.unwrapped, self.judge, folder=folder, state=self.state, **self.run_options
        )
        with begun as run, closing(bar):
            if not run.stopping.should_stop:
                self._train(run, fold, bar)
        if folder is not None:
            saves.save_model(self.state, folder / "model", replace=True)
        return run.history(), self._counted(fold.validation, self.metrics)

    def _train(self, run: Run, fold: Fold, bar: UpdateBar) -> None:
        train, chosen = self._divided(fold)
        loader = training_part(self.data, train, batch_size=self.batch_size, workers=self.workers)
        events: Any = fit(run.state, loader, epochs=self.epochs, **self.fit_options)
        with closing(events):
            for event in events:
                if isinstance(event, StepEvent):
                    bar.step(event)
                    run.step(event)
                    continue
                row = event_row(event)
                del row["event"]  # all are epochs
                if self.judge is not None:
                    with run.scored_weights():
                        counts = self._counted(chosen, self.judge.metrics)
                    row = run.scored(row, {name: m.scores() for name, m in counts.items()})
                run.keep(row)
                bar.epoch(row)
                if run.stopping.should_stop:
                    return

    def _divided(self, fold: Fold) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The positions that train, and those that decide."""
        if self.share is None:
            return fold.train, ()
        groups = [self.data.groups[position] for position in fold.train]
        parts = split_by_group(
            groups, {"train": 1 - self.share, "validation": self.share}, seed=self.state.seed
        )
        train, chosen = (
            tuple(fold.train[k] for k in parts[name]) for name in ("train", "validation")
        )
        return train, chosen

    def _counted(
        self, positions: Sequence[int], metrics: Mapping[str, Metric[Any]]
    ) -> dict[str, Metric[Any]]:
        """New counts of some images, those of all processes."""
        counts = {name: copy.deepcopy(metric) for name, metric in metrics.items()}
        for metric in counts.values():
            metric.reset()
        loader = held_out_part(
            self.validation_data, positions, batch_size=self.batch_size, workers=self.workers
        )
        return evaluate(
            self.state.model,
            loader,
            metrics={name: Growing(metric) for name, metric in counts.items()},
            accelerator=self.state.accelerator,
            target=self.fit_options["target"],
            progress=self.progress,
        )
