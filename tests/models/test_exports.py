"""Some models compiled, exported and run by onnxruntime; `nox -s grid` goes through them all."""

import pytest

from tests.models.contract import example
from tests.models.exports import CHECKS, compiled
from tests.models.families import FAMILIES

CASES = [
    ("exported_size", "unet", "resnet"),
    ("exported_size", "deeplabv3", "vgg"),
    ("onnx_batch", "attention_unet", "vgg"),
    ("onnx_batch", "deeplabv3", "vgg"),
    ("onnx_batch", "deeplabv3plus", "resnet"),
    ("onnx_batch", "fcn", "vgg"),
    ("onnx_batch", "psp", "vgg"),
    ("onnx_batch", "unet", "plain"),
    ("onnx_batch", "upernet", "vgg"),
]


@pytest.mark.parametrize(("check", "architecture", "family"), CASES)
def test_an_exported_model_gives_the_same_logits(check, architecture, family):
    difference, most = CHECKS[check]
    assert difference(example(architecture, FAMILIES[family].tiny)) < most


@pytest.mark.parametrize(("architecture", "family"), [("unet", "resnet"), ("fcn", "vit")])
def test_a_model_is_one_graph_with_equal_logits_and_gradients(architecture, family):
    assert compiled(example(architecture, FAMILIES[family].tiny), backend="aot_eager") < 1e-5
