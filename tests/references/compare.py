"""A Segmenter with a reference's weights, and how far its logits are from the reference's."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F

import transferseg as ts
from tests.references.key_weights import build, make_input, read_keys, sha

FOLDER = Path(__file__).parent

#: of timm's resnet18 and resnet50: as narrow as the references', with three convolutions first
NARROW = {"arguments": {"channels": [8, 16, 32, 64], "stem_width": 4, "stem_type": "deep"}}
#: MMSegmentation's names of a ResNet with three convolutions in its stem -> ours
RESNET = {
    r"^backbone\.stem\.7\.": "encoder.model.bn1.",
    r"^backbone\.stem\.": "encoder.model.conv1.",
    r"^backbone\.": "encoder.model.",
    r"^decode_head\.conv_seg\.": "head.",
    r"^auxiliary_head\.convs\.": "auxiliary_head.decoder.convs.",
    r"^auxiliary_head\.conv_seg\.": "auxiliary_head.head.",
}


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


def load(
    name,
    architecture,
    encoder,
    renames,
    encoder_options=NARROW,
    values=None,
    folder=FOLDER,
    **options,
):
    """The network of a reference, every one of its tensors loaded.

    `values`: pattern on our keys -> function of a tensor. Swin's indices, which timm computes, are
    left out, and with `auxiliary=False` the auxiliary head.
    """
    weights = build(read_keys(folder / f"{name}.keys.txt"))
    reference = torch.load(folder / f"{name}.ref.pt", weights_only=True)
    assert sha(weights) == reference["sha256"]
    options |= {"classes": reference["classes"], "encoder_options": encoder_options}
    extra = any(key.startswith("auxiliary_head.") for key in weights)
    options.setdefault("auxiliary", {"channels": 4} if extra else False)
    model = ts.create_model(architecture, encoder, **options)
    state = {}
    for key, value in weights.items():
        if key.startswith("auxiliary_head.") and not options["auxiliary"]:
            continue
        if not key.endswith("relative_position_index"):
            for pattern, replacement in {**RESNET, **renames}.items():
                key = re.sub(pattern, replacement, key)
            for pattern, function in (values or {}).items():
                value = function(value) if re.search(pattern, key) else value
            state[key] = value
    model.load_state_dict(state, strict=True)
    return model.eval(), reference


def difference(model, reference):
    """The largest relative change of the logits, over the runs, before and after the resizing."""
    changes = []
    for run in reference["runs"]:
        height, width = run["hw"]
        step = run["step"]
        image = make_input(run["seed"], (1, 3, height, width))
        with torch.no_grad():
            low = model.head(model.decoder(model.encoder(image), (height, width)))
            full = model(image)
        changes.append(relative(low[..., ::step, ::step], run["logits"]))
        wanted = F.interpolate(
            low, size=(height, width), mode="bilinear", align_corners=reference["align_corners"]
        )
        changes.append(relative(full, wanted))
    return max(changes)
