"""Models and data sets of a few numbers, and a reference training loop."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from transferseg.data import PreparedDataset, RotatingKFold, Sample
from transferseg.spec import InputSpec, ModelSpec
from transferseg.training import History, TrainState, adamw, cosine, sgd, train_rotating

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


class Scripted(Accuracy):
    """Scores that are what the test wants, evaluation after evaluation."""

    def __init__(self, values):
        self.values, self.calls = values, 0
        super().__init__()

    def scores(self):
        self.calls += 1
        return {"quality": self.values[self.calls - 1]}


class Cohort:
    """A reader of random images of 6 x 6, three of every two patients; notes what is read."""

    classes, mode = ("lesion",), "binary"

    def __init__(self, count: int = 12, *, name: str = "", log: list | None = None) -> None:
        self.images = np.random.default_rng(1).random((count, 6, 6), np.float32)
        self.ids = tuple(f"s{k}" for k in range(count))
        self.groups = tuple(f"p{k * 2 // 3}" for k in range(count))
        self.name, self.log = name, [] if log is None else log

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        self.log.append((self.name, index))
        image = self.images[index]
        mask = (image > 0.5).astype(np.uint8)
        return Sample(image, mask, None, self.ids[index], self.groups[index])


def prepared(reader=None, *, augment=None, indices=None) -> PreparedDataset:
    reader = Cohort() if reader is None else reader
    return PreparedDataset(reader, indices, input=BINARY.input, size=None, augment=augment, seed=3)


def darker(image, mask, seed):
    """An augmentation that follows from its seed."""
    return image * np.float32(np.random.default_rng(seed).uniform(0.5, 1.0)), mask


class Stop(Exception):
    """Raised where a test cuts a run."""


def cut(patch, saves):
    """Stop at the save after so many."""
    save, count = TrainState.save, []

    def until(self, folder):
        if len(count) == saves:
            raise Stop
        count.append(1)
        save(self, folder)

    patch.setattr(TrainState, "save", until)


TIMES = {"seconds", "data_seconds", "images_per_second"}


def timeless(history):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in history.rows]


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(v, second[k]) for k, v in first.items())


def accelerator(**options) -> Accelerator:
    return Accelerator(cpu=True, **options)


def prepare(model=None, *, accumulate=1, optimizer=None, schedule=None):
    """A state of a small model without chance, to be trained by plain SGD at 0.1."""
    return TrainState.prepare(
        net(norm=False, dropout=0.0) if model is None else model,
        optimizer=partial(sgd, lr=0.1) if optimizer is None else optimizer,
        schedule=schedule,
        accelerator=accelerator(gradient_accumulation_steps=accumulate),
    )


#: What `rotate` uses: 12 images of 8 patients in three folds.
FOLDS = RotatingKFold(3, seed=4)
OPTIMIZER = partial(adamw, lr=0.05)


def rotate(model=None, *, epochs=2, data=None, validation=None, **options) -> History:
    given = {
        "folds": FOLDS,
        "batch_size": 2,
        "loss": TermsLoss(),
        "metrics": Accuracy(),
        "score": "accuracy",
        "optimizer": OPTIMIZER,
        "schedule": cosine(),
        # made only where none is given: every new one resets the accumulation of all others
        "accelerator": options.get("accelerator") or accelerator(),
        "progress": False,
        **options,
    }
    model = net() if model is None else model
    data = prepared(augment=darker) if data is None else data
    validation = prepared() if validation is None else validation
    return train_rotating(model, data, validation, epochs=epochs, **given)
