"""Output stride 8 and 16: a stage that would exceed it keeps it, and what follows is dilated.

The promise for every encoder that is dilated here: its feature maps, subsampled, equal those of the
undilated encoder with the same weights, on images whose sides are multiples of 32 (elsewhere VGG's
poolings, which round down, see less of the border than the dilated ones). `encoder_capabilities`
checks it before an encoder is built, and refuses the stride otherwise.

That is the style "timm". Weights trained in another library want that library's instead, which
breaks the promise as it did there: "smp" and "mmseg", for timm's ResNets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import AvgPool2dSame
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vgg import VGG
from torch import Tensor, nn

from transferseg.errors import SpecError

#: whose way of dilating; "timm" is torchvision's too
DILATIONS = ("timm", "smp", "mmseg")


class DenseMaxPool2d(nn.Module):
    """The 2x2 stride-2 maximum of a network whose stride was taken away, at every position.

    Position `i` of the former output is position `i * dilation` of this one.

    Args:
        dilation: distance of the two samples, the factor by which strides before it were reduced.

    Example:
        >>> x = torch.rand(1, 1, 8, 8)
        >>> dense = DenseMaxPool2d(1)(x)[..., ::2, ::2]
        >>> torch.equal(dense, F.max_pool2d(x, 2))
        True
    """

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        lowest = torch.finfo(x.dtype).min
        padded = F.pad(x, (0, self.dilation, 0, self.dilation), value=lowest)
        return F.max_pool2d(padded, 2, stride=1, dilation=self.dilation)

    def extra_repr(self) -> str:
        """The arguments, for `print(model)`."""
        return f"dilation={self.dilation}"


class DenseAvgPool2d(nn.Module):
    """The 2x2 average of a shortcut (ResNet-D) at every position, its samples `dilation` apart.

    timm's own is not dilated, so that its features at stride 8 differ from the undilated ones.
    Samples beyond the border do not count, as in timm.

    Args:
        dilation: distance of the two samples.
    """

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        for dim in (-2, -1):
            d, size = self.dilation, x.shape[dim]
            if d < size:
                near = x.narrow(dim, 0, size - d)
                far = x.narrow(dim, d, size - d)
                x = torch.cat([(near + far) / 2, x.narrow(dim, size - d, d)], dim=dim)
        return x

    def extra_repr(self) -> str:
        """The arguments, for `print(model)`."""
        return f"dilation={self.dilation}"


def built_by_timm(model_class: type[nn.Module]) -> bool:
    """Whether timm's constructor takes `output_stride` for this class (VGG's refuses it)."""
    return model_class is not VGG


def mend(model: nn.Module, output_stride: int) -> None:
    """Finish the dilation of a timm model in place, where timm has none or has it wrong.

    Args:
        model: built by timm; with `output_stride` where timm takes it.
        output_stride: 8 or 16.
    """
    if isinstance(model, VGG):
        _dilate_vgg(model.features, output_stride)
    elif isinstance(model, ResNet):
        _mend_average_shortcuts(model)


def _dilate_vgg(features: nn.Sequential, output_stride: int) -> None:
    stride = dilation = 1
    for index, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            if stride < output_stride:
                stride *= 2
            else:
                features[index] = DenseMaxPool2d(dilation)
                dilation *= 2
        elif isinstance(layer, nn.Conv2d):
            _set_dilation(layer, dilation)


def _mend_average_shortcuts(model: ResNet) -> None:
    """A shortcut's average reads the stage's input, spaced by the strides undone before it."""
    undone = 1
    for name in ("layer1", "layer2", "layer3", "layer4"):
        shortcut = getattr(model.get_submodule(f"{name}.0"), "downsample", None)
        if isinstance(shortcut, nn.Sequential) and isinstance(shortcut[0], AvgPool2dSame):
            shortcut[0] = DenseAvgPool2d(undone)
            undone *= 2


def set_style(model: nn.Module, style: str, name: str) -> None:
    """Give a ResNet, dilated in timm's way, another library's in place; its weights stay.

    With the stage's dilation d (2 or 4) the 3x3 convolutions have

    - "timm": d/2 in the first block's strided one, d else;
    - "smp": d in all of them;
    - "mmseg": as "timm", but 1 in the second of every basic block; and ResNet-D's shortcuts do not
      average.

    Args:
        model: built by timm with `output_stride` 8 or 16, and mended.
        style: one of `DILATIONS`.
        name: of the encoder, for the message.

    Raises:
        SpecError: another style than "timm" for something else than a ResNet.
    """
    if style == "timm":
        return
    blocks = _residual_blocks(model)
    if not blocks:
        raise SpecError(
            f"dilation style {style!r} is one of ResNets; encoder {name!r} can be dilated in the "
            'style "timm", or built with output_stride=32.'
        )
    change = _dilate_whole_block if style == "smp" else _dilate_as_mmseg
    for block in blocks:
        if block.dilation > 1:
            change(block)


def _residual_blocks(model: nn.Module) -> list[BasicBlock | Bottleneck]:
    """The blocks of a ResNet; none of a network that is no ResNet or has other blocks."""
    if not isinstance(model, ResNet):
        return []
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    blocks = [block for stage in stages for block in stage]
    plain = all(isinstance(block, (BasicBlock, Bottleneck)) for block in blocks)
    return blocks if plain else []


def _dilate_whole_block(block: BasicBlock | Bottleneck) -> None:
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size[0] > 1:
            _set_dilation(layer, block.dilation)


def _dilate_as_mmseg(block: BasicBlock | Bottleneck) -> None:
    if isinstance(block, BasicBlock):
        _set_dilation(block.conv2, 1)
    shortcut = block.downsample
    if isinstance(shortcut, nn.Sequential) and isinstance(shortcut[0], DenseAvgPool2d):
        shortcut[0] = nn.Identity()


def _set_dilation(layer: nn.Conv2d, dilation: int) -> None:
    layer.dilation = (dilation, dilation)
    layer.padding = (layer.kernel_size[0] // 2 * dilation, layer.kernel_size[1] // 2 * dilation)
