"""Modules under the names of self-supervised trainings."""

import torch
from torch import nn


def projector(inside=64):
    return nn.Sequential(nn.Linear(inside, 8), nn.ReLU(), nn.Linear(8, 4))


def maps(net, x):
    """What the last stage of a torchvision ResNet gives, or the last block of timm's ViT."""
    with torch.no_grad():
        if not hasattr(net, "layer4"):
            return net.forward_intermediates(x, indices=[-1], intermediates_only=True)[-1]
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))


class Parts(nn.Module):
    """Modules, and tensors, under the names that a training gives them."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)


def module(state):
    return {f"module.{key}": value for key, value in state.items()}
