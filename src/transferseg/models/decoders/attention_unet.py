"""The Attention U-Net decoder: a U-Net's, with an additive attention gate on every skip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp, floor, log2
from typing import cast

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder
from torch import Tensor, nn

from transferseg.models.decoders.unet import UNetDecoder, Upsampling
from transferseg.transfer import GatedSkipSlice, NeutralStart
from transferseg.transfer.starts import Constant, OpposedTwins, Start, TwinRows

#: Bias of psi at the start: most of the skip passes, and the sigmoid is not yet flat.
OPEN_BIAS = 2.0
NOTE = (
    "gates at their function-preserving start (channels in twins that psi weighs with opposite "
    f"signs; psi's bias {OPEN_BIAS:g})"
)


class AttentionGate(nn.Module):
    """Additive soft attention: how much of a skip connection passes, by position.

        alpha = sigmoid(psi^T relu(W_x x + W_g g + b_g) + b_psi), resampled to x's size

    On the grid of the gating signal, to which W_x brings x by a stride of 2, with half of x's
    channels, at least 2; both resamplings are bilinear. All channels of x share one coefficient.

    Args:
        skip_channels: of x, the encoder's map.
        gating_channels: of g, the decoder's map at twice x's stride.

    Source: Oktay 2018 (arXiv 1804.03999), equations 1 and 2 and figure 2. W_x is 2x2 as in the
    authors' code; their output transform after the product, of which the paper does not speak, is
    left out.

    Example:
        >>> gate = AttentionGate(8, 16)
        >>> tuple(gate(torch.rand(2, 8, 7, 10), torch.rand(2, 16, 4, 5)).shape)
        (2, 8, 7, 10)
    """

    def __init__(self, skip_channels: int, gating_channels: int) -> None:
        super().__init__()
        inner = max(skip_channels // 2, 2)
        self.w_x = nn.Conv2d(skip_channels, inner, 2, stride=2, bias=False)
        self.w_g = nn.Conv2d(gating_channels, inner, 1)
        self.psi = nn.Conv2d(inner, 1, 1)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """(B, skip_channels, H, W) and (B, gating_channels, h, w) -> x times its coefficients."""
        return x * self.coefficients(x, g)

    def coefficients(self, x: Tensor, g: Tensor) -> Tensor:
        """Attention coefficients, (B, 1, H, W) in 0..1."""
        skip = self.w_x(x)
        alpha = torch.sigmoid(self.psi(F.relu(skip + _resample(self.w_g(g), skip))))
        return _resample(alpha, x)

    @torch.no_grad()
    def open(self) -> None:
        """Begin as `open_start` says, in place."""
        for key, start in self.open_start().items():
            parameter = self.get_parameter(key)
            parameter.copy_(start.begin(parameter))

    def open_start(self) -> dict[str, Start]:
        """Own key -> how it begins, so that the gate passes sigmoid(2) of everything and learns.

        Its channels come in twins of equal weights, which psi adds and subtracts: their sum is 0
        whatever the input, but each gets a gradient, of the opposite sign, and so they part.
        """
        usual = self.psi.in_channels**-0.5  # what an initialisation would give
        return {
            "w_x.weight": TwinRows(),
            "w_g.weight": TwinRows(),
            "w_g.bias": TwinRows(),
            "psi.weight": OpposedTwins(2.0 ** floor(log2(usual))),
            "psi.bias": Constant(OPEN_BIAS),
        }


class AttentionUNetDecoder(UNetDecoder):
    """The U-Net decoder whose skip connections pass through attention gates.

    Each gate is steered by the decoder's map one block below. Every skip has a gate, as in Khadka's
    figure 1; Oktay leaves the shallowest ungated.

    A gate begins open: it passes sigmoid(2) of its skip everywhere. Its channels begin as twins
    that psi weighs with opposite signs, so that they cancel, whatever the size of the encoder's
    values, and every parameter of the gate has a gradient from the first step. (Gates of random
    weights begin closed over an encoder of large values: their sigmoid is flat there.)

    A U-Net's encoder, decoder and head move into it with `transfer_weights`, and it computes the
    same at first: the decoder's weights for a skip undo the share that its gate lets pass.

    Args:
        encoder_channels: of the encoder's feature maps, shallow to deep.
        encoder_strides: their strides.
        channels: as of the U-Net decoder.
        upsampling: as of the U-Net decoder.
        full_resolution_skip: as of the U-Net decoder.
        center: as of the U-Net decoder.

    Raises:
        SpecError: `channels` that do not fit, or an unknown `upsampling`.

    Source: Oktay 2018 (arXiv 1804.03999); Khadka 2020, figures 1 and 2.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        *,
        channels: Sequence[int] | None = None,
        upsampling: Upsampling | None = None,
        full_resolution_skip: bool = True,
        center: bool = False,
    ) -> None:
        super().__init__(
            encoder_channels,
            encoder_strides,
            channels=channels,
            upsampling=upsampling,
            full_resolution_skip=full_resolution_skip,
            center=center,
        )
        sides = zip(self.strides, self.skip_channels, self.path_channels, strict=True)
        #: stride -> the gate on the skip connection there
        self.gates = nn.ModuleDict(
            {str(stride): AttentionGate(skip, below) for stride, skip, below in sides if skip}
        )
        initialize_decoder(self.gates)
        for gate in self.gates.values():
            cast(AttentionGate, gate).open()

    def skip(self, stride: int, feature: Tensor, path: Tensor) -> Tensor:
        """The encoder's map at a stride, each position as far as its gate lets it pass."""
        passed: Tensor = self.gates[str(stride)](feature, path)
        return passed

    def segments(self) -> Sequence[nn.Module]:
        """The blocks and the gates."""
        return [*super().segments(), *self.gates.values()]

    def attention_maps(self, features: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """The gates' coefficients, (B, 1, h, w) in 0..1, shallow to deep, each as its skip.

        Args:
            features: the encoder's maps, shallow to deep.
            size: of the image, (H, W).
        """
        maps = []
        x: Tensor = self.center(features[-1])
        for index, stride in enumerate(self.strides):
            if str(stride) in self.gates:
                gate = cast(AttentionGate, self.gates[str(stride)])
                maps.append(gate.coefficients(features[self.feature_of[stride]], x))
            x = self.step(index, x, features, size)
        return maps[::-1]

    def transfer_starts(self) -> Sequence[NeutralStart]:
        """A U-Net's decoder, which has no gates, fits: they pass one share of every position."""
        return [
            self._start(index, stride)
            for index, stride in enumerate(self.strides)
            if str(stride) in self.gates
        ]

    def _start(self, index: int, stride: int) -> NeutralStart:
        values = cast(AttentionGate, self.gates[str(stride)]).open_start()
        undone = GatedSkipSlice(self.in_channels[index], 1 / (1 + exp(-OPEN_BIAS)))
        begun = NeutralStart(tuple(values), values, {}, NOTE).under(f"gates.{stride}.")
        return replace(begun, adapters={f"blocks.{index}.conv1.0.weight": undone})


def _resample(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
