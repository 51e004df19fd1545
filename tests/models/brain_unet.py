"""The U-Net for brain MRI as its authors publish it, under their names: the oracle of ours.

Written from its description (Buda 2019; Khadka's source): four poolings of 2x2, blocks of two
padded 3x3 convolutions without bias, each with batch norm and ReLU, widths doubling from 32;
transposed convolutions of 2x2 that halve them again, the skip after the upsampled path; 1x1 at the
end. The published network ends in a sigmoid; this one gives the logits before it.
"""

import torch
from torch import nn


class BrainUNet(nn.Module):
    def __init__(self, width=32, in_channels=3, out_channels=1):
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        for level in range(1, 5):
            given = in_channels if level == 1 else widths[level - 2]
            setattr(self, f"encoder{level}", block(given, widths[level - 1], f"enc{level}"))
        self.bottleneck = block(widths[3], widths[4], "bottleneck")
        for level in (4, 3, 2, 1):
            wide, narrow = widths[level], widths[level - 1]
            setattr(self, f"upconv{level}", nn.ConvTranspose2d(wide, narrow, 2, stride=2))
            setattr(self, f"decoder{level}", block(wide, narrow, f"dec{level}"))
        self.conv = nn.Conv2d(width, out_channels, 1)

    def forward(self, x):
        skips = []
        for level in range(1, 5):
            x = getattr(self, f"encoder{level}")(x)
            skips.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for level in (4, 3, 2, 1):
            x = torch.cat([getattr(self, f"upconv{level}")(x), skips.pop()], dim=1)
            x = getattr(self, f"decoder{level}")(x)
        return self.conv(x)


def block(given, wanted, name):
    layers = nn.Sequential()
    for index, channels in ((1, given), (2, wanted)):
        convolution = nn.Conv2d(channels, wanted, 3, padding=1, bias=False)
        layers.add_module(f"{name}conv{index}", convolution)
        layers.add_module(f"{name}norm{index}", nn.BatchNorm2d(wanted))
        layers.add_module(f"{name}relu{index}", nn.ReLU())
    return layers


#: its names -> ours, as `transfer_weights` takes it
RENAME = {
    **{rf"encoder{k}\.enc{k}": f"encoder.model.stages.{k - 1}." for k in range(1, 5)},
    r"bottleneck\.bottleneck": "encoder.model.stages.4.",
    **{rf"upconv{k}\.": f"decoder.ups.{4 - k}." for k in range(1, 5)},
    **{
        rf"decoder{k}\.dec{k}{layer}{i}\.": f"decoder.blocks.{4 - k}.conv{i}.{place}."
        for k in range(1, 5)
        for i in (1, 2)
        for layer, place in (("conv", 0), ("norm", 1))
    },
    r"conv\.": "head.",
}
