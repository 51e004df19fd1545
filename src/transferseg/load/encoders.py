"""Which of timm's models a checkpoint's names and shapes are, and which compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from types import FunctionType
from typing import Any

import timm
from timm.layers import DropPath
from timm.models import PretrainedCfg
from torch import nn

from transferseg.load.timm_index import RECOMPUTED, Layout, Shape, bare, models_of, row, shapes_of
from transferseg.spec import InputSpec

#: What does nothing in evaluation; a model may have one where its twin has another.
SILENT = (nn.Identity, nn.modules.dropout._DropoutNd, DropPath)
#: Attributes that change the training alone, or tell sizes that the shapes tell too.
IDLE = {"training", "drop_prob", "grad_checkpointing", "fused_attn", "num_classes", "drop_rate"}


def candidates(shapes: Mapping[str, Shape], *, encoder: bool = False) -> list[str]:
    """Timm's models with exactly these names and shapes; of those that compute the same, one.

    Args:
        shapes: key -> shape, in timm's names.
        encoder: whether they are those of an encoder, without what no feature map needs.

    Example:
        >>> from transferseg.load.timm_index import shapes_of
        >>> candidates(shapes_of(bare("tf_efficientnet_b0")))
        ['efficientnet_b0', 'efficientnet_blur_b0', 'tf_efficientnet_b0']
    """
    found = models_of(shapes, encoder=encoder)
    if len(found) < 2:
        return found
    groups: dict[object, list[str]] = {}
    for name in found:
        groups.setdefault(behaviour(name), []).append(name)
    return [min(same, key=len) for same in groups.values()]


@cache
def behaviour(name: str) -> tuple[object, ...]:
    """What a timm model's modules are and do: two models of equal behaviour compute the same.

    Their classes and plain attributes in order: strides, paddings, epsilons, activations, pooling.

    Example:
        >>> behaviour("efficientnet_b0") == behaviour("tf_efficientnet_b0")
        False
    """
    return _described(bare(name))


def differs(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether arguments of its builder make another model of a timm model.

    Args:
        name: of the timm model.
        arguments: as its builder takes them.

    Example:
        >>> [differs("resnet10t", {"global_pool": pool}) for pool in ("avg", "max")]
        [False, True]
    """
    model, usual = bare(name, **arguments), bare(name)
    return shapes_of(model) != shapes_of(usual) or _described(model) != behaviour(name)


def alike(name: str, names: Sequence[str]) -> list[str]:
    """Those of other models that compute what this one does, from images of other statistics.

    Example:
        >>> alike("vit_tiny_patch16_224", ["deit_tiny_patch16_224"])
        ['deit_tiny_patch16_224']
    """
    usual = statistics(name, 3)
    others = (other for other in names if statistics(other, 3) != usual)
    return [other for other in others if behaviour(other) == behaviour(name)]


def _described(model: nn.Module) -> tuple[object, ...]:
    described = []
    for path, module in model.named_modules():
        if not isinstance(module, SILENT):
            values = {
                k: _plain(v) for k, v in vars(module).items() if k not in IDLE and k[0] != "_"
            }
            kept = sorted((k, repr(v)) for k, v in values.items() if v is not None)
            described.append((path, type(module).__qualname__, tuple(kept)))
    return tuple(described)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any attribute of a module
    """An attribute that can be compared, or None for what is no setting (tensors, tables)."""
    if isinstance(value, (FunctionType, type)):
        return value.__qualname__
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)) and all(_plain(item) is not None for item in value):
        return tuple(value)
    return None


def head_shape(name: str, shapes: Mapping[str, Shape]) -> int:
    """The number of classes of a timm checkpoint, 0 where it has no classifier.

    Example:
        >>> from transferseg.load.timm_index import shapes_of
        >>> head_shape("resnet10t", shapes_of(bare("resnet10t", num_classes=7)))
        7
    """
    for module in layout(name).classifier:
        for key in (f"{module}.weight", f"{module}.bias"):
            if shapes.get(key):
                return shapes[key][0]
    return 0


def stem_channels(name: str, shapes: Mapping[str, Shape]) -> int:
    """The number of channels that the first convolution of a timm checkpoint reads.

    Example:
        >>> from transferseg.load.timm_index import shapes_of
        >>> stem_channels("resnet10t", shapes_of(bare("resnet10t", in_chans=1)))
        1
    """
    for module in layout(name).first:
        key = f"{module}.weight"
        if len(shapes.get(key, ())) == 4:
            return shapes[key][1] // max(1, shapes_of(bare(name))[key][1] // 3)
    return 3


def layout(name: str) -> Layout:
    """Which modules of a timm model depend on the channels and on the classes."""
    return row(name).layout


def statistics(name: str, channels: int) -> InputSpec:
    """The input that timm's weights of a model expect."""
    config = timm.get_pretrained_cfg(name) or PretrainedCfg()
    return InputSpec.from_statistics(config.mean, config.std, channels=channels)


#: Patterns on the keys of buffers that some versions saved and all compute again -> why.
UNSAVED = dict.fromkeys(RECOMPUTED[:3], "a table that is computed again")
