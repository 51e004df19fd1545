"""Images through a model: whole or by windows, in batches of one size, seen in several ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from os import PathLike
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transferseg.errors import DataError, SpecError, TrainingError, TransfersegError, describe
from transferseg.training.inference import (
    FLIP_DIMS,
    Inference,
    autocast,
    both_sides,
    device_of,
    dtype_of,
)
from transferseg.training.modes import evaluation_mode
from transferseg.training.raw import ImageLike, raw_image
from transferseg.training.targets import spec_of
from transferseg.training.windows import slide
from transferseg.types import Array, TargetMode

#: Among how many times `batch_size` images those of one size are looked for.
LOOK_AHEAD: Final = 2


class Seen(NamedTuple):
    """What a model says of one image, in the image's own height and width.

    Attributes:
        values: (K, H, W) float32, on the model's device.
        probabilities: whether they are the mean probabilities of several views, not logits.
    """

    values: Tensor
    probabilities: bool


#: What is wrong with an image alone, such as one too small for the model; others go on.
WRONG_IMAGE: Final = (DataError, SpecError)

#: What became of one image.
Outcome: TypeAlias = Seen | TransfersegError


class Viewer:
    """A model and how images go through it.

    Args:
        model: with its `.spec`; moved to `how.device` first, if there is one.
        how: the options.

    Raises:
        TrainingError: a model without a spec.
        DataError: a left-right flip where a class has a side and no counterpart.
    """

    def __init__(self, model: nn.Module, how: Inference) -> None:
        self.spec = spec_of(model)
        self._order = _reflected_order(self.spec.classes, how)
        if how.device is not None:
            model.to(how.device)
        if how.channels_last:
            model.to(memory_format=torch.channels_last)
        self.model, self.how = model, how

    def outcomes(self, images: Iterable[ImageLike]) -> Iterator[Outcome]:
        """What the model says of each image, in order; an image that is wrong gives its error.

        Images are read a few at a time, and whole ones of one size share batches.
        """
        source = map(self._prepared, images)
        while raws := list(self._few(source)):
            views = {place: seen for group in self._groups(raws) for place, seen in group}
            for place, raw in enumerate(raws):
                yield (
                    raw
                    if isinstance(raw, TransfersegError)
                    else self._outcome(views.pop(place), (raw.shape[0], raw.shape[1]))
                )

    def _few(
        self, source: Iterator[Array | TransfersegError]
    ) -> Iterator[Array | TransfersegError]:
        """Those that are held at one time: behind one that goes by windows no other is read."""
        for raw in islice(source, LOOK_AHEAD * self.how.batch_size):
            yield raw
            if isinstance(raw, np.ndarray) and self._slides((raw.shape[0], raw.shape[1])):
                return

    def _slides(self, own: tuple[int, int]) -> bool:
        """Whether an image of that size goes by windows at any scale, and so alone."""
        return self.how.slides(self.how.seen(own, max(self.how.scales)))

    def _prepared(self, image: ImageLike) -> Array | TransfersegError:
        """The image with the model's channels, or why it cannot be used."""
        from transferseg.data.images import to_model_channels, unit_scale

        try:
            raw = to_model_channels(raw_image(image), self.spec.input)
            unit_scale(raw)
        except DataError as error:
            named = isinstance(image, str | PathLike) and str(image) not in str(error)
            return DataError(f"{image}: {error}") if named else error
        return np.ascontiguousarray(raw)

    def _groups(
        self, raws: Sequence[Array | TransfersegError]
    ) -> Iterator[Iterator[tuple[int, Iterable[Tensor] | TransfersegError]]]:
        """The views of images of one size, by the image's place."""
        places: dict[tuple[int, int], list[int]] = {}
        for place, raw in enumerate(raws):
            if not isinstance(raw, TransfersegError):
                own = (raw.shape[0], raw.shape[1])
                places.setdefault(both_sides(self.how.size) or own, []).append(place)
        for size, same in places.items():
            step = 1 if self._slides(size) else self.how.batch_size
            for first in range(0, len(same), step):
                group = same[first : first + step]
                images = [raw for raw in (raws[i] for i in group) if isinstance(raw, np.ndarray)]
                yield zip(group, self._seen(images), strict=True)

    def _seen(self, raws: Sequence[Array]) -> list[Iterable[Tensor] | TransfersegError]:
        """The logits of each image's views, (K, h, w) each.

        An image alone is not looked at before its views are asked for, one after the other, so that
        of a large one there is never more than one view beside the mean.
        """
        if len(raws) == 1:
            return [(logits[0] for logits in self._views(raws))]
        try:
            views = list(self._views(raws))
        except WRONG_IMAGE as error:  # of one size, so that it is wrong for all
            return [error] * len(raws)
        return [[logits[place] for logits in views] for place in range(len(raws))]

    def _views(self, raws: Sequence[Array]) -> Iterator[Tensor]:
        """(B, K, h, w) for every scale and flip, turned back."""
        for scale in self.how.scales:
            pixels = self._pixels(raws, scale)
            yield self._logits(pixels)
            for dims in (FLIP_DIMS[flip] for flip in self.how.reflections):
                logits = self._logits(pixels.flip(dims)).flip(dims)
                yield logits[:, self._order] if -1 in dims else logits

    def _pixels(self, raws: Sequence[Array], scale: float) -> Tensor:
        """(B, C, h, w) as the model expects it, on the CPU."""
        from transferseg.data.images import normalise, resize_image

        size = self.how.seen((raws[0].shape[0], raws[0].shape[1]), scale)
        # Size before normalisation: the order in which training data are prepared.
        resized = (raw if raw.shape[:2] == size else resize_image(raw, size) for raw in raws)
        planes = [normalise(raw, self.spec.input) for raw in resized]
        return torch.from_numpy(planes[0][None] if len(planes) == 1 else np.stack(planes))

    def _logits(self, pixels: Tensor) -> Tensor:
        """(B, K, h, w) float32, by windows where the image is larger than they are."""
        window = both_sides(self.how.window)
        how = self.how
        with evaluation_mode(self.model), torch.inference_mode():
            if window is None or not how.slides((pixels.shape[-2], pixels.shape[-1])):
                return self._forward(pixels)
            whole = [
                slide(
                    self._forward, image, window=window, overlap=how.overlap, blend=how.blend,
                    batch_size=how.batch_size, stitch=how.stitch,
                )
                for image in pixels
            ]  # fmt: skip
            return whole[0][None] if len(whole) == 1 else torch.stack(whole)

    def _forward(self, pixels: Tensor) -> Tensor:
        device = device_of(self.model)
        pixels = pixels.to(device, dtype_of(self.model))
        if self.how.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with autocast(device, self.how.precision):
            logits = self.model(pixels)
        classes = len(self.spec.classes)
        if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[1] != classes:
            what = describe(logits) if isinstance(logits, Tensor) else type(logits).__name__
            raise TrainingError(
                f"{type(self.model).__name__} gives {what}; expected the logits of a segmentation "
                f"model, (B, {classes}, H, W)."
            )
        return logits.float()

    def _outcome(self, views: Iterable[Tensor] | TransfersegError, own: tuple[int, int]) -> Outcome:
        if isinstance(views, TransfersegError):
            return views
        try:
            seen = self._mean(views, own)
        except WRONG_IMAGE as error:
            return error
        if seen.values.amin().isnan():  # the least of numbers with NaN among them is NaN
            return TrainingError(
                "the model gives values that are not numbers (NaN), of which no mask can be made; "
                "where it computes in float16, which ends at 65504, give precision='bf16' or "
                "'fp32', else look at its weights."
            )
        return seen

    @torch.inference_mode()
    def _mean(self, views: Iterable[Tensor], own: tuple[int, int]) -> Seen:
        """The one view's logits at the image's own size, or the mean probabilities of several."""
        mean = torch.zeros(())
        for number, view in enumerate(views, start=1):
            logits = view
            if logits.shape[-2:] != own:
                logits = F.interpolate(logits[None], own, mode="bilinear", align_corners=False)[0]
            if self.how.views == 1:
                return Seen(logits, probabilities=False)
            chances = probabilities(logits, self.spec.mode)
            # A running mean: views that agree to the last bit give exactly what each of them gives.
            mean = mean.to(chances.device)
            mean = mean + (chances - mean) / number
        return Seen(mean, probabilities=True)


def probabilities(logits: Tensor, mode: TargetMode) -> Tensor:
    """Of (K, H, W) logits: adding up to 1 over exclusive classes, each by itself else.

    Example:
        >>> probabilities(torch.zeros(2, 1, 1), "multiclass").flatten().tolist()
        [0.5, 0.5]
    """
    return logits.softmax(dim=0) if mode == "multiclass" else logits.sigmoid()


def _reflected_order(classes: Sequence[str], how: Inference) -> list[int]:
    """Which channel of a reflected image belongs where: sides change places."""
    from transferseg.data.transforms import side_pairs

    order = list(range(len(classes)))
    if any(-1 in FLIP_DIMS[flip] for flip in how.reflections):
        for a, b in side_pairs(classes, how.swap):
            order[a], order[b] = b, a
    return order
