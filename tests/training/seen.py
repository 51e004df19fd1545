"""A small model with a spec, and what it gives for a raw image, by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from transferseg.spec import InputSpec, ModelSpec

GREY = InputSpec(channels=1, mean=(0.4,), std=(0.2,))
COLOUR = InputSpec(channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), value_range=(0, 2))


class Model(nn.Module):
    def __init__(self, classes=1, mode="binary", given=GREY, threshold=0.5):
        super().__init__()
        names = [f"c{i}" for i in range(classes)]
        self.spec = ModelSpec("unet", "none", names, mode, threshold=threshold, input=given)
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(given.channels)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Conv2d(given.channels, classes, 3, padding=1)

    def forward(self, image):
        return self.last(self.dropout(self.norm(image)))


def raw(dtype, channels, size=(33, 47)):
    shape = size if channels == 1 else (*size, channels)
    unit = np.random.default_rng(0).random(shape)
    full = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    return (unit * full).astype(dtype)


def by_hand(model, image):
    """Logits of a raw image, without the data room."""
    spec = model.spec.input
    full = {"uint8": 255.0, "uint16": 65535.0}.get(image.dtype.name, 1.0)
    values = image.astype(np.float64)
    if image.ndim == 3 and spec.channels == 1:
        values = values @ np.array([0.299, 0.587, 0.114])
        values = np.rint(values) if image.dtype.kind == "u" else values
    if image.ndim == 2 and spec.channels == 3:
        values = np.stack([values] * 3, axis=-1)
    low, high = spec.value_range
    values = low + values.reshape(*image.shape[:2], -1) / full * (high - low)
    values = (values - spec.mean) / spec.std
    model.eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(values.transpose(2, 0, 1)).float()[None])[0]
    model.train()
    return logits
