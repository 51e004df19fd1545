"""FSDP over two processes on a CPU: a training, its scores, its saves; part of `processes`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

import transferseg as ts
from tests.training.gradual_processes import GRADUAL, small
from tests.training.tiny import Accuracy, TermsLoss, loader, net
from transferseg.errors import CheckpointError, TrainingError
from transferseg.training import EpochEvent, TrainState, adamw, cosine, evaluate, fit, sgd
from transferseg.transfer.files import write_checkpoint


def sharded(version: int = 2, **options: Any) -> Accelerator:
    """An accelerator with FSDP, which accelerate gives to GPUs alone; torch's own runs on CPUs."""
    AcceleratorState._reset_state(False)
    GradientState._reset_state()
    everywhere = PartialState._shared_state
    everywhere["distributed_type"] = DistributedType.MULTI_CPU
    accelerator = Accelerator(cpu=True, **options)
    everywhere["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version, auto_wrap_policy="size_based_wrap", min_num_params=20
    )
    accelerator.state.distributed_type = DistributedType.FSDP
    return accelerator


def whole(state: TrainState) -> list[float]:
    """All weights, on the main process; nothing on the others."""
    values = state.accelerator.get_state_dict(state.model)
    return torch.cat([v.flatten().double() for v in values.values()]).tolist() if values else []


def as_one_process(batch: int) -> dict[str, Any]:
    """The training of `processes.main`, whose weights one process tells too; uneven scores."""
    accelerator = sharded()
    model = net(accelerator.process_index, norm=False, dropout=0.0)  # those of the first count
    state = TrainState.prepare(
        model, optimizer=partial(sgd, lr=0.1), schedule=cosine(), accelerator=accelerator
    )
    events = list(fit(state, loader(12, batch=batch, shuffle=False), loss=TermsLoss(), epochs=2))
    spread = [type(p).__name__ for p in state.unwrapped.parameters()]
    found = {
        "spread": spread,
        "losses": [e.loss for e in events if isinstance(e, EpochEvent)],
        "weights": whole(state),
    }
    for count in (1, 3, 9):  # batches of two: the second process has none, one, one less
        data, counts = loader(count, batch=2, shuffle=False), Accuracy()
        scores = evaluate(state.model, data, metrics=counts, accelerator=accelerator)
        found[f"scores of {count}"] = [scores["accuracy"], counts.all.item() // 36]
    return found


def follow(state: TrainState, *, stop: int | None = None, folder: Path | None = None) -> list:
    rows = []
    data = loader(10, batch=2)
    for event in fit(state, data, loss=TermsLoss(), epochs=3, clip_norm=0.5):
        if isinstance(event, EpochEvent):
            rows.append([event.loss, event.terms])
        if event.step == stop:
            state.save(folder)
            break
    return rows


def resumed(folder: Path) -> dict[str, Any]:
    """Accumulation, clipping, AdamW and dropout; saved in the middle of an epoch, and gone on."""

    def prepare(seed: int) -> TrainState:
        return TrainState.prepare(
            net(seed, norm=False),
            optimizer=partial(adamw, lr=0.05),
            schedule=cosine(),
            accelerator=sharded(gradient_accumulation_steps=2),
        )

    state = prepare(0)
    layout = state.layout()
    rows, weights = follow(state), whole(state)
    again = follow(prepare(0), stop=3, folder=folder / "sharded-save")
    state = prepare(1)
    state.load(folder / "sharded-save")
    again += follow(state)
    return {
        "layout": layout, "rows": rows, "rows again": again, "straight": weights,
        "resumed": whole(state),
    }  # fmt: skip


def trained(folder: Path, batch: int, *, keep: bool) -> dict[str, Any]:
    """`train` with a BatchNorm that learns; the best epoch in memory or in a folder."""
    model = net(dropout=0.0)
    history = ts.train(
        model, loader(12, batch=batch, shuffle=False), loader(9, batch=2, shuffle=False),
        loss=TermsLoss(), epochs=3, metrics=Accuracy(), score="accuracy", mode="min",
        optimizer=partial(sgd, lr=0.3), accelerator=sharded(), restore_best=True, progress=False,
        folder=folder / "sharded-train" if keep else None, save_every=2 if keep else None,
    )  # fmt: skip
    accelerator = sharded()
    restored = evaluate(
        model, loader(9, batch=2, shuffle=False), metrics=Accuracy(), accelerator=accelerator
    )
    return {"scores": [row["score"] for row in history.rows], "restored": restored["accuracy"]}


def refusals(folder: Path) -> list[str]:
    said = []
    model = net(norm=False)
    options: dict[str, Any] = {"optimizer": sgd, "accelerator": sharded(1)}
    try:
        TrainState.prepare(model, **options)
    except TrainingError as error:
        said.append(str(error))
    state = TrainState.prepare(model, optimizer=sgd, accelerator=sharded())
    try:
        write_checkpoint(folder / "never", state.unwrapped, {})
    except CheckpointError as error:
        said.append(str(error))
    return said


def gradual(batch: int) -> list[list[float]]:
    """The weights after each epoch, where the first layer begins to train in the second."""
    model = small(norm=False, dropout=0.0)
    state = TrainState.prepare(model, optimizer=partial(sgd, lr=0.1), accelerator=sharded())
    data, seen = loader(12, batch=batch, shuffle=False), []
    for event in fit(state, data, loss=TermsLoss(), epochs=2, unfreeze=GRADUAL):
        if isinstance(event, EpochEvent):
            seen.append(whole(state))
    return seen


def all_of_it(folder: Path, batch: int) -> dict[str, Any]:
    return {
        "as one": as_one_process(batch),
        "resumed": resumed(folder),
        "kept": trained(folder, batch, keep=True),
        "in memory": trained(folder, batch, keep=False),
        "refusals": refusals(folder),
        "gradual": gradual(batch),
    }
