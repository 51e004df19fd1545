"""Swin at any image size: windows that shrink to a map smaller than they are."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    window_partition,
    window_reverse,
)
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor, nn

#: what timm adds to the attention between the two sides of a seam that a shift makes
SEAM = -100.0


class WindowBlock(nn.Module):
    """A Swin block whose window and shift follow the size of the map that it is given.

    timm fixes them when a model is built, for one image size. Here they are those that timm would
    give a model built for the image at hand: along a side where the map is no larger than the
    window, the window is the map and is not shifted. The window's parameters stay as they are: a
    smaller window reads the middle of its table of relative positions (timm resizes the table). A
    map that is no multiple of the window is padded with zeros, after the shift, as in timm.

    Args:
        block: one of timm's, of Swin or Swin V2; its modules are taken over under their names.

    Source: Liu 2021 (arXiv 2103.14030), Liu 2022 (arXiv 2111.09883).
    """

    def __init__(self, block: SwinTransformerBlock | SwinTransformerV2Block) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.attn = block.attn
        self.drop_path1 = block.drop_path1
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.drop_path2 = block.drop_path2
        self.window: tuple[int, int] = tuple(block.window_size)
        shifts = zip(self.window, block.target_shift_size, strict=True)
        down, right = (side // 2 if shift else 0 for side, shift in shifts)
        self.shift = down, right
        self.norm_first = not isinstance(block, SwinTransformerV2Block)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if self.norm_first:
            x = x + self.drop_path1(self._attend(self.norm1(x)))
            x = x + self.drop_path2(self.mlp(self.norm2(x)))
        else:
            x = x + self.drop_path1(self.norm1(self._attend(x)))
            x = x + self.drop_path2(self.norm2(self.mlp(x)))
        return x

    def _attend(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        (rows, columns), (down, right) = self.window, self.shift
        down, right = down if height > rows else 0, right if width > columns else 0
        x = torch.roll(x, (-down, -right), (1, 2)) if down or right else x
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        mask = self._mask((height, width), (down, right), x)
        x = self._in_windows(x, mask)[:, :height, :width]
        return torch.roll(x, (down, right), (1, 2)) if down or right else x

    def _in_windows(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention inside each window of a map that whole windows fill."""
        (rows, columns), (_, height, width, channels) = self.window, x.shape
        windows = window_partition(x, self.window).view(-1, rows * columns, channels)
        windows = self.attn(windows, mask=mask).view(-1, rows, columns, channels)
        attended: Tensor = window_reverse(windows, self.window, height, width)
        return attended

    def _mask(self, size: tuple[int, int], shift: tuple[int, int], x: Tensor) -> Tensor | None:
        """What is added to the attention: (windows, tokens, tokens), None for nothing."""
        small = any(side < window for side, window in zip(size, self.window, strict=True))
        if not small and not any(shift):
            return None
        (rows, outside_rows), (columns, outside_columns) = (
            self._side(*side, x.device) for side in zip(size, self.window, shift, strict=True)
        )
        seams = self._apart(rows[:, None] * 3 + columns)
        mask = torch.zeros(seams.shape, dtype=x.dtype, device=x.device).masked_fill(seams, SEAM)
        if small:
            outside = self._apart(outside_rows[:, None] | outside_columns)
            mask = mask.masked_fill(outside, float("-inf"))
        return mask

    @staticmethod
    def _side(size: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Along one side: the regions between seams, and what lies beyond a small map."""
        position = torch.arange(size + -size % window, device=device)
        region = torch.zeros_like(position)
        if shift:
            region = (position >= len(position) - window).long()
            region = region + (position >= len(position) - shift).long()
        return region, (position >= size) & (size < window)

    def _apart(self, labels: Tensor) -> Tensor:
        """Which two tokens of a window have different labels: (windows, tokens, tokens)."""
        windows: Tensor = window_partition(labels[None, :, :, None], self.window).flatten(1)
        return windows[:, :, None] != windows[:, None, :]


def let_windows_follow(model: Any) -> None:  # noqa: ANN401 - a timm model
    """Replace the blocks of a Swin or Swin V2 of timm's in place; parameters and names stay.

    Args:
        model: built with `dynamic_img_size=True`; other models are left alone.
    """
    if isinstance(model, (SwinTransformer, SwinTransformerV2)):
        for stage in model.layers:
            for index, block in enumerate(stage.blocks):
                stage.blocks[index] = WindowBlock(block)
