"""Models and data sets of a few numbers, and a reference training loop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from transferseg.spec import InputSpec, ModelSpec

BINARY = ModelSpec("unet", "none", ("lesion",), "binary", input=InputSpec(channels=1))


class Net(nn.Module):
    """Convolution, normalisation, dropout, convolution; one binary class."""

    def __init__(self, *, norm: bool = True, dropout: float = 0.5, pooled: bool = False) -> None:
        super().__init__()
        self.spec = BINARY
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)) if pooled else None
        self.last = nn.Conv2d(3, 1, 1)

    def forward(self, image):
        x = self.dropout(F.relu(self.norm(self.first(image))))
        if self.pool is not None:
            x = x + self.pool(x)
        return self.last(x)

    def save_pretrained(self, folder):
        from safetensors.torch import save_model

        save_model(self, f"{folder}/model.safetensors")


def net(seed: int = 0, **options) -> Net:
    torch.manual_seed(seed)
    return Net(**options)


def samples(count: int = 10, *, size: int = 6, seed: int = 1) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, size, size, generator=generator)
    return [
        {"image": x, "mask": (x > 0).to(torch.uint8), "id": f"s{i}", "group": f"g{i}"}
        for i, x in enumerate(images)
    ]


def loader(count: int = 10, *, batch: int = 2, shuffle: bool = True, **options) -> DataLoader:
    return DataLoader(samples(count), batch_size=batch, shuffle=shuffle, **options)


def bce(logits, target):
    return F.binary_cross_entropy_with_logits(logits, target.float())


class TermsLoss:
    def __call__(self, logits, target):
        return self.terms(logits, target)["loss"]

    def terms(self, logits, target):
        first, second = bce(logits, target), logits.square().mean()
        return {"loss": first + 0.1 * second, "bce": first.detach(), "square": second.detach()}


class Accuracy:
    """A stand-in for streaming counts."""

    def __init__(self) -> None:
        self.reset()

    def reset(self):
        self.right = torch.zeros((), dtype=torch.int64)
        self.all = torch.zeros((), dtype=torch.int64)

    def to(self, device):
        self.right, self.all = self.right.to(device), self.all.to(device)
        return self

    def update(self, logits, target):
        self.right += ((logits > 0) == (target > 0)).sum()
        self.all += target.numel()

    def __add__(self, other):
        both = Accuracy()
        both.right, both.all = self.right + other.right, self.all + other.all
        return both

    def scores(self):
        return {"accuracy": (self.right / self.all).item()}


def accelerator(**options) -> Accelerator:
    return Accelerator(cpu=True, **options)
