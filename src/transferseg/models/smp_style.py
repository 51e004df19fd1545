"""segmentation-models-pytorch's own encoders whose weights fit timm's models, not their maps.

The encoder option "style" chooses them. Parameters keep timm's names and places; other maps are
read, fixed borders are added where timm follows the size of the image, and whole stages are
dilated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch.nn.functional as F
from timm.layers import Conv2dSame, get_same_padding
from timm.models import checkpoint, checkpoint_seq
from timm.models.densenet import DenseNet
from torch import Tensor, nn

from transferseg.errors import SpecError

Steps: TypeAlias = tuple[tuple[str, bool], ...]
#: An attribute of timm's models in this style: their modules in the order in which they compute,
#: by path, and whether the output of each is a map.
STEPS = "_smp_steps"
_STAGES = ("bn1", "blocks.1", "blocks.2", "blocks.4", "blocks.6")
_DENSE = (
    "features.norm0",
    *(f"features.transition{number}.norm" for number in (1, 2, 3)),
    "features.norm5",
)
#: pattern on timm's names -> what gives the maps, shallow to deep
MAPS: Mapping[str, tuple[str, ...]] = {
    # the first block of that stage; of the other sizes the last
    "tf_efficientnet_b0": ("bn1", "blocks.1", "blocks.2", "blocks.4.0", "blocks.6"),
    "tf_efficientnet_b[1-7]": _STAGES,
    "efficientnet_b[0-8]": _STAGES,
    "efficientnet_l2": _STAGES,
    "efficientnet_lite[0-4]": _STAGES,
    "mobilenetv2_*": ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2"),
    **dict.fromkeys(("densenet121", "densenet161", "densenet169", "densenet201"), _DENSE),
}
#: timm's name -> the side of the images for which smp fixes the borders
SIDES: Mapping[str, int] = {
    f"tf_efficientnet_b{size}": side
    for size, side in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
}


class FixedBorderConv2d(nn.Conv2d):
    """A convolution whose zero border is the same for images of every size.

    Args:
        conv: timm's, whose border follows the size; its parameters are taken over.
        side: of the map for which the border is TensorFlow's "same".
    """

    def __init__(self, conv: Conv2dSame, side: int) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, 0, conv.dilation,
            conv.groups, bias=False, device="meta",
        )  # fmt: skip
        self.weight, self.bias = conv.weight, conv.bias
        border = get_same_padding(side, conv.kernel_size[0], conv.stride[0], 1)
        self.border = (border // 2, border - border // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, ~H / stride, ~W / stride)."""
        y: Tensor = self._conv_forward(F.pad(x, self.border), self.weight, self.bias)
        return y


def taps_of(name: str) -> tuple[str, ...]:
    """The modules of a timm model whose outputs are smp's maps.

    Args:
        name: timm's.

    Raises:
        SpecError: smp has no encoder of its own with that model's weights.

    Example:
        >>> taps_of("mobilenetv2_100")[-1]
        'bn2'
    """
    found = next((taps for known, taps in MAPS.items() if fnmatchcase(name, known)), None)
    if found is None:
        raise SpecError(
            f"style 'smp' is one of {', '.join(MAPS)}, which encoder {name!r} is not; leave style "
            "out. (smp's ResNet, VGG and SENet have timm's maps; where ResNets are dilated, give "
            "dilation='smp'.)"
        )
    return found


def read_as_smp(model: Any, name: str, output_stride: int) -> None:  # noqa: ANN401 - a timm model
    """Make a whole timm model, just built, an encoder in this style, in place.

    Args:
        model: timm's, of one of `MAPS`; its head is dropped.
        name: timm's.
        output_stride: with which it was built.
    """
    taps = taps_of(name)
    model.reset_classifier(0, "")
    steps = tuple(_steps(model, taps))
    vars(model)[STEPS] = steps
    used = [path.partition(".")[0] for path, _ in steps]
    for child, module in model.named_children():
        if child not in used and any(True for _ in module.parameters()):
            setattr(model, child, nn.Identity())
    if isinstance(model, DenseNet):  # smp leaves the last map as its norm gives it
        model.features.norm5.act = nn.Identity()
    if name in SIDES:
        _fix_borders(model, SIDES[name])
    if output_stride != 32:
        _dilate(model, steps, output_stride)


def smp_maps(
    model: Any,  # noqa: ANN401 - a timm model
    image: Tensor,
    until: int | None = None,
) -> list[Tensor] | None:
    """The feature maps of a model in this style, None of all else.

    Args:
        model: timm's.
        image: (B, C, H, W).
        until: index of the last map that is computed; None for all.

    Returns:
        One map a tap.
    """
    steps: Steps | None = getattr(model, STEPS, None)
    if steps is None:
        return None
    again = getattr(model, "grad_checkpointing", False)  # DenseNet's layers see to it themselves
    maps, x = [], image
    for path, tapped in steps:
        step = model.get_submodule(path)
        if again and path.startswith("blocks."):
            x = checkpoint_seq(step, x) if isinstance(step, nn.Sequential) else checkpoint(step, x)
        else:
            x = step(x)
        if tapped:
            maps.append(x)
            if len(maps) - 1 == until:
                break
    return maps


def _steps(model: nn.Module, taps: Sequence[str], path: str = "") -> Iterator[tuple[str, bool]]:
    """The modules up to the last tap, those with taps inside opened, and which are taps."""
    last = taps[-1]
    for name, module in model.named_children():
        inner = f"{path}{name}"
        if any(tap.startswith(f"{inner}.") for tap in taps):
            yield from _steps(module, taps, f"{inner}.")
        else:
            yield inner, inner in taps
        if f"{last}.".startswith(f"{inner}."):
            return


def _fix_borders(model: nn.Module, side: int) -> None:
    """Of the convolutions that halve the map; others have the border that smp's have."""
    for path, conv in [*model.named_modules()]:
        if isinstance(conv, Conv2dSame):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, FixedBorderConv2d(conv, side))
            side = -(-side // 2)


def _dilate(model: nn.Module, steps: Steps, output_stride: int) -> None:
    """All of what lies between two taps keeps the stride and is dilated.

    Kernels of one pixel too, as there, so that the same arithmetic is chosen, to the last bit.
    """
    stride = 2
    for path, tapped in steps:
        for conv in model.get_submodule(path).modules() if stride > output_stride else ():
            if isinstance(conv, nn.Conv2d):
                dilation, reach = stride // output_stride, conv.kernel_size[0] // 2
                conv.dilation = (dilation, dilation)
                conv.padding = (reach * dilation, reach * dilation)
        if tapped:
            stride *= 2
