"""Raw images in, masks or probabilities of their own height and width out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray
from torch import nn

from transferseg.errors import TrainingError, TransfersegError, describe
from transferseg.spec import ModelSpec
from transferseg.training.inference import Inference, PredictOptions
from transferseg.training.raw import ImageLike
from transferseg.training.views import Seen, Viewer, probabilities

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Whole numbers: (H, W) class indices, or (H, W, K) 0 and 1.
Mask: TypeAlias = NDArray[np.unsignedinteger[Any]]
Chances: TypeAlias = NDArray[np.float32]
One = TypeVar("One", bound=ImageLike)
R = TypeVar("R")


class Postprocess(Protocol):
    """What changes a predicted mask, such as `partial(largest_components, k=2)`."""

    def __call__(self, mask: Mask, /) -> NDArray[Any]:
        """A mask of the same shape; whole numbers or bool."""
        ...


@overload
def predict(
    model: nn.Module,
    image: ImageLike,
    *,
    postprocess: Postprocess | None = None,
    **options: Unpack[PredictOptions],
) -> Mask: ...
@overload
def predict(
    model: nn.Module,
    image: list[One] | tuple[One, ...],
    *,
    postprocess: Postprocess | None = None,
    **options: Unpack[PredictOptions],
) -> list[Mask]: ...
@overload
def predict(
    model: nn.Module,
    image: Iterator[ImageLike],
    *,
    postprocess: Postprocess | None = None,
    **options: Unpack[PredictOptions],
) -> Iterator[Mask]: ...
def predict(
    model: nn.Module,
    image: ImageLike | Iterable[ImageLike],
    *,
    postprocess: Postprocess | None = None,
    **options: Any,
) -> Mask | list[Mask] | Iterator[Mask]:
    """The mask of a raw image, or of many, each in its own height and width.

    An image is normalised as the model's spec says, goes through the model whole or window by
    window, and the decision is made on logits of the image's own size. Every submodule gets its own
    training mode back.

    Args:
        model: a segmentation model with its `.spec`.
        image: a path, an array (H, W) or (H, W, C) of uint8, uint16 or float in 0..1, or a PIL
            image; grey or colour, it is brought to the model's channels. A list or tuple of these
            gives a list; an iterator gives an iterator, which reads and holds `2 * batch_size`
            images at most, and of those that go by windows one. Whole images of one size share
            batches.
        postprocess: changes each mask before it is returned: `largest_components`, `remove_small`,
            `fill_holes`, or anything that takes a mask and gives one of its shape.
        **options: what follows, by name.
        size: height and width (one number: both) at which the model sees the image, resized as
            training images are; its own size when not given. The logits are resized back,
            bilinearly.
        window: height and width (one number: both) of the windows by which a larger image goes
            through the model, after `size`; the last window of a row or column is shifted inside.
            Logits of windows that overlap are averaged, with the weights that `blend` says. When
            not given, images go through whole.
        overlap: the part of a window that its neighbour covers too; 0.5.
        blend: "gaussian" (a pixel counts the more, the nearer it is to its window's centre) or
            "constant".
        batch_size: images, or windows, in one forward pass; 4.
        stitch: the device on which windows are put together, "cpu" where the logits of a whole
            image do not fit beside the model; the model's when not given.
        flips: reflections in which each image is seen too: "horizontal" (left to right),
            "vertical", "both" (half a turn), or several of them. The probabilities of all views are
            averaged, and the decision is made on their mean.
        swap: pairs of classes that change places in a left-right reflection; by default those that
            differ by the word left or right alone, () for none.
        scales: factors of the size at which each image is seen, with every flip; (1.0,).
        precision: "fp32", or "bf16" or "fp16" by autocast; logits are float32 in any case. A model
            whose weights are in another dtype gets its images in that one.
        channels_last: lays model and images out channels last, which is faster on many devices; the
            model stays so.
        device: the model is moved there first; it stays where it is when not given.

    Returns:
        binary: (H, W) uint8, 1 where the probability is above `spec.threshold`;
        multiclass: (H, W) index of the likeliest class, in the smallest unsigned dtype;
        multilabel: (H, W, K) uint8, each class as in binary.

    Raises:
        DataError: an image that cannot be read or is none of these, an option out of its range, a
            class with a side and no counterpart under a left-right flip.
        TrainingError: a model without a spec, or one that gives NaN, as float16 may where it
            overflows; an unknown option, a `postprocess` that gives no mask of the same shape or
            values that its dtype does not hold.

    Example:
        >>> from transferseg.spec import InputSpec
        >>> model = nn.Conv2d(1, 1, 1)
        >>> model.spec = ModelSpec("unet", "none", ["lesion"], "binary", input=InputSpec(1))
        >>> _ = nn.init.constant_(model.weight, 10.0), nn.init.constant_(model.bias, -5.0)
        >>> image = np.array([[0, 255, 0], [255, 255, 0]], dtype=np.uint8)
        >>> predict(model, image)
        array([[0, 1, 0],
               [1, 1, 0]], dtype=uint8)
        >>> len(predict(model, [image, image], window=2, flips=("horizontal", "vertical")))
        2
    """
    viewer = Viewer(model, Inference.of(options))
    return _each(viewer, image, partial(mask_of, spec=viewer.spec, postprocess=postprocess))


@overload
def predict_probabilities(
    model: nn.Module, image: ImageLike, **options: Unpack[PredictOptions]
) -> Chances: ...
@overload
def predict_probabilities(
    model: nn.Module, image: list[One] | tuple[One, ...], **options: Unpack[PredictOptions]
) -> list[Chances]: ...
@overload
def predict_probabilities(
    model: nn.Module, image: Iterator[ImageLike], **options: Unpack[PredictOptions]
) -> Iterator[Chances]: ...
def predict_probabilities(
    model: nn.Module, image: ImageLike | Iterable[ImageLike], **options: Any
) -> Chances | list[Chances] | Iterator[Chances]:
    """What `predict` decides on: probabilities in the image's own height and width.

    Args:
        model: see `predict`.
        image: one or many: see `predict`.
        **options: those of `predict`, without `postprocess`.

    Returns:
        float32 in 0..1; binary: (H, W); multiclass: (H, W, K), adding up to 1; multilabel:
        (H, W, K), each class by itself. Many images as in `predict`.

    Raises:
        DataError: see `predict`.
        TrainingError: see `predict`.

    Example:
        >>> from transferseg.spec import InputSpec
        >>> model = nn.Conv2d(1, 2, 1)
        >>> model.spec = ModelSpec("unet", "none", ["no", "yes"], input=InputSpec(1))
        >>> predict_probabilities(model, np.zeros((2, 3), dtype=np.uint8)).shape
        (2, 3, 2)
    """
    viewer = Viewer(model, Inference.of(options))
    return _each(viewer, image, partial(_chances, spec=viewer.spec))


def _each(
    viewer: Viewer, image: ImageLike | Iterable[ImageLike], finish: Callable[[Seen], R]
) -> R | list[R] | Iterator[R]:
    """One result, a list of them, or an iterator, as the images come."""
    if isinstance(image, list | tuple):
        return list(_finished(viewer, image, finish))
    if isinstance(image, Iterator):
        return _finished(viewer, image, finish)
    (outcome,) = viewer.outcomes([cast("ImageLike", image)])
    if isinstance(outcome, TransfersegError):
        raise outcome
    return finish(outcome)


def _finished(
    viewer: Viewer, images: Iterable[ImageLike], finish: Callable[[Seen], R]
) -> Iterator[R]:
    for number, outcome in enumerate(viewer.outcomes(images)):
        if isinstance(outcome, TransfersegError):
            raise type(outcome)(f"image {number} (counted from 0): {outcome}") from outcome
        yield finish(outcome)


def mask_of(seen: Seen, *, spec: ModelSpec, postprocess: Postprocess | None = None) -> Mask:
    """The decision of one image, as `predict` returns it."""
    if spec.mode == "multiclass":
        smallest = np.min_scalar_type(len(spec.classes) - 1)
        mask = cast("Mask", seen.values.argmax(dim=0).cpu().numpy().astype(smallest))
    else:
        chances = seen.values if seen.probabilities else seen.values.sigmoid()
        mask = _in_form((chances > spec.threshold).byte().cpu().numpy(), spec)
    if postprocess is None:
        return mask
    changed = np.asarray(postprocess(mask))
    if changed.shape != mask.shape or changed.dtype.kind not in "bui":
        raise TrainingError(
            f"postprocess must give a mask of the shape {mask.shape} in whole numbers or bool, got "
            f"{describe(changed)}."
        )
    if changed.min() < 0 or changed.max() > np.iinfo(mask.dtype).max:
        raise TrainingError(
            f"postprocess must give values that fit into {mask.dtype}, got {changed.min()} to "
            f"{changed.max()}."
        )
    return cast("Mask", changed.astype(mask.dtype, copy=False))


def _chances(seen: Seen, *, spec: ModelSpec) -> Chances:
    values = seen.values if seen.probabilities else probabilities(seen.values, spec.mode)
    return _in_form(values.cpu().numpy(), spec)


def _in_form(planes: NDArray[Any], spec: ModelSpec) -> NDArray[Any]:
    """(H, W) of a binary model's one plane, (H, W, K) else."""
    return np.ascontiguousarray(planes[0] if spec.mode == "binary" else planes.transpose(1, 2, 0))
