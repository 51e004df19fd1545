"""Evaluation mode for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and give every submodule its own mode back afterwards.

    Each submodule's flag is set by itself: `train()` on the whole would wake frozen parts that were
    in evaluation mode inside a training model.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(1))
        >>> _ = model[1].eval()
        >>> with evaluation_mode(model):
        ...     print(model[0].training)
        False
        >>> model[0].training, model[1].training
        (True, False)
    """
    former = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in former.items():
            module.training = training
