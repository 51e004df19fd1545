"""Swin at any image size: windows that shrink to a map smaller than they are."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock
from timm.models.swin_transformer_v2 import PatchMerging as PatchMergingV2
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
        x = self._in_windows(x, self._mask((height, width), (down, right), x))
        return torch.roll(x, (down, right), (1, 2)) if down or right else x

    def _in_windows(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention inside each window; a map that windows do not fill is padded with zeros."""
        (rows, columns), (batch, height, width, channels) = self.window, x.shape
        # counts, not padded sizes: a trace with a free size would divide what it has multiplied
        down, across = -(-height // rows), -(-width // columns)
        x = F.pad(x, (0, 0, 0, across * columns - width, 0, down * rows - height))
        x = x.view(batch, down, rows, across, columns, channels).transpose(2, 3)
        x = x.reshape(batch * down * across, rows * columns, channels)
        x = self.attn(x, mask=mask)
        x = x.view(batch, down, across, rows, columns, channels).transpose(2, 3)
        x = x.reshape(batch, down * rows, across * columns, channels)
        return x[:, :height, :width]

    def _mask(self, size: tuple[int, int], shift: tuple[int, int], x: Tensor) -> Tensor | None:
        """What is added to the attention: (windows, tokens, tokens), None for nothing."""
        small = any(side < window for side, window in zip(size, self.window, strict=True))
        if not small and not any(shift):
            return None
        (rows, beyond_rows), (columns, beyond_columns) = (
            self._side(*side, x.device) for side in zip(size, self.window, shift, strict=True)
        )
        seams = self._apart(rows[:, None, :, None] * 3 + columns[:, None])
        mask = torch.zeros(seams.shape, dtype=x.dtype, device=x.device).masked_fill(seams, SEAM)
        if small:
            beyond = self._apart(beyond_rows[:, None, :, None] | beyond_columns[:, None])
            mask = mask.masked_fill(beyond, float("-inf"))
        return mask

    @staticmethod
    def _side(size: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Along one side, by window: the regions between seams; what lies beyond a small map."""
        padded = window * -(-size // window)
        position = torch.arange(padded, device=device)
        region = torch.zeros_like(position)
        if shift:
            region = (position >= padded - window).long() + (position >= padded - shift).long()
        beyond = (position >= size) & (size < window)
        return region.view(-1, window), beyond.view(-1, window)

    @staticmethod
    def _apart(labels: Tensor) -> Tensor:
        """Which tokens of a window differ: (down, across, h, w) -> (windows, tokens, tokens)."""
        labels = labels.flatten(2).flatten(0, 1)
        return labels[:, :, None] != labels[:, None, :]


class Merging(nn.Module):
    """Two by two tokens of a Swin's map as one; timm's, but padded only where a side is odd.

    timm always pads, by nothing where both are even: a trace with a free size then carries that
    nothing through every later size, and does not end in minutes.

    Args:
        merging: one of timm's, of Swin or Swin V2; its modules are taken over under their names.
    """

    def __init__(self, merging: PatchMerging | PatchMergingV2) -> None:
        super().__init__()
        self.reduction = merging.reduction
        self.norm = merging.norm
        self.norm_first = not isinstance(merging, PatchMergingV2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), its width)."""
        if x.shape[1] % 2 or x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)
        if self.norm_first:
            return self.reduction(self.norm(x))  # type: ignore[no-any-return]
        return self.norm(self.reduction(x))  # type: ignore[no-any-return]


def let_windows_follow(model: Any) -> None:  # noqa: ANN401 - a timm model
    """Replace the blocks and mergings of a Swin (V2) of timm's in place; names stay.

    Args:
        model: built with `dynamic_img_size=True`; other models are left alone.
    """
    if isinstance(model, (SwinTransformer, SwinTransformerV2)):
        for stage in model.layers:
            if isinstance(stage.downsample, (PatchMerging, PatchMergingV2)):
                stage.downsample = Merging(stage.downsample)
            for index, block in enumerate(stage.blocks):
                stage.blocks[index] = WindowBlock(block)
