"""The encoder families: the one list that the tests, the grid and the docs' table go through."""

from dataclasses import dataclass

import tests.models.tiny_timm  # noqa: F401 - registers its models
import transferseg as ts
from tests.models.cover import pairwise
from transferseg.models import DECODERS


@dataclass(frozen=True)
class Family:
    """Encoders of one kind.

    Attributes:
        tiny: the member that tests run.
        published: the member that the docs describe.
    """

    tiny: str
    published: str


FAMILIES = {
    "resnet": Family("test_resnet", "resnet50"),
    "resnext": Family("tiny_resnext", "resnext50_32x4d"),
    "vgg": Family("tiny_vgg", "vgg16"),
    "vgg_bn": Family("tiny_vgg_bn", "vgg16_bn"),
    "plain": Family("plain", "plain"),
    "vit": Family("test_vit", "vit_base_patch16_224"),
    "deit": Family("tiny_deit_distilled", "deit_base_distilled_patch16_224"),
    "dinov2": Family("tiny_dinov2", "vit_base_patch14_reg4_dinov2"),
    "dinov3": Family("tiny_dinov3", "vit_base_patch16_dinov3"),
    "swin": Family("tiny_swin", "swin_tiny_patch4_window7_224"),
    "swinv2": Family("tiny_swinv2", "swinv2_tiny_window8_256"),
    "hrnet": Family("tiny_hrnet", "hrnet_w18"),
    "convnext": Family("test_convnext", "convnext_tiny"),
    "mobilenetv2": Family("mobilenetv2_035", "mobilenetv2_100"),
    "mobilenetv3": Family("mobilenetv3_small_050", "mobilenetv3_large_100"),
    "efficientnet": Family("test_efficientnet", "efficientnet_b0"),
    "densenet": Family("tiny_densenet", "densenet121"),
    "regnet": Family("tiny_regnet", "regnety_016"),
}

SIZES = [(64, 64), (97, 131), (160, 129)]
#: architecture, family, channels of the image, its size: every model's contract is over these
AXES = (sorted(DECODERS), sorted(FAMILIES), [1, 3, 4], SIZES)


def contract_cases(*, one_map):
    """Cases that hold every pair of values: of architectures that read one map, or the others."""
    cases = pairwise(*AXES)
    return [case for case in cases if (DECODERS[case[0]].reads == (-1,)) == one_map]


#: options that make an architecture small
SMALL = {
    "unet": {"channels": [16, 16, 8, 8, 8]},
    "attention_unet": {"channels": [16, 16, 8, 8, 8]},
    "deeplabv3": {"channels": 16},
    "deeplabv3plus": {"channels": 16},
    "fcn": {"channels": 16},
    "psp": {"channels": 16},
    "psp_smp": {"channels": 16},
    "upernet": {"channels": 16},
    "upernet_smp": {"channels": 16},
}


def small(architecture, encoder="resnet10t", **options):
    """A small model of an architecture over any encoder."""
    given = {"classes": 2, "in_channels": 1, **SMALL[architecture]}
    if "unet" in architecture and encoder == "plain":
        given["channels"] = given["channels"][1:]  # it ends at stride 16
    if DECODERS[architecture].reads is None and ts.encoder_capabilities(encoder).plain is not None:
        given["encoder_options"] = {"channels": 16}  # of the pyramid
    return ts.create_model(architecture, encoder, **{**given, **options})
