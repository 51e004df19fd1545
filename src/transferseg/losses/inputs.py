"""What a loss is given: checked by shape and dtype, and brought to the precision of the sums."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from transferseg.errors import SpecError, describe, unknown_name
from transferseg.types import TargetMode

#: The names of the modes; looked up here, since torch.compile of torch 2.5 cannot follow it.
MODES: tuple[str, ...] = get_args(TargetMode)
#: Dtypes of which torch computes no largest value.
_WITHOUT_LARGEST = (torch.uint16, torch.uint32, torch.uint64)


def full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off on the tensor's device, so that no sum falls back to half precision.

    Not a generator, and not asked for while compiling: torch 2.5 can follow neither.
    """
    device = tensor.device.type
    compiled = torch.compiler.is_compiling() and device != "meta"
    if not compiled and not torch.amp.is_autocast_available(device):
        return nullcontext()
    off: AbstractContextManager[None] = torch.amp.autocast(device, enabled=False)
    return off


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or unchanged in float64.

    Example:
        >>> at_least_float32(torch.zeros(2, dtype=torch.float16)).dtype
        torch.float32
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_smoothing(label_smoothing: float) -> None:
    """Raise `SpecError` unless the smoothing lies between 0 and 1."""
    if not 0 <= label_smoothing <= 1:
        raise SpecError(f"label_smoothing must lie between 0 and 1, got {label_smoothing!r}.")


def may_hold(values: Tensor, wanted: int) -> bool:
    """False when no value can be `wanted`: told on the CPU alone, where reading waits for nobody.

    Example:
        >>> may_hold(torch.tensor([0.0, 1.0]), 255), may_hold(torch.tensor([0.0, 255.0]), 255)
        (False, True)
    """
    if torch.compiler.is_compiling() or values.device.type != "cpu" or not values.numel():
        return True
    if values.dtype in _WITHOUT_LARGEST:  # a rare target is not worth a copy
        return True
    # as Python numbers, since uint8 has no -100; `not`, since NaN hides the others
    if wanted > 1:
        return not values.amax().item() < wanted
    return not values.amin().item() > wanted


def check_choice(kind: str, name: str, options: Sequence[str]) -> None:
    """Raise `SpecError` when an option has an unknown value."""
    if name not in options:
        raise SpecError(unknown_name(kind, str(name), options))


def check_class_weight(mode: TargetMode, class_weight: Tensor | Sequence[float] | None) -> None:
    """Raise `SpecError` on weights of classes where there is one: its weighted mean is the mean."""
    if mode == "binary" and class_weight is not None:
        raise SpecError(
            "class_weight is for modes 'multiclass' and 'multilabel': mode 'binary' has one class."
        )


def check_ignored(ignore_index: object) -> None:
    """Raise `SpecError` unless it is an integer or None: NaN, for one, equals no target."""
    if ignore_index is not None and not isinstance(ignore_index, numbers.Integral):
        raise SpecError(f"ignore_index must be an integer or None, got {ignore_index!r}.")


def _pair(given: Tensor, target: Tensor) -> str:
    """Shapes and dtypes of both, for a message."""
    return f"got {describe(given)} and {describe(target)}."


def check_pair(name: str, given: Tensor, target: Tensor, *, ndim: int | None = None) -> None:
    """Raise `SpecError` unless both have one shape (of `ndim` axes) and the first is floating.

    Example:
        >>> check_pair("output", torch.zeros(2, 3), torch.zeros(2, 4))
        Traceback (most recent call last):
        transferseg.errors.SpecError: output and target must have one shape, got (2, 3) float32 and
        (2, 4) float32.
    """
    if given.shape != target.shape:
        raise SpecError(f"{name} and target must have one shape, {_pair(given, target)}")
    if ndim is not None and given.ndim != ndim:
        raise SpecError(f"{name} and target must have {ndim} axes, {_pair(given, target)}")
    if not given.is_floating_point():
        raise SpecError(f"{name} must be of a floating dtype, {_pair(given, target)}")
    if target.is_complex():
        raise SpecError(f"target must be real, {_pair(given, target)}")


def check_exclusive(logits: Tensor, target: Tensor) -> None:
    """Raise `SpecError` unless the pair is (B, K, H, W) floats and a target of exclusive classes.

    That is class indices (B, H, W), or probabilities (B, K, H, W) of a floating dtype.
    """
    soft = target.shape == logits.shape and target.is_floating_point()
    if logits.ndim != 4 or not (soft or target.shape == (logits.shape[0], *logits.shape[2:])):
        advice = (
            "Use target.squeeze(1)."
            if target.ndim == 4 and target.shape[1] == 1
            else "A one-hot target becomes indices with target.argmax(dim=1); probabilities "
            "(B, classes, H, W) are of a floating dtype."
        )
        raise SpecError(
            "mode 'multiclass' takes logits (B, classes, H, W) and class indices (B, H, W), "
            f"{_pair(logits, target)} {advice}"
        )
    if logits.shape[1] < 2:
        raise SpecError(
            f"mode 'multiclass' needs two or more classes, {_pair(logits, target)} Use mode "
            "'binary' for one."
        )
    if not logits.is_floating_point():
        raise SpecError(f"logits must be of a floating dtype, {_pair(logits, target)}")
    if soft:
        return
    if target.is_floating_point() or target.is_complex() or target.dtype is torch.bool:
        raise SpecError(
            f"class indices must be of an integer dtype, {_pair(logits, target)} Use target.long()."
        )


