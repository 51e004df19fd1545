"""Swin as mmpretrain saves and computes it."""

import itertools

import pytest
import timm
import torch
from timm.models.swin_transformer import window_partition, window_reverse
from torch import nn
from torch.nn import functional

import transferseg as ts
from tests.load.files import assert_equal_logits, image, randomise
from tests.load.openmmlab import SWIN, renamed
from transferseg.errors import CheckpointError
from transferseg.transfer.openmmlab import merging_as_mmseg

SWIN_NARROW = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}


def swin_file(whole, path, **more):
    names = renamed(whole.state_dict(), SWIN)
    state = {
        names[key].replace("backbone.head.", "head."): (
            merging_as_mmseg(value) if ".downsample." in key else value
        )
        for key, value in whole.state_dict().items()
    }
    torch.save({"state_dict": {**state, **more}}, path)


def test_a_swin_is_taken_as_an_encoder(tmp_path):
    whole = randomise(timm.create_model("swin_tiny_patch4_window7_224", **SWIN_NARROW))
    swin_file(whole, tmp_path / "a.pth", **{"rpn_head.weight": torch.ones(1)})
    with pytest.raises(
        CheckpointError, match=r"this is a Swin beside rpn_head\.weight; its encoder.*weights=path"
    ):
        ts.load_checkpoint(tmp_path / "a.pth")
    swin_file(whole, tmp_path / "a.pth")
    model = ts.create_model(
        "fcn", "swin_tiny_patch4_window7_224", classes=2, weights=tmp_path / "a.pth",
        encoder_options={"arguments": {k: list(v) if isinstance(v, tuple) else v
                                       for k, v in SWIN_NARROW.items()}},
    )  # fmt: skip
    own = model.encoder.model.state_dict()
    assert own
    for key, value in own.items():
        assert torch.equal(value, whole.state_dict()[key])


class Swin(nn.Module):
    """ShiftWindowMSA's way around timm's windows, and Unfold's order, from mmpretrain's source."""

    def __init__(self, window):
        super().__init__()
        sizes = {**SWIN_NARROW, "window_size": window, "always_partition": True}
        name = "swin_tiny_patch4_window7_224"
        self.theirs = timm.create_model(name, num_classes=3, img_size=128, **sizes)
        self.window = window

    def attend(self, attn, x, shift):
        (_, height, width, channels), window = x.shape, self.window
        shift = 0 if min(height, width) == window else shift
        x = functional.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        down, across = x.shape[1], x.shape[2]
        x, mask = torch.roll(x, (-shift, -shift), (1, 2)), None
        if shift:
            label = torch.zeros(1, down, across, 1)
            slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
            for count, (rows, columns) in enumerate(itertools.product(slices, slices)):
                label[:, rows, columns] = count
            label = window_partition(label, (window, window)).flatten(1)
            mask = (label[:, None] != label[:, :, None]) * -100.0
        parts = window_partition(x, (window, window)).reshape(-1, window * window, channels)
        x = attn(parts, mask=mask).view(-1, window, window, channels)
        x = torch.roll(window_reverse(x, (window, window), down, across), (shift, shift), (1, 2))
        return x[:, :height, :width]

    def forward(self, x):
        net = self.theirs
        x = functional.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
        x = net.patch_embed.norm(net.patch_embed.proj(x).permute(0, 2, 3, 1))
        for stage in net.layers:
            if not isinstance(stage.downsample, nn.Identity):
                x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
                size = x.shape[1] // 2, x.shape[2] // 2
                x = functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
                norm, order = stage.downsample.norm, merging_as_mmseg
                x = functional.layer_norm(x, norm.normalized_shape, order(norm.weight),
                                          order(norm.bias))  # fmt: skip
                x = functional.linear(x, order(stage.downsample.reduction.weight))
                x = x.unflatten(1, size)
            for index, block in enumerate(stage.blocks):
                x = x + self.attend(block.attn, block.norm1(x), self.window // 2 * (index % 2))
                x = x + block.mlp(block.norm2(x))
        return net.head.fc(net.norm(x).mean(dim=(1, 2)))


@pytest.mark.parametrize("last", ["norm3", "norm"])  # "norm" before version 2 of its class
def test_a_swin_at_any_size(last, tmp_path):
    theirs = randomise(Swin(4))
    mask = {"backbone.stages.0.blocks.1.attn.attn_mask": torch.zeros(4, 16, 16)}
    swin_file(theirs.theirs, tmp_path / "a.pth", **mask)
    saved = torch.load(tmp_path / "a.pth")["state_dict"]
    saved = {k.replace("backbone.norm3.", f"backbone.{last}."): v for k, v in saved.items()}
    torch.save(saved, tmp_path / "a.pth")
    # the last map one window, one side of it, maps that windows do not fill, odd maps
    for height, width in ((128, 128), (128, 256), (161, 210)):
        model, report = assert_equal_logits(theirs, tmp_path / "a.pth", image(3, height, width))
    assert (report.source_format, model.spec.encoder_options["style"]) == (
        "mmpretrain", "mmpretrain"
    )  # fmt: skip
