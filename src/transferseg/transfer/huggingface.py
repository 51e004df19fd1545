"""Hugging Face transformers' names of the families that timm has too, as timm's.

Its files keep the names of its first versions; a state dict of its version 5 in memory has newer
ones (`q_proj` for `attention.query`), which are read too. Query, key and value are three tensors
there, one in timm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transferseg.transfer.adapters import Adapter
from transferseg.transfer.resampling import REGISTERS_PLACED, RegisterPositions

#: What a model with a head, or UPerNet, puts before its backbone's names.
BEGIN = {r"^(?:vit|dinov2(?:_with_registers)?|swin|resnet|convnext)\.": ""}


def attention(theirs: str) -> dict[str, str]:
    """Query, key and value as parts of timm's qkv, and the projection behind them.

    Args:
        theirs: what stands between "attention." and "query", as a pattern.
    """
    rules = {}
    for part, name in enumerate(("query", "key", "value")):
        both = rf"(?:{theirs}\.{name}|{name[0]}_proj)"
        rules[rf"\.attention\.{both}\.(weight|bias)$"] = rf".attn.qkv.\1[{part}/3]"
    return {**rules, r"\.attention\.(?:output\.dense|o_proj)\.": ".attn.proj."}


#: Of ViT and Swin: norms and the two linear layers of a block.
BLOCK = {
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
    r"\.intermediate\.dense\.": ".mlp.fc1.",
    r"\.output\.dense\.": ".mlp.fc2.",
}
#: Of ViT and DINOv2: what is not in a block.
TOKENS = {
    r"^embeddings\.cls_token$": "cls_token",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^(?:encoder\.layer|layers)\.(\d+)\.": r"blocks.\1.",
    r"^layernorm\.": "norm.",
}


def swin() -> dict[str, str]:
    """Swin: the merging that ends a stage there begins the next one in timm."""
    merging = {
        rf"^encoder\.layers\.{stage}\.downsample\.": f"layers.{stage + 1}.downsample."
        for stage in range(3)
    }
    table = "relative_position_bias_table"
    return {
        r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
        r"^embeddings\.norm\.": "patch_embed.norm.",
        **merging,
        r"^encoder\.layers\.": "layers.",
        **attention("self"),
        rf"\.attention\.(?:self|relative_position_bias)\.{table}$": f".attn.{table}",
        **BLOCK,
        r"^layernorm\.": "norm.",
        r"^classifier\.": "head.fc.",
    }


def resnet() -> dict[str, str]:
    """ResNet: stages, layers and convolutions are counted from 0 there."""
    stages = {rf"^encoder\.stages\.{i}\.layers\.": f"layer{i + 1}." for i in range(4)}
    inside = {
        rf"\.layer\.{i}\.{theirs}\.": f".{ours}{i + 1}."
        for i in range(3)
        for theirs, ours in (("convolution", "conv"), ("normalization", "bn"))
    }
    return {
        r"^embedder\.embedder\.convolution\.": "conv1.",
        r"^embedder\.embedder\.normalization\.": "bn1.",
        **stages,
        **inside,
        r"\.shortcut\.convolution\.": ".downsample.0.",
        r"\.shortcut\.normalization\.": ".downsample.1.",
        r"^classifier\.1\.": "fc.",
    }


def convnext() -> dict[str, str]:
    """ConvNeXt."""
    return {
        r"^embeddings\.patch_embeddings\.": "stem.0.",
        r"^embeddings\.layernorm\.": "stem.1.",
        r"^encoder\.stages\.(\d+)\.layers\.": r"stages.\1.blocks.",
        r"^encoder\.stages\.(\d+)\.downsampling_layer\.": r"stages.\1.downsample.",
        r"\.dwconv\.": ".conv_dw.",
        r"\.layernorm\.": ".norm.",
        r"\.pwconv(\d)\.": r".mlp.fc\1.",
        r"\.layer_scale_parameter$": ".gamma",
        r"^layernorm\.": "head.norm.",
        r"^classifier\.": "head.fc.",
    }


def dinov2() -> dict[str, str]:
    """DINOv2: layer scale, and for the largest a SwiGLU whose two halves are one tensor in timm."""
    halves = {
        rf"\.mlp\.{theirs}_proj\.(weight|bias)$": rf".mlp.fc1.\1[{part}/2]"
        for part, theirs in enumerate(("gate", "up"))
    }
    return {
        **TOKENS,
        **attention("attention"),
        r"\.layer_scale(\d)\.lambda1$": r".ls\1.gamma",
        **halves,
        r"\.mlp\.weights_in\.": ".mlp.fc1.",
        r"\.mlp\.(?:weights_out|down_proj)\.": ".mlp.fc2.",
        r"^classifier\.": "head.",
    }


#: family, by its `model_type` -> its rules, in the words of `SourceFormat.rules`.
FAMILIES: Mapping[str, Mapping[str, str]] = {
    "vit": {**BEGIN, **TOKENS, **attention("attention"), **BLOCK, r"^classifier\.": "head."},
    "dinov2": {**BEGIN, **dinov2()},
    "dinov2_with_registers": {
        **BEGIN,
        **dinov2(),
        r"^embeddings\.register_tokens$": "reg_token",
    },
    "swin": {**BEGIN, **swin()},
    "resnet": {**BEGIN, **resnet()},
    "convnext": {**BEGIN, **convnext()},
}
#: family -> pattern on its keys -> how such a tensor becomes timm's.
ADAPTERS: Mapping[str, Mapping[str, Adapter]] = {
    "dinov2_with_registers": {"*embeddings.position_embeddings": RegisterPositions()},
}
#: family -> pattern on its keys -> arguments without which timm's computes something else.
WANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "dinov2_with_registers": {"*embeddings.register_tokens": REGISTERS_PLACED},
}
#: Pattern on keys that go nowhere -> why.
REASONS: Mapping[str, str] = {
    "*pooler.dense.*": "a pooler, which no feature map and no classifier reads",
    "*embeddings.mask_token": "the token of masked training",
    "*relative_position_index": "a table that is computed again",
    "*hidden_states_norms.*": "norms of maps, which a decoder was trained on",
}
