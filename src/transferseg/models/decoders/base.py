"""What every decoder is (abstract)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from segmentation_models_pytorch.base.initialization import initialize_head
from torch import Tensor, nn

from transferseg.transfer import Adapter, NeutralStart


class Decoder(nn.Module, ABC):
    """From an encoder's feature maps to one map of features for the head (abstract).

    A subclass's keyword-only parameters are the options that `create_model` takes for it.

    Args:
        encoder_channels: of the encoder's feature maps, shallow to deep.
        encoder_strides: their strides.

    Attributes:
        output_strides: encoder output strides that it works on, the preferred first.
        head_kernel: kernel size of the head's convolution.
        reads: indices of the feature maps that it reads, from the end where negative; None for all.
        out_channels: of the features that it gives.
        align_corners: of its bilinear resizings and of the logits' to the size of the image.
    """

    output_strides: ClassVar[tuple[int, ...]]
    head_kernel: int
    reads: tuple[int, ...] | None = None
    out_channels: int
    align_corners: bool = False

    def __init__(
        self,
        encoder_channels: Sequence[int],  # noqa: ARG002
        encoder_strides: Sequence[int],  # noqa: ARG002
        **options: Any,  # noqa: ANN401, ARG002 - each decoder has its own
    ) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Feature maps, shallow to deep, and the image's (H, W) -> (B, out_channels, h, w)."""

    def segments(self) -> Sequence[nn.Module]:
        """What activation checkpointing computes again as one piece each: all of it at once."""
        return [self]

    def transfer_adapters(self) -> Mapping[str, Adapter]:
        """Own key -> adapter from another layout of this decoder; none unless overridden."""
        return {}

    def transfer_starts(self) -> Sequence[NeutralStart]:
        """How what other layouts of this decoder lack begins; nothing unless overridden."""
        return ()


def conv_head(decoder: Decoder, channels: int) -> nn.Conv2d:
    """The last convolution, from the decoder's features to classes or image channels."""
    kernel = decoder.head_kernel
    head = nn.Conv2d(decoder.out_channels, channels, kernel, padding=kernel // 2)
    initialize_head(head)
    return head
