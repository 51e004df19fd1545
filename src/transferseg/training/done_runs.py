"""The runs of an epoch over folds that are done, kept so that a save within the epoch is enough."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from transferseg.errors import TrainingError
from transferseg.training import saves
from transferseg.training.atomic import recovered
from transferseg.training.events import EpochEvent
from transferseg.training.run import Run


@dataclass(frozen=True)
class DoneRuns:
    """What the runs of the epoch under way gave: in the state, and their weights in the folder.

    A metric may count in any way, so its counts cannot be saved. The weights that a run was scored
    with can: a resumed epoch counts the images again that were held out, and repeats no update.
    """

    run: Run
    of: int  # runs in an epoch

    def begin(self) -> list[EpochEvent]:
        """What the runs gave that are done of the epoch: of a new one none."""
        state = self.run.state
        if not state.under_way:
            state.under_way = {"validation_scheme": self.run.scheme, "runs": []}
        return [EpochEvent(**values) for values in state.under_way["runs"]]

    def add(self, event: EpochEvent) -> None:
        """One more run is done, and the model has the weights that it is scored with.

        Those of the last run are not needed: the next save is that of the whole epoch.
        """
        runs = self.run.state.under_way["runs"]
        runs.append(asdict(event))
        if self.run.save_every is not None and len(runs) < self.of:
            saves.save_model(self.run.state, self._place / str(len(runs)), replace=True)

    def load_weights(self, number: int) -> None:
        """Give the model the weights that a run was scored with; runs count from 1.

        Raises:
            TrainingError: they are gone.
        """
        folder = self._place / str(number)
        if not recovered(folder).is_dir():
            raise TrainingError(
                f"{folder} is gone: the run was saved in the middle of an epoch, and its scores "
                "need those weights; begin another folder."
            )
        saves.load_model(self.run.state, folder)

    def load_state(self) -> None:
        """Make the state again what was saved."""
        if self.run.folder is not None:
            self.run.state.load(self.run.folder / "last")

    def end(self) -> None:
        """The epoch is done."""
        self.run.state.under_way = {}

    def clear(self) -> None:
        """Remove the weights, unless a save in the middle of an epoch needs them."""
        state = self.run.state
        if self.run.folder is None or state.under_way or not state.accelerator.is_main_process:
            return
        shutil.rmtree(self._place, ignore_errors=True)

    @property
    def _place(self) -> Path:
        return (self.run.folder or Path()) / "runs"
