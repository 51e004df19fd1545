"""Files in OpenMMLab's names: references rebuilt, and models of other libraries renamed."""

import re

import timm
import torch

from tests.references.compare import FOLDER
from tests.references.key_weights import build, read_keys
from transferseg.load.findings import Findings
from transferseg.load.formats import FORMATS
from transferseg.load.listing import Listing

#: timm's names -> OpenMMLab's
RESNETC = {r"^conv1\.(\d)": r"stem.\1", r"^bn1\.": "stem.7."}
TRANSFORMER = {
    r"^patch_embed\.proj\.": "patch_embed.projection.",
    r"\.mlp\.fc1\.": ".ffn.layers.0.0.",
    r"\.mlp\.fc2\.": ".ffn.layers.1.",
}
VIT = {
    **TRANSFORMER,
    r"^norm\.": "ln1.",
    r"\.norm([12])\.": r".ln\1.",
    r"^blocks\.": "layers.",
    r"\.attn\.qkv\.(\w)": r".attn.attn.in_proj_\1",
    r"\.attn\.proj\.": ".attn.attn.out_proj.",
}
SWIN = {
    **TRANSFORMER,
    r"\.attn\.": ".attn.w_msa.",
    r"^layers\.1\.downsample\.": "stages.0.downsample.",
    r"^layers\.2\.downsample\.": "stages.1.downsample.",
    r"^layers\.3\.downsample\.": "stages.2.downsample.",
    r"^layers\.": "stages.",
    r"^norm\.": "norm3.",
}


def renamed(keys, rules, prefix="backbone."):
    """Their keys by ours."""
    names = {}
    for key in keys:
        names[key] = key
        for pattern, replacement in rules.items():
            names[key] = re.sub(pattern, replacement, names[key])
        names[key] = prefix + names[key]
    return names


def reference(name, folder=FOLDER):
    """The weights of a reference and what it computes."""
    weights = build(read_keys(folder / f"{name}.keys.txt"))
    return weights, torch.load(folder / f"{name}.ref.pt", weights_only=True)


def old_file(path, weights, meta=None):
    """What MMSegmentation 0.x saves."""
    torch.save({"meta": {"mmseg_version": "0.30.0", **(meta or {})}, "state_dict": weights}, path)


def described(shapes, meta=None, **asked):
    """What the format makes of names and shapes alone; (description, what was assumed)."""
    listing = Listing("a.pth", shapes, {}, metadata={"meta": meta or {}})
    findings = Findings("a.pth", asked)
    assert FORMATS["mmseg"].detect(listing)
    return FORMATS["mmseg"].describe(listing, findings), findings.assumed


class ResNetV1c(torch.nn.Module):
    """timm's ResNet with three convolutions first, as MMPretrain names it; narrow."""

    def __init__(self, **arguments):
        super().__init__()
        narrow = {"stem_type": "deep", "stem_width": 4, "channels": [8, 16, 32, 64]}
        self.theirs = timm.create_model("resnet18", num_classes=3, **narrow, **arguments)

    def forward(self, x):
        return self.theirs(x)

    def state_dict(self, prefix="backbone.", head="head.fc."):
        state = self.theirs.state_dict()
        names = renamed(state, RESNETC, prefix)
        fc = {key: head + key.removeprefix("fc.") for key in state if key.startswith("fc.")}
        return {{**names, **fc}[key]: value for key, value in state.items()}


class Weights(torch.nn.Module):
    """Tensors that no module of ours holds."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = dict(tensors)

    def state_dict(self):
        return self.tensors