def check_segmentation(
    logits: Tensor, target: Tensor, mode: TargetMode, ignore_index: int | None = None
) -> None:
    """Raise `SpecError` unless shapes, dtypes and ignored value fit the mode; no value is read."""
    check_choice("mode", mode, MODES)
    check_ignored(ignore_index)
    if mode == "multiclass":
        check_exclusive(logits, target)
        if target.ndim == 4 and ignore_index in (0, 1):
            raise SpecError(
                f"ignore_index {ignore_index} is a probability too, {_pair(logits, target)} Give "
                "None, a value that is none, or class indices: target.argmax(dim=1)."
            )
        return
    if logits.ndim == 4 and target.shape == (logits.shape[0], *logits.shape[2:]):
        advice = "Use target.unsqueeze(1)." if logits.shape[1] == 1 else "Is it 'multiclass'?"
        raise SpecError(
            f"mode {mode!r} takes a target (B, K, H, W) like the logits, {_pair(logits, target)} "
            f"{advice}"
        )
    check_pair("logits", logits, target, ndim=4)
    if mode == "binary" and logits.shape[1] != 1:
        raise SpecError(
            f"mode 'binary' takes one logit a pixel, (B, 1, H, W), {_pair(logits, target)} Use "
            "'multiclass' or 'multilabel' for more classes."
        )


@dataclass(frozen=True)
class Pixels:
    """Logits and target of one batch, with the ignored pixels made neutral.

    Attributes:
        logits: (B, K, H, W) float32 or float64; 0 with zero gradient where ignored.
        target: (B, H, W) int64 class indices, or (B, K, H, W) in the logits' dtype (probabilities,
            for multiclass); 0 where ignored, and without a gradient.
        counted: bool, (B, 1, H, W) for multiclass, else (B, K, H, W); False where ignored.
        mode: how the classes relate.
    """

    logits: Tensor
    target: Tensor
    counted: Tensor
    mode: TargetMode

    def hard_target(self) -> Tensor:
        """The class indices (B, H, W); `SpecError` for probabilities."""
        if self.target.ndim == 4:
            raise SpecError(
                "this loss takes class indices (B, H, W), got probabilities "
                f"{describe(self.target)}; dice_loss and cross_entropy take both."
            )
        return self.target


def prepare(
    logits: Tensor, target: Tensor, *, mode: TargetMode, ignore_index: int | None
) -> Pixels:
    """Check a batch and neutralise its ignored pixels.

    Args:
        logits: raw scores, (B, K, H, W), any float dtype.
        target: class indices (B, H, W) for multiclass; 0 to 1 in any real dtype, (B, K, H, W) else.
        mode: "binary" (K = 1), "multiclass" or "multilabel".
        ignore_index: target value that counts nowhere, or None.

    Returns:
        The pixels; their logits carry the gradient to the counted entries only.

    Raises:
        SpecError: a shape or dtype that does not fit, naming both.

    Example:
        >>> pixels = prepare(torch.ones(1, 1, 1, 2), torch.tensor([[[[1, 255]]]]),
        ...                  mode="binary", ignore_index=255)
        >>> pixels.logits.tolist(), pixels.counted.tolist()
        ([[[[1.0, 0.0]]]], [[[[True, False]]]])
    """
    check_segmentation(logits, target, mode, ignore_index)
    logits, target = at_least_float32(logits), target.detach()
    # Cast before comparing: in uint8, -100 is not a value.
    indices = target.ndim == 3
    target = target.long() if indices else target.to(logits.dtype)
    if ignore_index is None:
        counted = torch.ones((), dtype=torch.bool, device=logits.device).expand_as(target)
        per_class = counted.unsqueeze(1) if indices else counted
        return Pixels(logits, target, per_class, mode)
    counted = target != ignore_index
    target = torch.where(counted, target, 0)
    per_class = counted.unsqueeze(1) if indices else counted
    # where, not a product: an infinite logit under an ignored pixel must not become NaN.
    return Pixels(torch.where(per_class, logits, 0.0), target, per_class, mode)


def per_class_weight(name: str, weight: Tensor | Sequence[float], logits: Tensor) -> Tensor:
    """A weight for each class as a (K,) tensor of the sums' precision, on the logits' device.

    Raises:
        SpecError: not one value a class, or a number below 0 (of a tensor, no value is read).
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    values = torch.as_tensor(weight, dtype=dtype, device=logits.device).detach()
    if values.shape != logits.shape[1:2]:
        raise SpecError(
            f"{name} needs one value a class, shape {tuple(logits.shape[1:2])}, "
            f"got {tuple(values.shape)}."
        )
    if not isinstance(weight, Tensor) and not all(0 <= value < math.inf for value in weight):
        raise _not_a_weight(name, weight)
    return values


def weight_buffer(name: str, weight: Tensor | Sequence[float] | None) -> Tensor | None:
    """The module's own copy of a weight for each class, float32 unless given as a tensor.

    Raises:
        SpecError: a number below 0, an infinite one or NaN.

    Example:
        >>> weight_buffer("class_weight", [1, 5])
        tensor([1., 5.])
    """
    if weight is None:
        return None
    if isinstance(weight, Tensor):
        kept = weight.detach().clone()
    else:
        kept = torch.tensor(weight, dtype=torch.float32)
    if not kept.is_meta and not bool(((kept >= 0) & (kept < math.inf)).all()):
        raise _not_a_weight(name, weight)
    return kept


def _not_a_weight(name: str, weight: Tensor | Sequence[float]) -> SpecError:
    values = weight.tolist() if isinstance(weight, Tensor) else list(weight)
    return SpecError(f"{name} must be finite and 0 or more, got {values}.")
