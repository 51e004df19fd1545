"""A user's script: plain calls that know nothing of processes. `test_launch` starts it."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

import transferseg as ts
from tests.training.tiny import Accuracy, TermsLoss, loader, net
from transferseg.training import cosine, sgd


def main(folder: Path, batch: int) -> None:
    model = net(norm=False, dropout=0.0)
    optimizer = partial(sgd, lr=0.1)
    history = ts.train(
        model, loader(12, batch=batch, shuffle=False), loader(9, batch=2, shuffle=False),
        loss=TermsLoss(), epochs=2, metrics=Accuracy(), score="accuracy", optimizer=optimizer,
        schedule=cosine(), folder=folder / "run", save_every=2, progress=False,
    )  # fmt: skip
    state = ts.TrainState.prepare(net(norm=False, dropout=0.0), optimizer=optimizer)
    losses = []
    for event in ts.fit(state, loader(12, batch=batch, shuffle=False), loss=TermsLoss(), steps=4):
        losses.append(event.loss)
    state.save_pretrained(folder / "model")
    found = {
        "rows": [dict(row) for row in history.rows],
        "weights": [x for p in model.parameters() for x in p.detach().flatten().tolist()],
        "processes": state.accelerator.num_processes,
        "steps": state.step,
    }
    (folder / f"{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps(found))
    state.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
