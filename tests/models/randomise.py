"""Weights that let no branch be silent (timm zeroes residual norms; new norms are the identity)."""

import torch


def randomise(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            if value.ndim > 1:
                fan_in = value[0].numel()
                value.normal_(std=(2 / fan_in) ** 0.5, generator=generator)
            elif key.endswith(("running_mean", "bias")):
                value.normal_(std=0.1, generator=generator)
            else:
                value.uniform_(0.5, 1.5, generator=generator)
    return module.eval()
