"""Activation checkpointing: memory for time, and BatchNorm statistics that still move once a step.

What is computed again is computed by the modules' own `forward`, put behind
`torch.utils.checkpoint` in the module itself, so that names, state and code of the networks stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from timm.models.hrnet import HighResolutionNet
from timm.models.vgg import VGG
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from transferseg.errors import SpecError
from transferseg.models.plain import PlainEncoder

#: An attribute of a VGG of timm's, which has no checkpointing of its own.
_MARK = "_checkpointed"


def checkpoint_encoder(model: Any, name: str, *, enable: bool) -> None:  # noqa: ANN401 - timm's
    """Turn it on or off in a timm model (or a plain encoder), in place.

    By timm's own `set_grad_checkpointing`; VGG, HRNet and the plain encoders, for which timm has
    none, between poolings, by block and by stage.

    Raises:
        SpecError: neither timm nor this file can do it for this encoder.
    """
    if isinstance(model, VGG):
        vars(model).pop(_MARK, None)
        if enable:
            vars(model)[_MARK] = True
    elif isinstance(model, (HighResolutionNet, PlainEncoder)):
        for segment in _segments(model):
            compute_again(segment, enable=enable)
    else:
        try:
            model.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError, NotImplementedError) as error:
            if enable:
                raise SpecError(
                    f"encoder {name!r} cannot recompute its activations ({error}); ResNet, VGG, "
                    "ViT, Swin, HRNet, ConvNeXt, DenseNet, EfficientNet and RegNet can. "
                    "Nothing was changed."
                ) from error
    count_once(model, enable=enable)


def vgg_maps(model: nn.Module, image: Tensor) -> list[Tensor] | None:
    """The feature maps of a VGG whose activations are computed again, None of all else."""
    if not getattr(model, _MARK, False) or not torch.is_grad_enabled():
        return None
    maps, x, start = [], image, 0
    layers: nn.Sequential = model.get_submodule("features")  # type: ignore[assignment]
    for end in getattr(model, "feature_ends"):  # noqa: B009 - mypy knows no timm
        x = checkpoint(layers[start : end + 1], x, use_reentrant=False)
        maps.append(x)
        start = end + 1
    return maps


def compute_again(module: nn.Module, *, enable: bool) -> None:
    """Let a module drop the activations of its forward pass and compute them in the backward."""
    vars(module).pop("forward", None)
    if enable:
        vars(module)["forward"] = partial(_again, module)


def count_once(module: nn.Module, *, enable: bool) -> None:
    """Let no BatchNorm in a module count a batch a second time, when it is computed again."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            vars(norm).pop("forward", None)
            if enable:
                vars(norm)["forward"] = partial(_without_counting, norm)


def _segments(model: Any) -> Iterator[nn.Module]:  # noqa: ANN401 - HRNet of timm's, or plain
    if isinstance(model, PlainEncoder):
        yield from model.stages
    else:
        for stage in (model.layer1, model.stage2, model.stage3, model.stage4):
            yield from stage


def _again(module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    forward = partial(_untouched, module)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _untouched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    # HRNet's modules write into the list of maps that they are given.
    own = [list(value) if isinstance(value, list) else value for value in args]
    return type(module).forward(module, *own, **kwargs)


def _without_counting(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Its forward; with a momentum of 0, which leaves the statistics as they are, when again."""
    before, again = norm.momentum, norm.training and _in_backward()
    if not again:
        return _forward(norm, x)
    try:
        norm.momentum = 0.0
        return _forward(norm, x)
    finally:  # torch leaves early by an exception, once it has what the backward pass needs
        norm.momentum = before
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.sub_(1)


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    y: Tensor = type(norm).forward(norm, x)
    return y


def _in_backward() -> bool:
    """Whether a backward pass runs in this thread: then a forward pass is one computed again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
