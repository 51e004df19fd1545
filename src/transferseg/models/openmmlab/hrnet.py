"""MMSegmentation's HRNet: branches that are fused bilinearly, at any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from timm.models.hrnet import HighResolutionModule, HighResolutionNet
from torch import Tensor, nn


class BilinearModule(nn.Module):
    """Branches side by side, then each summed with all others at its size.

    A smaller map is enlarged bilinearly by the branches' ratio and then brought, bilinearly again,
    to the exact size; timm repeats its pixels and asks for sizes that the ratio gives.

    Args:
        module: timm's, of two branches or more; its modules are taken over under their names.

    Source: MMSegmentation's HRModule, with whose weights it computes the same.
    """

    def __init__(self, module: HighResolutionModule) -> None:
        super().__init__()
        self.branches = module.branches
        self.fuse_layers = module.fuse_layers
        self.fuse_act = module.fuse_act
        for layer in self.fuse_layers.modules():
            if isinstance(layer, nn.Upsample):
                layer.mode, layer.align_corners = "bilinear", False

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Maps from large to small -> as many of the same sizes."""
        maps = [branch(given) for branch, given in zip(self.branches, x, strict=True)]
        return [self.fuse_act(self._sum(index, maps)) for index in range(len(maps))]

    def _sum(self, index: int, maps: Sequence[Tensor]) -> Tensor:
        size = maps[index].shape[-2:]
        terms = []
        for other, layer in enumerate(self.fuse_layers[index]):
            term = layer(maps[other])
            if other > index:
                term = F.interpolate(term, size=size, mode="bilinear", align_corners=False)
            terms.append(term)
        total: Tensor = sum(terms[1:], start=terms[0])
        return total


def fuse_bilinearly(model: HighResolutionNet) -> None:
    """Replace the modules of stages 2 to 4 in place; parameters and names stay.

    Args:
        model: timm's HRNet.
    """
    for stage in (model.stage2, model.stage3, model.stage4):
        for index, module in enumerate(stage):
            stage[index] = BilinearModule(module)
