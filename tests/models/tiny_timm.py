"""Small members of timm's larger families, registered with timm so that they have a name."""

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import _create_deit
from timm.models.densenet import _create_densenet
from timm.models.eva import _create_eva
from timm.models.hrnet import _create_hrnet
from timm.models.regnet import RegNet, RegNetCfg
from timm.models.resnet import Bottleneck, _create_resnet
from timm.models.swin_transformer import _create_swin_transformer
from timm.models.swin_transformer_v2 import _create_swin_transformer_v2
from timm.models.vgg import VGG
from timm.models.vision_transformer import _create_vision_transformer
from torch import nn


def _cfg(side, first_conv="patch_embed.proj", classifier="head"):
    return {
        "input_size": (3, side, side),
        "fixed_input_size": first_conv == "patch_embed.proj",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": classifier,
    }


default_cfgs = generate_default_cfgs(
    {
        "tiny_swin": _cfg(96, classifier="head.fc"),
        "tiny_swinv2": _cfg(96, classifier="head.fc"),
        "tiny_dinov2": _cfg(70),
        "tiny_deit_distilled": _cfg(64, classifier=("head", "head_dist")),
        "tiny_dinov3": _cfg(64),
        "tiny_hrnet": _cfg(64, first_conv="conv1", classifier="classifier"),
        "tiny_resnext": _cfg(64, first_conv="conv1", classifier="fc"),
        "tiny_vgg": _cfg(64, first_conv="features.0", classifier="head.fc"),
        "tiny_vgg_bn": _cfg(64, first_conv="features.0", classifier="head.fc"),
        "tiny_densenet": _cfg(64, first_conv="features.conv0", classifier="classifier"),
        "tiny_regnet": _cfg(64, first_conv="stem.conv", classifier="head.fc"),
    }
)

SWIN = {
    "embed_dim": 16,
    "depths": (2, 2, 2, 2),
    "num_heads": (1, 2, 2, 4),
    "window_size": 3,
}


@register_model
def tiny_swin(pretrained=False, **kwargs):
    return _create_swin_transformer("tiny_swin", pretrained, **SWIN | kwargs)


@register_model
def tiny_swinv2(pretrained=False, **kwargs):
    given = SWIN | {"pretrained_window_sizes": (3, 3, 3, 3)} | kwargs
    return _create_swin_transformer_v2("tiny_swinv2", pretrained, **given)


VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2}


@register_model
def tiny_dinov2(pretrained=False, **kwargs):
    given = VIT | {"patch_size": 14, "init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}
    return _create_vision_transformer("tiny_dinov2", pretrained, **given | kwargs)


@register_model
def tiny_deit_distilled(pretrained=False, **kwargs):
    given = VIT | {"patch_size": 16}
    return _create_deit("tiny_deit_distilled", pretrained, distilled=True, **given | kwargs)


@register_model
def tiny_dinov3(pretrained=False, **kwargs):
    """Rotary positions, no grid of them; register tokens; layer scale."""
    rotary = {"use_rot_pos_emb": True, "rope_type": "dinov3", "rope_rotate_half": True}
    given = VIT | rotary | {"patch_size": 16, "use_abs_pos_emb": False, "num_reg_tokens": 4}
    given |= {"init_values": 1e-5, "qkv_bias": False, "use_fc_norm": False}
    return _create_eva("tiny_dinov3", pretrained, **given | kwargs)


@register_model
def tiny_resnext(pretrained=False, **kwargs):
    given = {"block": Bottleneck, "layers": (1, 1, 1, 1), "cardinality": 4, "base_width": 16}
    return _create_resnet(
        "tiny_resnext", pretrained, **given | {"channels": (16, 32, 48, 64)} | kwargs
    )


def _tiny_vgg(name, pretrained, **kwargs):
    layers = [8, "M", 16, "M", 16, 16, "M", 24, "M", 32, "M"]
    features = {"flatten_sequential": True, "out_indices": (0, 1, 2, 3, 4, 5)}
    return build_model_with_cfg(
        VGG, name, pretrained, model_cfg=layers, feature_cfg=features, **kwargs
    )


@register_model
def tiny_vgg(pretrained=False, **kwargs):
    return _tiny_vgg("tiny_vgg", pretrained, **kwargs)


@register_model
def tiny_vgg_bn(pretrained=False, **kwargs):
    return _tiny_vgg("tiny_vgg_bn", pretrained, norm_layer=nn.BatchNorm2d, **kwargs)


@register_model
def tiny_densenet(pretrained=False, **kwargs):
    given = {"growth_rate": 8, "block_config": (2, 2, 2, 2), "pretrained": pretrained}
    return _create_densenet("tiny_densenet", **given | kwargs)


@register_model
def tiny_regnet(pretrained=False, **kwargs):
    layout = RegNetCfg(depth=5, w0=8, wa=8, wm=1.6, group_size=8, se_ratio=0.25)
    return build_model_with_cfg(RegNet, "tiny_regnet", pretrained, model_cfg=layout, **kwargs)


def _stage(modules, block, blocks, channels):
    return {
        "num_modules": modules,
        "num_branches": len(channels),
        "block_type": block,
        "num_blocks": (blocks,) * len(channels),
        "num_channels": channels,
        "fuse_method": "SUM",
    }


@register_model
def tiny_hrnet(pretrained=False, **kwargs):
    stages = {
        "stem_width": 16,
        "stage1": _stage(1, "BOTTLENECK", 1, (8,)),
        "stage2": _stage(1, "BASIC", 1, (4, 8)),
        "stage3": _stage(1, "BASIC", 1, (4, 8, 16)),
        "stage4": _stage(2, "BASIC", 1, (4, 8, 16, 32)),
    }
    return _create_hrnet("tiny_hrnet", pretrained, cfg_variant="hrnet_w18_small", **stages | kwargs)
