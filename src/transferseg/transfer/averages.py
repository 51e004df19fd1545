"""Moving averages as training libraries save them: under names of their own, or exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Entries with a moving average of the weights, used where there are no others or on demand.
EMA_ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
#: What `entry=` calls the buffers in which mmcv's EMAHook keeps a second set of the parameters.
EMA_BUFFERS = "ema_"
#: How often was averaged: mmengine's and torch's averaged models count beside their `module.`.
COUNTERS = ("steps", "n_averaged")

_EXCHANGED = "state_dict", "ema_state_dict"
_MODULE = "module."


def count_of_averages(tensors: Mapping[str, Any]) -> str | None:
    """The counter among the tensors of an averaged model, all others of which are `module.`'s.

    Example:
        >>> import torch
        >>> count_of_averages({"steps": torch.tensor(3), "module.w": torch.ones(1)})
        'steps'
        >>> count_of_averages({"steps": torch.tensor(3), "w": torch.ones(1)}) is None
        True
    """
    names = [name for name in tensors if not str(name).startswith(_MODULE)]
    alone = len(names) == 1 < len(tensors) and names[0] in COUNTERS
    return names[0] if alone and not tuple(tensors[names[0]].shape) else None


def exchanged(values: Mapping[Any, Any]) -> bool:
    """Whether mmengine's EMAHook saved this: `state_dict` is the average then.

    It exchanges the two as it saves, so that who loads `state_dict` has the average;
    `ema_state_dict` is left with the weights that were trained.

    Example:
        >>> import torch
        >>> average = {"steps": torch.tensor(3), "module.w": torch.ones(1)}
        >>> exchanged({"state_dict": {"w": torch.ones(1)}, "ema_state_dict": average})
        True
    """
    plain, other = (values.get(name) for name in _EXCHANGED)
    return (
        isinstance(plain, Mapping)
        and isinstance(other, Mapping)
        and "steps" in other
        and all(hasattr(value, "shape") for value in other.values())
        and count_of_averages(other) == "steps"
    )


def average_buffers(names: Mapping[str, Any]) -> dict[str, str]:
    """The buffers of mmcv's EMAHook -> the parameters that they belong to.

    It registers `ema_backbone_conv1_weight` beside `backbone.conv1.weight`, in the network itself,
    so that a wrapper's `module.` stands before both.

    Args:
        names: of all tensors.

    Returns:
        Nothing where one of the names that begin so belongs to no parameter.

    Example:
        >>> average_buffers({"conv.weight": 0, "ema_conv_weight": 0})
        {'ema_conv_weight': 'conv.weight'}
    """
    wrapper = _MODULE if all(name.startswith(_MODULE) for name in names) else ""
    inner = {name: name.removeprefix(wrapper) for name in names}
    begun = {n for n, own in inner.items() if own.startswith(EMA_BUFFERS) and "." not in own}
    owners = {
        f"{wrapper}{EMA_BUFFERS}{own.replace('.', '_')}": name
        for name, own in inner.items()
        if name not in begun
    }
    return {name: owners[name] for name in names if name in begun} if begun <= set(owners) else {}


#: What a report says where it cannot be seen which of two sets is the average.
TWO_SETS = (
    "its parameters are there twice, as mmcv's EMAHook keeps them: one set is the moving average. "
    "The plain names were taken, which have it after trainings that count epochs; after those that "
    "count iterations entry='ema_' takes it"
)
#: What a report says of a file of mmengine's EMAHook.
SWAPPED = (
    "'state_dict' is the moving average: mmengine's EMAHook exchanges the two as it saves; "
    "entry='ema_state_dict' takes the weights that were trained"
)
