"""Adapters between sizes: of the image, of the patches and of the windows of a transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transferseg.transfer.adapters import Adapter, Shape

Size = tuple[int, int]


@dataclass(frozen=True)
class PositionGrid(Adapter):
    """The position embedding of another image size: its grid resampled, bicubic.

    timm does the same when it loads such a file, and at every forward for the size at hand.

    Args:
        prefix: how many positions stand before the grid's (class and register tokens).
        grid: height and width of the target's.
        source_grid: height and width of the source's; a square one by default.
        antialias: as timm has it; MMSegmentation has none.

    Example:
        >>> import torch
        >>> PositionGrid(1, (3, 3)).apply(torch.ones(1, 1 + 4, 8), torch.zeros(1, 1 + 9, 8)).sum()
        tensor(80.)
        >>> PositionGrid(0, (3, 3), source_grid=(2, 4)).fits((1, 8, 5), (1, 9, 5))
        True
    """

    prefix: int
    grid: Size
    source_grid: Size | None = None
    antialias: bool = True
    name: str = field(default="position_grid", init=False)

    @property
    def note(self) -> str:  # type: ignore[override]
        """What it does."""
        given = f" from {_by(self.source_grid)}" if self.source_grid else ""
        how = "with" if self.antialias else "without"
        return f"position grid resampled{given} to {_by(self.grid)}, bicubic {how} antialias"

    def fits(self, source: Shape, target: Shape) -> bool:
        """As many positions before it, a grid of the known size or a square, the same channels."""
        if len(source) != 3 or len(target) != 3 or source[::2] != target[::2]:
            return False
        known = _grid(source[1] - self.prefix, self.source_grid) is not None
        return known and self.prefix + self.grid[0] * self.grid[1] == target[1]

    def apply(self, source: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002
        """See the class."""
        given = cast(Size, _grid(source.shape[1] - self.prefix, self.source_grid))
        grid = source[:, self.prefix :].reshape(1, *given, -1).permute(0, 3, 1, 2)
        resampled = _bicubic(grid, self.grid, antialias=self.antialias)
        positions = resampled.permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat([source[:, : self.prefix], positions], dim=1)


@dataclass(frozen=True)
class RelativePositionTable(Adapter):
    """A table of relative positions of another window: resampled, bicubic, as Swin's authors do.

    Args:
        window: height and width of the target's windows.
        source_window: of the source's; a square one by default.
        extra: rows at the table's end for a class token, which are copied (BEiT has 3).

    Source: Liu 2021 (arXiv 2103.14030), whose code does so; timm's
    `resize_rel_pos_bias_table_simple`.

    Example:
        >>> table = RelativePositionTable((12, 12))
        >>> table.fits((13 * 13, 3), (23 * 23, 3)), table.note
        (True, 'table of relative positions resampled to windows of 12x12, bicubic')
    """

    window: Size
    source_window: Size | None = None
    extra: int = 0
    name: str = field(default="relative_position_table", init=False)

    @property
    def note(self) -> str:  # type: ignore[override]
        """What it does."""
        given = f" from {_by(self.source_window)}" if self.source_window else ""
        what = "table of relative positions resampled"
        return f"{what}{given} to windows of {_by(self.window)}, bicubic"

    def fits(self, source: Shape, target: Shape) -> bool:
        """Tables (positions, heads) of the same heads, of windows of known or square size."""
        if len(source) != 2 or len(target) != 2 or source[1] != target[1]:
            return False
        height, width = _table(self.window)
        return self._given(source[0]) is not None and height * width + self.extra == target[0]

    def apply(self, source: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002
        """See the class."""
        given = cast(Size, self._given(len(source)))
        rows = len(source) - self.extra
        table = source[:rows].t().reshape(1, -1, *given)
        resampled = _bicubic(table, _table(self.window), antialias=False)
        return torch.cat([resampled[0].flatten(1).t(), source[rows:]])

    def _given(self, rows: int) -> Size | None:
        known = _table(self.source_window) if self.source_window else None
        grid = _grid(rows - self.extra, known)
        return grid if grid is not None and grid[0] % 2 and grid[1] % 2 else None


@dataclass(frozen=True)
class PatchSize(Adapter):
    """A patch embedding of another patch size, by the pseudo-inverse of resizing.

    The new kernel gives the resized patch what the old one gave the patch, exactly where patches
    grow, as nearly as can be where they shrink.

    Source: Beyer 2023, FlexiViT (arXiv 2212.08013), sec. 3.4; timm's `resample_patch_embed`.

    Example:
        >>> PatchSize().apply(torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 4, 4)).shape
        torch.Size([1, 3, 4, 4])
    """

    name: str = field(default="patch_size", init=False)
    note: str = field(
        default="patches resized by the pseudo-inverse of bicubic resizing", init=False
    )

    def fits(self, source: Shape, target: Shape) -> bool:
        """Kernels (out, in, height, width) that differ in height or width alone."""
        both = len(source) == len(target) == 4
        return both and source[:2] == target[:2] and source[2:] != target[2:]

    def apply(self, source: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        old, new = source.shape[2:], target.shape[2:]
        pixels = torch.eye(old.numel(), dtype=torch.float64).reshape(-1, 1, *old)
        # one row an old pixel, resized: what resizing does to a patch
        resize = F.interpolate(pixels, size=tuple(new), mode="bicubic", antialias=True).flatten(1)
        inverse = torch.linalg.pinv(resize.t()).to(source.device)
        kernels: Tensor = source.flatten(2).to(torch.float64) @ inverse
        return kernels.reshape(target.shape).to(source.dtype)


#: Arguments of timm's builder with which a ViT takes `RegisterPositions`.
REGISTERS_PLACED: Mapping[str, Any] = {"no_embed_class": False}


@dataclass(frozen=True)
class RegisterPositions(Adapter):
    """Positions of zero for the register tokens of a ViT, behind the class token's.

    DINOv2 adds no position to them. timm's ViT built with `no_embed_class=False` adds one to every
    token, so that with zeros it computes the same; they count as covered.

    Args:
        placed: what the target offers for its own positions, which tells the registers from the
            cells of its grid; without it the grid is the source's.

    Example:
        >>> placed = RegisterPositions().apply(torch.ones(1, 5, 1), torch.empty(1, 7, 1))
        >>> placed.flatten().tolist()
        [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    """

    placed: PositionGrid | None = None
    name: str = field(default="register_positions", init=False)

    @property
    def note(self) -> str:  # type: ignore[override]
        """What it does."""
        resampled = f"; {self.placed.note}" if self.placed else ""
        return f"zeros as the positions of the register tokens{resampled}"

    def beside(self, offered: Adapter | None) -> Adapter:
        """See the class."""
        return replace(self, placed=offered) if isinstance(offered, PositionGrid) else self

    def fits(self, source: Shape, target: Shape) -> bool:
        """(1, 1 + cells, C) into (1, 1 + registers + cells, C), the source's cells a square's."""
        if len(source) != 3 or len(target) != 3 or source[::2] != target[::2]:
            return False
        grid = _grid(source[1] - 1, None)
        if self.placed is not None:
            with_zeros = (1, source[1] - 1 + self.placed.prefix, source[2])
            return self.placed.prefix > 1 and self.placed.fits(with_zeros, target)
        # a larger square would need more cells than this
        return grid is not None and 0 < target[1] - source[1] <= 2 * grid[0]

    def apply(self, source: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        registers = target.shape[1] - source.shape[1]
        if self.placed is not None:
            registers = self.placed.prefix - 1
        zeros = source.new_zeros(1, registers, source.shape[2])
        whole = torch.cat([source[:, :1], zeros, source[:, 1:]], dim=1)
        if self.placed is None or self.placed.grid == _grid(source.shape[1] - 1, None):
            return whole
        return self.placed.apply(whole, target)


def size_adapters(model: nn.Module) -> dict[str, Adapter]:
    """Own key -> adapter from another size, of a transformer as timm builds it.

    Args:
        model: its position embedding, patch embedding and tables of relative positions are found
            by timm's names.

    Example:
        >>> import timm
        >>> sorted(size_adapters(timm.create_model("test_vit")))
        ['patch_embed.proj.weight', 'pos_embed']
    """
    adapters: dict[str, Adapter] = {}
    patches = getattr(model, "patch_embed", None)
    grid = getattr(patches, "grid_size", None)
    if isinstance(getattr(patches, "proj", None), nn.Conv2d) and grid is not None:
        adapters["patch_embed.proj.weight"] = PatchSize()
    if isinstance(getattr(model, "pos_embed", None), Tensor) and grid is not None:
        classless = bool(getattr(model, "no_embed_class", False))
        prefix = 0 if classless else int(getattr(model, "num_prefix_tokens", 0))
        adapters["pos_embed"] = PositionGrid(prefix, (int(grid[0]), int(grid[1])))
    for name, module in model.named_modules():
        table = getattr(module, "relative_position_bias_table", None)
        window = getattr(module, "window_size", None)
        if isinstance(table, Tensor) and table.ndim == 2 and isinstance(window, tuple):
            height, width = _table((int(window[0]), int(window[1])))
            adapters[f"{name}.relative_position_bias_table"] = RelativePositionTable(
                (int(window[0]), int(window[1])), extra=len(table) - height * width
            )
    return adapters


def _bicubic(images: Tensor, size: Size, *, antialias: bool) -> Tensor:
    wide = images.to(torch.promote_types(images.dtype, torch.float32))  # no kernel for half floats
    resized = F.interpolate(
        wide, size=size, mode="bicubic", align_corners=False, antialias=antialias
    )
    return resized.to(images.dtype)


def _grid(cells: int, known: Size | None) -> Size | None:
    """Height and width of so many cells, or None where they make no such grid."""
    if known is not None:
        return known if known[0] * known[1] == cells else None
    side = isqrt(max(cells, 0))
    return (side, side) if cells > 0 and side * side == cells else None


def _table(window: Size) -> Size:
    """Height and width of the table of a window: one cell for each difference of positions."""
    return 2 * window[0] - 1, 2 * window[1] - 1


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
