"""OpenMMLab's ViT: its positions at any size, a final norm on the last map alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models import checkpoint
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from transferseg.errors import SpecError


def vit_maps(
    model: VisionTransformer, image: Tensor, layers: Sequence[int], *, style: str = "mmseg"
) -> list[Tensor]:
    """The maps after some blocks of a ViT of timm's, as MMSegmentation computes them.

    The class token takes part in the attention and is in no map.

    Args:
        model: built with `dynamic_img_size=True`; its final norm, where it was not pruned, is for
            the last map.
        image: (B, C, H, W), sides multiples of the patch.
        layers: the blocks, from 0, rising.
        style: "mmseg", or "mmpretrain", whose positions follow the shape of the grid.

    Returns:
        (B, width, H / patch, W / patch), one a layer.

    Source: MMSegmentation's VisionTransformer, with whose weights it computes the same.

    Example:
        >>> vit = VisionTransformer(img_size=32, embed_dim=8, depth=2, num_heads=1,
        ...                         dynamic_img_size=True)
        >>> [tuple(map_.shape) for map_ in vit_maps(vit, torch.rand(1, 3, 48, 64), [0, 1])]
        [(1, 8, 3, 4), (1, 8, 3, 4)]
    """
    x, size = _tokens(model, image, style)
    found = []
    for index, block in enumerate(model.blocks):
        x = checkpoint(block, x) if model.grad_checkpointing else block(x)
        if index in layers:
            found.append(x)
    found[-1] = model.norm(found[-1])
    return [each[:, 1:].transpose(1, 2).reshape(x.shape[0], -1, *size) for each in found]


def vit_logits(model: VisionTransformer, image: Tensor) -> Tensor:
    """What a whole ViT of timm's gives, with MMPretrain's positions.

    Args:
        model: built with `dynamic_img_size=True`, with its head.
        image: (B, C, H, W), sides multiples of the patch.

    Returns:
        (B, classes).

    Source: MMPretrain's VisionTransformer, with whose weights it computes the same.

    Example:
        >>> vit = VisionTransformer(img_size=32, embed_dim=8, depth=2, num_heads=1, num_classes=3,
        ...                         dynamic_img_size=True)
        >>> tuple(vit_logits(vit, torch.rand(1, 3, 48, 64)).shape)
        (1, 3)
    """
    x, _ = _tokens(model, image, "mmpretrain")
    for block in model.blocks:
        x = checkpoint(block, x) if model.grad_checkpointing else block(x)
    logits: Tensor = model.forward_head(model.norm(x))
    return logits


def _tokens(model: VisionTransformer, image: Tensor, style: str) -> tuple[Tensor, tuple[int, int]]:
    """What goes into the first block, and height and width of the grid of patches."""
    patches = model.patch_embed(image)
    size, grid = (patches.shape[1], patches.shape[2]), model.patch_embed.grid_size
    tokens = [model.cls_token.expand(patches.shape[0], -1, -1), patches.flatten(1, 2)]
    placed = positions(model.pos_embed, grid, size, by_count=style == "mmseg")
    return model.pos_drop(torch.cat(tokens, dim=1) + placed), size


def positions(
    embedding: Tensor, grid: tuple[int, int], size: tuple[int, int], *, by_count: bool = True
) -> Tensor:
    """The position embedding for another grid: bicubic without antialias.

    Args:
        embedding: (1, 1 + grid cells, C); the first is the class token's.
        grid: its height and width.
        size: the height and width that are wanted.
        by_count: whether as many patches in another arrangement (256x1024 on a net of 512x512)
            leave it as it is, as in MMSegmentation.

    Returns:
        (1, 1 + cells of size, C).

    Example:
        >>> tuple(positions(torch.rand(1, 1 + 4, 8), (2, 2), (3, 4)).shape)
        (1, 13, 8)
    """
    if size == tuple(grid) or (by_count and embedding.shape[1] == 1 + size[0] * size[1]):
        return embedding
    cells = embedding[:, 1:].transpose(1, 2).reshape(1, -1, *grid)
    wide = cells.to(torch.promote_types(cells.dtype, torch.float32))  # no kernel for half floats
    wide = F.interpolate(wide, size=size, mode="bicubic", align_corners=False)
    cells = wide.to(embedding.dtype).flatten(2).transpose(1, 2)
    return torch.cat([embedding[:, :1], cells], dim=1)


def check_vit(model: VisionTransformer, name: str) -> None:
    """Refuse a ViT with parts that MMSegmentation's has not.

    Args:
        model: timm's.
        name: of the encoder, for the message.

    Raises:
        SpecError: no class token, other tokens beside it, positions of another kind, or a norm
            before the blocks.
    """
    one_class_token = model.cls_token is not None and model.num_prefix_tokens == 1
    placed = model.pos_embed is not None and not model.no_embed_class
    plain = isinstance(model.norm_pre, nn.Identity) and isinstance(model.patch_drop, nn.Identity)
    if not (one_class_token and placed and plain):
        raise SpecError(
            f"encoder {name!r} is no ViT as MMSegmentation has it: one class token, a learned "
            "position for it and every patch, and no norm before the blocks; leave style out."
        )
