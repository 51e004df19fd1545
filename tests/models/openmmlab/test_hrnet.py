"""HRNet in MMSegmentation's style, against what that library computes."""

import timm
import torch

import transferseg as ts
from tests.references.compare import difference, load
from tests.references.names import FCN
from transferseg.models import Encoder, encoder_capabilities


def stage(modules, block, channels, blocks=2):
    return {
        "num_modules": modules,
        "num_branches": len(channels),
        "block_type": block,
        "num_blocks": [blocks] * len(channels),
        "num_channels": channels,
        "fuse_method": "SUM",
    }


NARROW = {
    "stage1": stage(1, "BOTTLENECK", [8]),
    "stage2": stage(1, "BASIC", [4, 8]),
    "stage3": stage(3, "BASIC", [4, 8, 16]),
    "stage4": stage(2, "BASIC", [4, 8, 16, 32]),
}
MMSEG = {"style": "mmseg", "arguments": NARROW}
HEAD = {"num_convs": 1, "kernel_size": 1, "concat": False, "dropout": 0.0}


def test_fcn_over_hrnet_equals_mmsegmentations():
    model, reference = load("tiny_fcn_hr", "fcn", "hrnet_w18", FCN, MMSEG, channels=60, **HEAD)
    assert difference(model, reference) < 1e-5


def test_fusing_as_timm_does_is_another_network():
    options = {"arguments": NARROW}
    model, reference = load("tiny_fcn_hr", "fcn", "hrnet_w18", FCN, options, channels=60, **HEAD)
    assert difference(model, reference) > 0.01


def test_odd_sizes_are_not_padded():
    found = encoder_capabilities("hrnet_w18", NARROW, style="mmseg")
    assert (found.multiple, found.channels, found.parallel) == (1, (4, 8, 16, 32), True)
    encoder = Encoder("hrnet_w18", options=MMSEG).eval()
    sizes = [tuple(f.shape[-2:]) for f in encoder(torch.randn(1, 3, 97, 131))]
    assert sizes == [(25, 33), (13, 17), (7, 9), (4, 5)]
    assert encoder_capabilities("hrnet_w18", NARROW).multiple == 32


def test_the_weights_are_timms():
    theirs = timm.create_model("hrnet_w18", **NARROW)
    model = ts.create_model("fcn", "hrnet_w18", classes=2, encoder_options=MMSEG)
    report = ts.transfer_weights(theirs, model)
    report.raise_if_below(encoder=1.0)
    unused = {key.split(".")[0] for key in report.plan.unused}
    assert unused == {"incre_modules", "downsamp_modules", "final_layer", "classifier"}
