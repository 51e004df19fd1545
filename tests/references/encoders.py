"""timm encoders as narrow as the references'; importing this module registers them with timm."""

from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

default_cfgs = {
    name: {"first_conv": "conv1.0", "classifier": "fc"}
    for name in ("narrow_resnet18c", "narrow_resnet50c")
}


def narrow(name, pretrained, block, layers, **options):
    return build_model_with_cfg(
        ResNet,
        name,
        pretrained,
        block=block,
        layers=layers,
        channels=(8, 16, 32, 64),
        stem_width=4,
        stem_type="deep",
        **options,
    )


@register_model
def narrow_resnet18c(pretrained=False, **options):
    return narrow("narrow_resnet18c", pretrained, BasicBlock, (2, 2, 2, 2), **options)


@register_model
def narrow_resnet50c(pretrained=False, **options):
    return narrow("narrow_resnet50c", pretrained, Bottleneck, (3, 4, 6, 3), **options)
