"""Files of MMSegmentation that are not whole, or of a network that is not built, are refused."""

import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transferseg as ts
from tests.load.openmmlab import described, old_file, reference
from transferseg.errors import TransfersegError

from .test_mmseg import TINY, shapes


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        ("fcn_r18", "backbone=dict(style='caffe')", "style='caffe' of the backbone"),
        ("fcn_r18", "backbone=dict(multi_grid=(1, 2, 4))", r"multi_grid=\[1, 2, 4\]"),
        ("fcn_r18", "decode_head=dict(dilation=6)", "dilation=6 of the decode_head"),
        ("fcn_r50", "backbone=dict(strides=(1, 1, 1, 1))", r"says strides \[1, 1, 1, 1\]"),
        ("upernet_deit", "backbone=dict(interpolate_mode='bilinear')", "interpolate_mode"),
        ("upernet_deit", "backbone=dict(norm_cfg=dict(type='LN'))", "eps must be 1e-6"),
        ("upernet_vit_mln", "neck=dict(scales=[2, 1, 1, 1])", r"scales=\[2, 1, 1, 1\]"),
    ],
)
def test_what_the_config_says_and_is_not_built_is_refused(name, said, message):
    found = shapes(f"tiny_{name}")
    assert not described(found)[0].missing
    description, _ = described(found, {"config": f"model = dict({said})"})
    assert description.spec is None
    assert re.search(message, description.missing)


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("fcn_r18", "decode_head.nl_block.g.conv.weight", "has no decode_head.nl_block.g"),
        ("fcn_r18", "backbone.layer1.0.conv2.conv_offset.weight", "has no backbone.layer1.0.conv2"),
        ("fcn_r18", "neck.fpn_convs.0.conv.weight", "over this backbone has no neck.fpn"),
        ("upernet_vit_mln", "neck.fpn_convs.0.conv.weight", "its neck has no neck.fpn_convs"),
        ("upernet_swin", "backbone.absolute_pos_embed", "its Swin has no backbone.absolute"),
        ("fcn_hr", "ema.weight", "such a network has no ema.weight"),
        ("unet_s5_d16_fcn", "backbone.decoder.4.conv_block.convs.0.conv.weight", "its U-Net"),
    ],
)
def test_tensors_of_other_networks_are_refused_by_name(name, extra, message):
    description, _ = described({**shapes(f"tiny_{name}"), extra: (4, 4, 1, 1)})
    assert (description.spec, message in description.missing) == (None, True)


def test_heads_and_backbones_of_other_kinds_are_refused_by_name():
    head = {k: s for k, s in shapes("tiny_fcn_r18").items() if not k.startswith("decode_head.")}
    cascade = {**head, "decode_head.1.object_context_block.query.weight": (4, 4, 1, 1)}
    said = {"config": "model = dict(decode_head=dict(type='OCRHead'))"}
    description, _ = described(cascade, said)
    assert "(OCRHead) is none of upernet, deeplabv3plus, " in description.missing
    assert "decode_head.1.object_context" in description.missing
    fcn = {k: s for k, s in shapes("tiny_fcn_r18").items() if k.startswith("decode_head.")}
    description, _ = described({**fcn, "backbone.layers.0.0.conv.weight": (4, 4, 3, 3)})
    assert "backbone.layers.0.0.conv.weight" in description.missing
    psp = {k: s for k, s in shapes("tiny_psp_r18").items() if k.startswith("decode_head.")}
    unet = {k: s for k, s in shapes("tiny_unet_s5_d16_fcn").items() if k.startswith("backbone.")}
    assert "'psp' over U-Net is not built" in described({**unet, **psp})[0].missing
    description, _ = described({**head, **fcn, "decode_head.convs.0.conv.weight": (12, 32, 3, 3)})
    assert "decode_head.convs.0.conv.weight reads 32 channels" in description.missing


@given(data=st.data(), name=st.sampled_from(TINY))
@settings(max_examples=60, deadline=None)
def test_no_names_and_shapes_are_a_surprise(data, name):
    """Tensors lost, and of other shapes: a description or one of our errors, nothing else."""
    given_shapes = shapes(name)
    keys = [key for key in given_shapes if not key.endswith(("running_mean", "bias"))]
    for key in data.draw(st.lists(st.sampled_from(keys), max_size=4)):
        given_shapes.pop(key, None)
    for key in data.draw(st.lists(st.sampled_from(keys), max_size=4)):
        given_shapes[key] = data.draw(st.lists(st.integers(0, 70), max_size=5).map(tuple))
    with contextlib.suppress(TransfersegError):
        description, _ = described(given_shapes)
        assert (description.spec is None) == bool(description.missing)


def halved(weights):
    return dict(list(weights.items())[::2])


def transposed(key):
    return lambda weights: {k: v.transpose(0, 1) if k == key else v for k, v in weights.items()}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fcn_r18", lambda w: {f"net.{k}": v for k, v in w.items()}, r"net\.backbone\.stem"),
        ("fcn_r18", halved, r"get nothing: .*encoder\.model"),
        ("fcn_r18", transposed("backbone.layer3.0.conv1.weight"), r"backbone\.layer3\.0\.conv1"),
        ("fcn_r18", transposed("decode_head.convs.0.conv.weight"), r"decode_head\.convs\.0\.conv"),
        ("upernet_swin", halved, r"there is no decode_head\.fpn_bottleneck\.conv\.weight"),
        (
            "upernet_swin",
            transposed("backbone.stages.1.downsample.reduction.weight"),
            r"backbone\.stages\.1\.downsample\.reduction\.weight",
        ),
        ("upernet_swin", transposed("backbone.stages.0.blocks.0.ffn.layers.0.0.weight"), r"mlp"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_its_keys(name, change, message, tmp_path):
    old_file(tmp_path / "a.pth", change(reference(f"tiny_{name}")[0]))
    with pytest.raises(TransfersegError, match=message):
        ts.load_checkpoint(tmp_path / "a.pth")
