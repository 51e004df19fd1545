"""The networks of kvasir.py, how each is trained, and what is counted of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

import transferseg as ts
from transferseg.metrics import SegmentationCounts

ENCODER = "mobilenetv2_035"
# Of the weights: TensorFlow's padding, its epsilon in batch norm, images from -1 to 1.
ARGUMENTS = {"pad_type": "same", "bn_eps": 1e-3}
INPUT = ts.InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SEED = 0


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
        size: side of the images in pixels.
        epochs: passes over the training images.
        batch_size: images an update.
        learning_rate: of AdamW, the highest.
        warmup: updates until it is reached; then a cosine down to 0.
        augment: whether images are reflected, turned, zoomed and recoloured.
        channels: of the decoder's blocks, deep to shallow.
    """

    size: int
    epochs: int
    batch_size: int
    learning_rate: float
    warmup: int
    augment: bool
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """A trained network, how it was trained, and how it did."""

    settings: Settings
    history: ts.training.History
    seconds: float  # of the processor, on one core
    counts: SegmentationCounts

    def scores(self) -> dict[str, float]:
        """IoU and Dice of the one class, pooled and as the mean over images."""
        return {
            f"{said} {name}": getattr(self.counts.scores(scheme), f"mean_{key}")
            for scheme, said in (("pooled", "pooled"), ("per_image", "per-image"))
            for name, key in (("IoU", "iou"), ("Dice", "dice"))
        }


def ours(architecture: str, weights: Path | None, settings: Settings) -> torch.nn.Module:
    """Our network; with weights, its feature maps are those of the weights' own model."""
    torch.manual_seed(SEED)
    model = ts.create_model(
        architecture, ENCODER, classes=["polyp"], input_spec=INPUT, weights=weights,
        encoder_options={"arguments": ARGUMENTS}, channels=settings.channels,
    )  # fmt: skip
    if weights is not None:
        check_features(model, weights)
    return model


def original(weights: Path) -> torch.nn.Module:
    """The model that the weights were written for."""
    model = timm.create_model(ENCODER, num_classes=0, **ARGUMENTS)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def check_features(model: torch.nn.Module, weights: Path) -> None:
    """The encoder's feature maps must equal the original's to the last bit."""
    image = torch.rand(1, 3, 97, 130, generator=torch.Generator().manual_seed(SEED)) * 2 - 1
    with ts.training.evaluation_mode(model), torch.inference_mode():
        expected = original(weights).forward_intermediates(image, intermediates_only=True)
        for mine, theirs in zip(model.encoder(image), expected, strict=True):
            if not torch.equal(mine, theirs):
                raise SystemExit("the encoder does not compute what its weights were made for")


def stock(weights: Path | None) -> torch.nn.Module:
    """segmentation-models-pytorch's U-Net as it comes, over the same encoder."""
    torch.manual_seed(SEED)
    model = smp.Unet(f"tu-{ENCODER}", encoder_weights=None, classes=1, **ARGUMENTS)
    if weights is not None:
        own = model.encoder.model.state_dict()
        given = original(weights).state_dict()
        model.encoder.model.load_state_dict({name: given[name] for name in own})
    # What the loop needs to know of any model: its classes and what its input is.
    model.spec = ts.ModelSpec("unet", ENCODER, ["polyp"], "binary", input=INPUT)
    return model


def peer_loss() -> Callable[[Tensor, Tensor], Tensor]:
    """The Dice of smp and torch's cross-entropy."""
    dice = smp.losses.DiceLoss("binary")
    return lambda logits, mask: (
        dice(logits, mask) + F.binary_cross_entropy_with_logits(logits, mask.float())
    )


def transforms() -> list[Any]:
    """What an endoscope does: any way up, nearer or farther."""
    import albumentations as A
    import cv2

    return [
        A.VerticalFlip(p=0.5),
        A.Affine(scale=(0.9, 1.15), rotate=(-20, 20), border_mode=cv2.BORDER_REFLECT_101, p=0.5),
    ]


def train(
    model: torch.nn.Module,
    sides: tuple[ts.data.Reader, ts.data.Reader],
    settings: Settings,
    *,
    loss: ts.training.Loss,
    channels_last: bool,
) -> Run:
    """Train for the whole budget, score the last epoch; nothing is chosen by the scores."""
    augmentation = ts.data.Augmentation(transforms, reflect=0.5)
    loaders = [
        DataLoader(
            ts.data.PreparedDataset(
                reader, input=INPUT, size=settings.size, seed=SEED, cache=True,
                augment=augmentation if settings.augment and index == 0 else None,
            ),
            batch_size=settings.batch_size, shuffle=index == 0,
        )
        for index, reader in enumerate(sides)
    ]  # fmt: skip
    counts = SegmentationCounts(["polyp"], mode="binary")
    begin = time.process_time()
    history = ts.train(
        model,
        *loaders,
        loss=loss,
        metrics=counts,
        score="mean_dice",
        optimizer=partial(ts.training.adamw, lr=settings.learning_rate),
        schedule=ts.training.cosine(warmup_steps=settings.warmup) if settings.warmup else None,
        epochs=settings.epochs,
        seed=SEED,
        channels_last=channels_last,
    )
    seconds = time.process_time() - begin
    return Run(settings, history, seconds, counted(model, sides[1], settings.size))


def counted(model: torch.nn.Module, reader: ts.data.Reader, size: int) -> SegmentationCounts:
    """Pixels right and wrong of every image at its own size, whatever the network saw."""
    counts = SegmentationCounts(["polyp"], mode="binary")
    for index in range(len(reader)):
        sample = reader[index]
        mask = ts.predict(model, sample.image, size=size)
        counts.update_masks(*(torch.from_numpy(m)[None, None] for m in (mask, sample.mask)))
    return counts
