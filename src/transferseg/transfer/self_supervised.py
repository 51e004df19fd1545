"""Names of self-supervised trainings: which of their networks is the encoder, and what is beside.

Of the pair that most of them train the network that gradients reach is taken, as their authors do
for transfer, except the teacher of DINO and DINOv2, which is what their authors evaluate. `entry=`
takes the other one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transferseg.transfer.adapters import Adapter
from transferseg.transfer.resampling import REGISTERS_PLACED, RegisterPositions

PAIR = "the other network of the pair, which entry= takes by its prefix"
PROJECTOR = "the projection head, which serves the self-supervised loss alone"
PREDICTOR = "the prediction head, which serves the self-supervised loss alone"
QUEUE = "embeddings of earlier images, for the contrastive loss"
PROTOTYPES = "prototypes, for the self-supervised loss"
PROBE = "a linear classifier trained beside it"
STATISTICS = "statistics of the self-supervised loss"
DECODER = "the decoder of masked training"
TOKEN = "the token of masked training"

#: The numbers of the children of a torchvision ResNet -> their names.
CHILDREN = {r"^{}0\.": "conv1.", r"^{}1\.": "bn1."} | {
    rf"^{{}}{stage + 3}\.": f"layer{stage}." for stage in range(1, 5)
}


@dataclass(frozen=True)
class Naming:
    """How a kind of training names what it saves.

    Attributes:
        rules: regular expressions on keys -> replacement, as in `SourceFormat`.
        reasons: pattern on keys that go nowhere -> why.
        signs: patterns on keys; a file in which one of each is found is of this kind.
        adapters: pattern on keys -> how such a tensor becomes timm's.
        wants: pattern on keys, or on what is saved beside them ("arch=vit_small") -> arguments
            without which timm's computes something else.
    """

    rules: Mapping[str, str]
    reasons: Mapping[str, str]
    signs: tuple[str, ...] = field(default=())
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    wants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def children(prefix: str) -> dict[str, str]:
    """The rules for `nn.Sequential(*list(resnet.children())[:-1])` under a prefix (a pattern)."""
    return {pattern.format(prefix): name for pattern, name in CHILDREN.items()}


#: Of lightly and solo-learn: heads, copies and banks by whatever name they have there.
BESIDE: Mapping[str, str] = {
    "projection_head.*": PROJECTOR,
    "projector.*": PROJECTOR,
    "prediction_head.*": PREDICTOR,
    "predictor.*": PREDICTOR,
    "backbone_momentum.*": PAIR,
    "projection_head_momentum.*": PAIR,
    "momentum_*": PAIR,
    "prototypes.*": PROTOTYPES,
    "queue*": QUEUE,
    "criterion.memory_bank.*": QUEUE,
    "*memory_bank.bank*": QUEUE,
    "criterion.*": STATISTICS,
    "bn.*": STATISTICS,
    "classifier.*": PROBE,
    "online_classifier.*": PROBE,
    "linear_head.*": PROBE,
}

DINOV2 = {
    r"^backbone\.": "",
    # chunks of blocks, for sharded training: the second number counts through
    r"^blocks\.\d+\.(\d+)\.": r"blocks.\1.",
    r"\.mlp\.w12\.": ".mlp.fc1.",
    r"\.mlp\.w3\.": ".mlp.fc2.",
}
BESIDE_DINOV2 = {
    "mask_token": TOKEN,
    "backbone.mask_token": TOKEN,
    "dino_head.*": PROJECTOR,
    "ibot_head.*": PROJECTOR,
}

#: naming -> its table; a file belongs to the first whose signs are all there.
NAMINGS: Mapping[str, Naming] = {
    "MoCo": Naming(
        {r"^encoder_q\.": ""},
        {"encoder_q.fc.*": PROJECTOR, "encoder_k.*": PAIR, "queue*": QUEUE},
        ("encoder_q.*",),
    ),
    "MoCo v3": Naming(
        {r"^base_encoder\.": ""},
        {
            "base_encoder.fc.*": PROJECTOR,
            "base_encoder.head.*": PROJECTOR,
            "momentum_encoder.*": PAIR,
            "predictor.*": PREDICTOR,
        },
        ("base_encoder.*",),
        # its authors' small ViT has heads 32 wide; its name stands in the files that they write
        wants={"arch=vit_small": {"num_heads": 12}},
    ),
    "MAE": Naming(
        {},
        {"decoder_*": DECODER, "mask_token": TOKEN},
        ("decoder_embed.weight", "mask_token", "blocks.0.*"),
    ),
    "DINOv2 with registers": Naming(
        {**DINOV2, r"^register_tokens$": "reg_token"},
        BESIDE_DINOV2,
        ("*register_tokens", "*blocks.*.ls1.gamma"),
        {"*pos_embed": RegisterPositions()},
        {"*register_tokens": REGISTERS_PLACED},
    ),
    "DINOv2": Naming(DINOV2, BESIDE_DINOV2, ("*mask_token", "*blocks.*.ls1.gamma")),
    "DINO": Naming(
        {r"^backbone\.": ""},
        {"head.mlp.*": PROJECTOR, "head.last_layer.*": PROJECTOR},
        ("head.last_layer.*",),
    ),
    "lightly": Naming(children(r"backbone\."), BESIDE, ("backbone.0.weight", "backbone.4.0.*")),
    "lightly DINO": Naming(
        children(r"teacher_backbone\."),
        {"student_head.*": PROJECTOR, "teacher_head.*": PROJECTOR, "student_backbone.*": PAIR,
         "criterion.*": STATISTICS},
        ("teacher_backbone.4.0.*",),
    ),
    "children of a ResNet": Naming(children(""), {}, ("0.weight", "4.0.conv1.weight")),
    "SimSiam": Naming(
        {r"^encoder\.": ""},
        {"encoder.fc.*": PROJECTOR, "predictor.*": PREDICTOR},
        ("encoder.conv1.weight", "encoder.fc.0.*", "predictor.*"),
    ),
    "SwAV": Naming(
        {}, {"projection_head.*": PROJECTOR, "prototypes.*": PROTOTYPES},
        ("conv1.weight", "projection_head.*"),
    ),
    # solo-learn's; VICReg's, Barlow Twins' and BYOL's own files have the same names
    "solo-learn": Naming(
        {r"^(?:backbone|encoder)\.": ""},
        BESIDE,
        ("backbone.*.weight", "proj*.*"),
    ),
}  # fmt: skip
