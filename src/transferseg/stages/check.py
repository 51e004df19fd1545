"""What can go wrong in a stage is found with two of its images, before anything is trained."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import default_collate

from transferseg.data import PreparedDataset, Reader
from transferseg.models import freeze
from transferseg.models.base import SpecModel
from transferseg.stages.describe import describe_value, key_of
from transferseg.stages.stage import Stage
from transferseg.training.auxiliary import weight_of
from transferseg.training.evaluate import MeanLoss
from transferseg.training.judge import make_judge
from transferseg.training.modes import evaluation_mode
from transferseg.training.targets import check_first, pick
from transferseg.transfer import transfer_weights

#: Random generators and accelerate's state belong to the process: two threads would mix theirs.
ONE_AT_A_TIME = threading.Lock()


def check_stages(stages: Sequence[Stage]) -> dict[str, Exception]:
    """Build every model, move the weights as declared, and score two training images.

    Nothing is trained, and the weights are random: what is found is what cannot be built, does not
    fit or is not there: encoders, options, undeclared transfers, data without a mask or label,
    losses and scores of another name or shape.

    Args:
        stages: parents before children; parents that are not among them are built, not checked.

    Returns:
        Key of a stage -> what is wrong with it; empty when nothing is.
    """
    attempt = _Attempt()
    problems: dict[str, Exception] = {}
    with ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
        for stage in stages:
            try:
                attempt.stage(stage)
            except Exception as error:  # of the user's own task too: it is told, stage by stage
                problems[stage.key] = error
    return problems


class _Attempt:
    """Models by what they are, so that the seeds of a study share one."""

    def __init__(self) -> None:
        self.models: dict[str, SpecModel] = {}
        self.scored: set[str] = set()

    def stage(self, stage: Stage) -> None:
        kind, model = self.model(stage)
        if stage.parent is not None:
            source: SpecModel | Path = (
                self.model(stage.parent)[1]
                if isinstance(stage.parent, Stage)
                else Path(stage.parent)
            )
            transfer_weights(source, model, parts=tuple(stage.parts), **stage.transfer)
        weight_of(model, stage.training.auxiliary_weight)
        if stage.training.freeze or stage.training.unfreeze is not None:
            trial = copy.deepcopy(model)  # other stages share the model, and freeze nothing
            if stage.training.freeze:
                freeze(trial, *stage.training.freeze)
            if stage.training.unfreeze is not None:
                stage.training.unfreeze.apply(trial, 0)
        scored = key_of([kind, stage.data.describe()])
        if scored not in self.scored:
            _score_two(stage, stage.task.reader(stage.data.reader), model)
            self.scored.add(scored)

    def model(self, stage: Stage) -> tuple[str, SpecModel]:
        reader = stage.task.reader(stage.data.reader)
        kind = key_of(
            [
                describe_value(stage.task, what="task"), stage.model.describe(),
                list(reader.classes), reader.mode,
            ]
        )  # fmt: skip
        if kind not in self.models:
            model = stage.task.build(stage.model, reader, None)
            if stage.model.decoder_weights is not None:
                transfer_weights(stage.model.decoder_weights, model, parts=("decoder",))
            self.models[kind] = model
        return kind, self.models[kind]


def _score_two(stage: Stage, reader: Reader, model: SpecModel) -> None:
    """Two training images through model, loss and metrics, as `train` will use them."""
    data, task = stage.data, stage.task
    few = PreparedDataset(
        reader, data.parts["train"][:2], input=model.spec.input, size=data.size, seed=stage.seed
    )
    batch = default_collate([few[index] for index in range(len(few))])
    check_first(batch, model, task.target)
    loss, metrics = task.make_loss(model.spec), task.make_metrics(model.spec)
    judge = make_judge(metrics, *task.best(model.spec), loss, True)
    target = pick(batch, "image" if task.target == "image" else task.target)
    with evaluation_mode(model), torch.no_grad():
        output = model(pick(batch, "image"))
    mean = MeanLoss(loss)
    mean.update(output, target)
    results = {"loss": mean.scores()}
    if metrics is not None:
        metrics.update(output.float(), target)
        results["scores"] = metrics.scores()
    if judge is not None and (data.folds is not None or "validation" in data.parts):
        judge.read(results)
