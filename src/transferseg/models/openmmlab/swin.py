"""Other libraries' Swin: windows that never shrink, on maps padded before they are shifted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from transferseg.models.windows import WindowBlock


class PaddedWindowBlock(WindowBlock):
    """A Swin block that pads its map to whole windows, then shifts it, whatever its size.

    timm shifts, then pads, and does not shift along a side where one window holds the map. The
    padding, zeros after the norm, takes part in the attention in both.

    Args:
        block: one of timm's, of Swin; its modules are taken over under their names.

    Source: MMSegmentation's ShiftWindowMSA, with whose weights it computes the same.
    """

    def _attend(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        (rows, columns), (down, right) = self.window, self._shift_on(height, width)
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        if not (down or right):
            return self._in_windows(x, None)[:, :height, :width]
        x = torch.roll(x, (-down, -right), (1, 2))
        seams = self._mask((x.shape[1], x.shape[2]), (down, right), x)
        x = torch.roll(self._in_windows(x, seams), (down, right), (1, 2))
        return x[:, :height, :width]

    def _shift_on(self, height: int, width: int) -> tuple[int, int]:  # noqa: ARG002
        """How far a map of this size is shifted."""
        return self.shift


class SteadyWindowBlock(PaddedWindowBlock):
    """The same, but unshifted on a map whose shorter side is no longer than a window.

    Args:
        block: one of timm's, of Swin; its modules are taken over under their names.

    Source: transformers' SwinModel, with whose weights it computes the same. (A model of theirs
    that has once seen such a map shifts no more; this one has no memory. Maps smaller than a window
    are an error there.) MMPretrain's Swin shifts alike.
    """

    def _shift_on(self, height: int, width: int) -> tuple[int, int]:
        """Not at all where a window reaches over the shorter side."""
        return (
            (0, 0) if min(height, width) <= min(self.window) else super()._shift_on(height, width)
        )


class SideWindowBlock(PaddedWindowBlock):
    """The same, but unshifted along each side that one window holds.

    Args:
        block: one of timm's, of Swin; its modules are taken over under their names.

    Source: torchvision's SwinTransformer, with whose weights it computes the same.
    """

    def _shift_on(self, height: int, width: int) -> tuple[int, int]:
        """Along the sides that are longer than a window."""
        (rows, columns), (down, right) = self.window, self.shift
        return down if height > rows else 0, right if width > columns else 0


#: style -> what the blocks of a Swin become; MMPretrain's shift as transformers' do
BLOCKS: Mapping[str, type[PaddedWindowBlock]] = {
    "mmseg": PaddedWindowBlock,
    "transformers": SteadyWindowBlock,
    "mmpretrain": SteadyWindowBlock,
    "torchvision": SideWindowBlock,
}


def pad_before_shifting(model: SwinTransformer, style: str = "mmseg") -> None:
    """Replace the blocks of a Swin of timm's in place; parameters and names stay.

    Args:
        model: built with `always_partition=True`, so that its windows have their full size.
        style: one of `BLOCKS`.
    """
    for stage in model.layers:
        for index, block in enumerate(stage.blocks):
            stage.blocks[index] = BLOCKS[style](block)
