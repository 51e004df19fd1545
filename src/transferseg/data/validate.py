"""Look at data before it is trained on: a whole reader, or one batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch

from transferseg.data.images import unit_scale
from transferseg.data.samples import Reader, Sample
from transferseg.errors import DataError, some, unknown_name
from transferseg.types import Array, Batch, Target, TargetMode


@dataclass(frozen=True)
class ValidationReport:
    """What a reader holds, and what is wrong with it.

    Attributes:
        images: number of images in the reader.
        checked: how many of them were read.
        groups: number of groups.
        sizes: number of images by (height, width).
        kinds: number of images by dtype and channels, as "uint8 x 3".
        classes: number of images by class in which it is present.
        empty_masks: ids of images whose mask has no foreground; for multiclass, which have nothing
            but class 0.
        problems: one text each, naming the image.
    """

    images: int
    checked: int
    groups: int
    sizes: Mapping[tuple[int, int], int]
    kinds: Mapping[str, int]
    classes: Mapping[str, int]
    empty_masks: tuple[str, ...]
    problems: tuple[str, ...]

    def raise_if_problems(self) -> None:
        """Raise a DataError that lists the problems, if there are any."""
        if self.problems:
            raise DataError(
                f"{len(self.problems)} problem(s) in {self.checked} images:\n"
                + "\n".join(self.problems)
            )

    def to_text(self) -> str:
        """The report as a few lines."""
        sides = [side for size in self.sizes for side in size]
        span = f"{min(sides)} to {max(sides)} px a side" if sides else "no sizes"
        return "\n".join(
            [
                f"{self.checked} of {self.images} images read, {self.groups} groups, {span}",
                "kinds: " + ", ".join(f"{name}: {count}" for name, count in self.kinds.items()),
                "classes: " + ", ".join(f"{name}: {count}" for name, count in self.classes.items()),
                f"empty masks: {some(self.empty_masks) or 'none'}",
                *(self.problems or ("problems: none",)),
            ]
        )


def validate(reader: Reader, *, sample: int | None = None) -> ValidationReport:
    """Read a reader's images and report what is there and what is wrong.

    Checked: every file can be read, image dtype and range, mask shape and values (class numbers or
    255), label values (0, 1 or NaN; one-hot for exclusive classes), unique ids, one group an image.

    Args:
        reader: the data.
        sample: how many images to read, evenly spread; None reads all.

    Returns:
        The report; `report.raise_if_problems()` makes an error of it.

    Raises:
        DataError: `sample` below 1. Problems of the data are listed, not raised.

    Example:
        >>> from transferseg.data.synthetic import SyntheticRadiographs
        >>> report = validate(SyntheticRadiographs(4, size=64))
        >>> report.images, dict(report.kinds), report.problems
        (4, {'uint8 x 1': 4}, ())
    """
    if sample is not None and sample < 1:
        raise DataError(f"sample must be 1 or more images, got {sample}.")
    count = len(reader) if sample is None else min(sample, len(reader))
    positions = np.unique(np.linspace(0, len(reader) - 1, count).round().astype(int)).tolist()
    sizes: Counter[tuple[int, int]] = Counter()
    kinds: Counter[str] = Counter()
    classes = dict.fromkeys(reader.classes, 0)
    background = set(reader.classes[:1]) if reader.mode == "multiclass" else set()
    empty, problems = [], _name_problems(reader)
    for position in positions:
        try:
            item = reader[position]
        except DataError as error:
            problems.append(f"{reader.ids[position]}: {error}")
            continue
        sizes[item.image.shape[0], item.image.shape[1]] += 1
        kinds[f"{item.image.dtype} x {item.image.shape[2] if item.image.ndim == 3 else 1}"] += 1
        try:
            present = _present(item, reader.classes, reader.mode)
        except DataError as error:
            problems.append(str(error))
            continue
        for name in present:
            classes[name] += 1
        if item.mask is not None and set(present) <= background:
            empty.append(item.id)
    return ValidationReport(
        len(reader), len(positions), len(set(reader.groups)), dict(sizes), dict(kinds), classes,
        tuple(empty), tuple(problems),
    )  # fmt: skip


def _name_problems(reader: Reader) -> list[str]:
    problems = []
    for name, values in (("ids", reader.ids), ("groups", reader.groups)):
        if len(values) != len(reader):
            problems.append(f"{len(values)} {name} for {len(reader)} images")
    twice = [name for name, count in Counter(reader.ids).items() if count > 1]
    if twice:
        problems.append(f"ids that stand for several images: {some(twice)}")
    return problems


def _present(item: Sample, classes: tuple[str, ...], mode: TargetMode) -> list[str]:
    """Classes found in a sample, after its values were checked."""
    unit_scale(item.image, item.id)
    if item.label is not None:
        _check_label(item.label, len(classes), mode, item.id)
    if item.mask is None:
        label = item.label if item.label is not None else np.zeros(0)
        return [name for name, value in zip(classes, label, strict=False) if value == 1]
    planes = item.mask.transpose(2, 0, 1)[None] if item.mask.ndim == 3 else item.mask[None]
    if mode == "binary" and planes.ndim == 3:
        planes = planes[None]
    _check_mask(planes, len(classes), mode, (item.id,))
    if mode == "multiclass":
        return [name for number, name in enumerate(classes) if (item.mask == number).any()]
    return [name for number, name in enumerate(classes) if (planes[0, number] == 1).any()]


def _check_label(label: Array, classes: int, mode: TargetMode, name: str) -> None:
    if label.shape != (classes,):
        raise DataError(f"{name}: label of shape {label.shape}; expected ({classes},).")
    values = label[~np.isnan(label.astype(np.float64))]
    wrong = values[(values != 0) & (values != 1)]
    if wrong.size:
        raise DataError(
            f"{name}: label value(s) {some(map(str, np.unique(wrong)))}; expected 0, 1 or NaN "
            "(missing)."
        )
    if mode == "multiclass" and values.size and (values.size < classes or values.sum() != 1):
        raise DataError(
            f"{name}: a label with {int(values.sum())} of {classes} exclusive classes set and "
            f"{classes - values.size} missing; expected one 1 and 0 else, or NaN throughout."
        )


def _check_mask(planes: Array, classes: int, mode: TargetMode, ids: tuple[str, ...]) -> None:
    """Values of (B, K, H, W), or (B, H, W) for multiclass."""
    channels = {} if mode == "multiclass" else {1: 1 if mode == "binary" else classes}
    shape = (len(ids), *channels.values())
    if planes.ndim != (3 if mode == "multiclass" else 4) or planes.shape[: len(shape)] != shape:
        wanted = ", ".join([*map(str, shape), "H", "W"])
        raise DataError(
            f"{some(ids)}: {mode} masks of shape {planes.shape}; expected ({wanted}) for "
            f"{classes} class(es)."
        )
    if not np.issubdtype(planes.dtype, np.integer):
        raise DataError(f"{some(ids)}: masks of dtype {planes.dtype}; expected whole numbers.")
    highest = classes - 1 if mode == "multiclass" else 1
    for name, plane in zip(ids, planes, strict=True):
        if plane.min() >= 0 and plane.max() <= highest:
            continue  # the usual case, in two passes
        wrong = plane[((plane < 0) | (plane > highest)) & (plane != 255)]
        if wrong.size:
            raise DataError(
                f"{name}: mask value(s) {some(map(str, np.unique(wrong)))} in {wrong.size} "
                f"pixel(s); expected 0..{highest}, or 255 for ignored pixels."
            )


def check_batch(
    batch: Batch, *, classes: int, mode: TargetMode, target: str, channels: int | None = None
) -> None:
    """Check the first batch of a training run before the first step.

    Args:
        batch: what the loader gave: see `transferseg.types.Batch`.
        classes: number of the model's classes.
        mode: how they relate.
        target: "mask", "label" or "image" (an autoencoder's own input).
        channels: of the images that the model takes; None for any.

    Raises:
        DataError: a missing key, a shape, dtype or value that does not fit (in mode "multiclass"
            also a known label row that is not one-hot); names the images.

    Example:
        >>> batch = {"image": torch.zeros(2, 1, 32, 32), "id": ["a", "b"],
        ...          "mask": torch.full((2, 32, 32), 7)}
        >>> check_batch(batch, classes=3, mode="multiclass", target="mask")
        Traceback (most recent call last):
        ...
        transferseg.errors.DataError: a: mask value(s) 7 in 1024 pixel(s); expected 0..2, or 255
        for ignored pixels.
    """
    if target not in get_args(Target):
        raise DataError(unknown_name("target", target, get_args(Target)))
    image = _tensor(batch, "image")
    if image.ndim != 4 or not torch.is_floating_point(image):
        raise DataError(
            f"batch['image'] is {image.dtype} {tuple(image.shape)}; expected floats (B, C, H, W)."
        )
    if channels is not None and image.shape[1] != channels:
        raise DataError(
            f"batch['image'] has {image.shape[1]} channel(s), the model takes {channels}. Give "
            "PreparedDataset input=model.spec.input, which turns grey into colour and colour into "
            f"grey, or build the model with in_channels={image.shape[1]}."
        )
    ids = tuple(map(str, batch.get("id", range(len(image)))))
    if len(ids) != len(image):
        raise DataError(f"batch['id'] has {len(ids)} entries for {len(image)} images.")
    finite = torch.isfinite(image).flatten(1).all(dim=1)
    if not bool(finite.all()):
        broken = [name for name, good in zip(ids, finite.tolist(), strict=True) if not good]
        raise DataError(f"{some(broken)}: the image has NaN or infinite values.")
    if target == "mask":
        mask = _tensor(batch, "mask")
        if mask.shape[-2:] != image.shape[-2:]:
            raise DataError(
                f"{some(ids)}: masks of {tuple(mask.shape[-2:])} do not fit images of "
                f"{tuple(image.shape[-2:])} (height, width)."
            )
        _check_mask(mask.cpu().numpy(), classes, mode, ids)
    elif target == "label":
        labels = _tensor(batch, "label").float().cpu().numpy()
        if labels.shape != (len(ids), classes):
            raise DataError(
                f"batch['label'] has shape {labels.shape}; expected ({len(ids)}, {classes}): one "
                "row an image, one column a class."
            )
        for name, label in zip(ids, labels, strict=True):
            _check_label(label, classes, mode, name)


def _tensor(batch: Mapping[str, Any], key: str) -> torch.Tensor:
    value = batch.get(key)
    if not isinstance(value, torch.Tensor):
        raise DataError(
            f"the batch has no tensor {key!r}; it has {some(batch)}. The reader's samples must "
            f"have what the task trains on."
        )
    return value
