"""A small model with an auxiliary head, and its training over the processes there are."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

import transferseg as ts
from tests.training.tiny import TermsLoss, samples
from transferseg.models import Segmenter, freeze
from transferseg.training import StepEvent, TrainState, fit, sgd


def segmenter(seed: int = 0, *, norms: bool = True, **options) -> Segmenter:
    """FCN over a small ConvNeXt (its norms know no batch), auxiliary head and all."""
    torch.manual_seed(seed)
    auxiliary = options.pop("auxiliary", {"channels": 4, "dropout": options.get("dropout", 0.1)})
    model = ts.create_model(
        "fcn", "test_convnext", classes=["lesion"], in_channels=1, channels=4, output_stride=32,
        auxiliary=auxiliary, **options,
    )  # fmt: skip
    if not norms:
        freeze(model, *(n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)))
    return model


def images(count: int, *, batch: int, **options) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(samples(count, size=32), batch_size=batch, **options)


def gradients(model: Segmenter) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def own_gradients(batch: int, rank: int) -> dict[str, torch.Tensor]:
    """Of the samples of this process alone, written out: what it would have without the others."""
    model = segmenter(norms=False, dropout=0.0).train()
    rows = samples(4, size=32)[rank * batch : (rank + 1) * batch]
    image, mask = (torch.stack([row[name] for row in rows]) for name in ("image", "mask"))
    main, auxiliary = model(image, auxiliary=True)
    loss = TermsLoss()
    (loss(main, mask) + 0.4 * loss(auxiliary, mask)).backward()
    return gradients(model)


def spread(folder: Path, batch: int, accelerator: Accelerator) -> list:
    """Train over the processes there are; the gradients of the first update go into files."""
    model, found = segmenter(norms=False, dropout=0.0), {}
    optimizer = partial(sgd, lr=0.1)
    state = TrainState.prepare(model, optimizer=optimizer, accelerator=accelerator)

    def first_update(*_) -> None:
        found.setdefault("gradients", gradients(model))

    state.optimizer.optimizer.register_step_pre_hook(first_update)
    events = list(fit(state, images(4, batch=batch), loss=TermsLoss(), epochs=2))
    found["weights"] = model.state_dict()
    found["own"] = own_gradients(batch, accelerator.process_index)
    rank = f"{accelerator.num_processes}-{accelerator.process_index}"
    torch.save(found, folder / f"auxiliary-{rank}.pt")
    state.save(folder / f"auxiliary-{accelerator.num_processes}")
    return [[e.loss, e.terms] for e in events if not isinstance(e, StepEvent)]
