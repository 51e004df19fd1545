"""Where an encoder's parameters stand: which feature map first needs them, which layer they are."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from timm.models._manipulate import group_with_matcher
from timm.models.vgg import VGG
from torch import Tensor, nn

from transferseg.errors import SpecError

M = TypeVar("M", bound=nn.Module)
_SIDE = 64  # of the image that is sent through; its values do not matter
_AFTER = "(after the encoder)"  # no pattern of timm's matches it, as none matches a classifier


def encoder_stages(model: nn.Module) -> list[tuple[str, ...]]:
    """Parameters of a model's encoder by the feature map that is the first to depend on them.

    Found for any encoder by following the graph of one forward pass, not by names. It is made with
    tensors that hold no values, so that it costs neither memory nor arithmetic, and changes nothing
    in the model.

    Args:
        model: with an `encoder` that gives feature maps and a `spec` that tells the image channels.

    Returns:
        Parameter names of the model, one tuple a feature map, shallow to deep; those on which no
        map depends stand in the last.

    Raises:
        SpecError: the model has no encoder.

    Example:
        >>> from transferseg.models import create_classifier
        >>> stages = encoder_stages(create_classifier("vgg11", classes=2))
        >>> [len(stage) for stage in stages], stages[1]
        ([2, 2, 4, 4, 4, 0], ('encoder.model.features.3.weight', 'encoder.model.features.3.bias'))
    """
    encoder, spec = getattr(model, "encoder", None), getattr(model, "spec", None)
    if not isinstance(encoder, nn.Module) or spec is None:
        raise SpecError(f"{type(model).__name__} has no encoder with stages.")
    if len(getattr(encoder, "channels", ())) == 1:  # all is for it; the image might not fit
        return [tuple(name for name, _ in model.named_parameters() if name.startswith("encoder."))]
    twin = without_values(encoder).eval()
    names = {parameter: name for name, parameter in twin.named_parameters()}
    dtype = next(twin.parameters()).dtype
    image = torch.empty(1, spec.input.channels, _SIDE, _SIDE, dtype=dtype, device="meta")
    seen: set[Any] = set()
    with torch.enable_grad():
        found = [set(_leaves(feature.grad_fn, seen)) for feature in twin(image)]
    found[-1] |= names.keys() - set().union(*found)
    return [tuple(f"encoder.{name}" for p, name in names.items() if p in one) for one in found]


def without_values(module: M) -> M:
    """A copy on the meta device, without the hooks of others."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"))
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    for one in module.modules():
        for hooks in (one._forward_hooks, one._forward_pre_hooks):
            memo[id(hooks)] = OrderedDict()
    return copy.deepcopy(module, memo)


def _leaves(node: Any, seen: set[Any]) -> Iterator[Tensor]:  # noqa: ANN401 - a node of the graph
    """The leaves of a graph, without what lies behind nodes already seen."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [former for former, _ in node.next_functions]


def layer_distances(model: nn.Module) -> dict[str, int]:
    """How far each parameter of a model's encoder is from the decoder, in layers.

    Layers are timm's (the model's `group_matcher`): the stem, then block by block; what it leaves
    to the classifier's group (a last norm) has distance 0. VGG's are its convolutions, each with
    its norm, which timm counts as two layers; where timm knows no layers, `encoder_stages` are
    taken.

    Args:
        model: with an `encoder`, which holds timm's model as `model`.

    Returns:
        Parameter name -> 1 for the encoder's last layer, one more for each layer below it; the stem
        has the greatest. Parameters of the encoder beside timm's model (a neck) have 0.

    Raises:
        SpecError: the model has no encoder.

    Example:
        >>> from transferseg.models import create_classifier
        >>> distances = layer_distances(create_classifier("resnet10t", classes=2))
        >>> distances["encoder.model.bn1.weight"], distances["encoder.model.layer4.0.bn1.weight"]
        (5, 1)
    """
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise SpecError(f"{type(model).__name__} has no encoder whose layers could be counted.")
    body: Any = getattr(encoder, "model", None)
    if isinstance(body, VGG):
        matcher = _vgg_layer(body)
    elif hasattr(body, "group_matcher"):
        matcher = body.group_matcher(coarse=False)
    else:
        stages = [stage for stage in encoder_stages(model) if stage]
        return {name: len(stages) - i for i, stage in enumerate(stages) for name in stage}
    names = [name for name, _ in body.named_parameters()]
    pairs = [(name, name) for name in (*names, _AFTER)]
    ids: dict[str, int] = group_with_matcher(pairs, matcher, reverse=True)
    distances = {f"encoder.{name}": 0 for name, _ in encoder.named_parameters()}
    return distances | {f"encoder.model.{name}": ids[_AFTER] - ids[name] for name in names}


def _vgg_layer(model: VGG) -> Callable[[str], float]:
    """Name -> number of its convolution."""
    layer, first = -1, {}
    for index, module in enumerate(model.features):
        layer += isinstance(module, nn.Conv2d)
        first[f"features.{index}"] = layer
    return lambda name: first.get(name.rpartition(".")[0], float("inf"))


def encoder_stem(model: nn.Module) -> tuple[str, ...]:
    """Parameters of the layer of a model's encoder that reads the image.

    Args:
        model: as for `layer_distances`.

    Returns:
        Their names.

    Example:
        >>> from transferseg.models import create_classifier
        >>> encoder_stem(create_classifier("vgg11_bn", classes=2))[-1]
        'encoder.model.features.1.bias'
    """
    distances = layer_distances(model)
    furthest = max(distances.values(), default=0)
    return tuple(name for name, distance in distances.items() if distance == furthest)
