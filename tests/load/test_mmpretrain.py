"""Classifiers and backbones as mmpretrain saves and computes them; its Swin stands by itself."""

import re
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional

import transferseg as ts
from tests.load.files import assert_equal_logits, image, randomise, relative
from tests.load.openmmlab import ResNetV1c, renamed
from transferseg.errors import CheckpointError, TransfersegError
from transferseg.load.findings import Findings
from transferseg.load.formats import FORMATS
from transferseg.load.listing import Listing


@pytest.mark.parametrize("arguments", [{}, {"avg_down": True}])
@pytest.mark.parametrize(("prefix", "head"), [("backbone.", "head.fc."), ("", "fc.")])
def test_a_resnet_with_three_convolutions_first(arguments, prefix, head, tmp_path):
    theirs = randomise(ResNetV1c(**arguments))
    meta = {"dataset_meta": {"classes": ["cat", "dog", "cow"]}}
    state = theirs.state_dict(prefix=prefix, head=head)
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "a.pth")
    model, report = assert_equal_logits(theirs, tmp_path / "a.pth", image(height=65))
    assert report.source_format == "mmpretrain"
    assert not report.plan.unused
    assert model.spec.classes == ("cat", "dog", "cow")
    assert model.spec.input.value_range == (0.0, 255.0)


def test_a_resnet_in_torchvisions_names(tmp_path):
    net = torchvision.models.resnet
    theirs = randomise(net.ResNet(net.BasicBlock, [1, 1, 1, 1], num_classes=4))
    names = {k: f"head.{k}" if k.startswith("fc.") else f"backbone.{k}" for k in
             theirs.state_dict()}  # fmt: skip
    state = {names[key]: value for key, value in theirs.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    assert_equal_logits(theirs, tmp_path / "a.pth", image())


def test_a_backbone_alone_is_an_encoder(tmp_path):
    theirs = randomise(ResNetV1c())
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("head.")}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    info = ts.inspect_checkpoint(tmp_path / "a.pth")
    assert (info.format, info.architecture, info.encoder) == ("mmpretrain", "encoder", "resnet18")
    with pytest.raises(CheckpointError, match="holds the encoder 'resnet18' and no head"):
        ts.load_checkpoint(tmp_path / "a.pth")
    arguments = {"stem_type": "deep", "stem_width": 4, "channels": [8, 16, 32, 64]}
    model = ts.create_model(
        "unet", "resnet18", classes=2, weights=tmp_path / "a.pth",
        encoder_options={"arguments": arguments},
    )  # fmt: skip
    assert torch.equal(model.encoder.model.bn1.weight, theirs.theirs.bn1.weight)


class Attention(nn.Module):
    """mmpretrain.models.utils.MultiheadAttention."""

    def __init__(self, width, heads):
        super().__init__()
        self.qkv, self.proj, self.heads = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            heads,
        )

    def forward(self, x):
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv
        x = ((q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, count, width))


def ffn(width, inside):
    """mmcv's FFN: layers.0.0 and layers.1."""
    first = nn.Sequential(nn.Linear(width, inside), nn.GELU())
    return nn.ModuleDict({"layers": nn.Sequential(first, nn.Linear(inside, width))})


class ViT(nn.Module):
    """mmpretrain.models.backbones.VisionTransformer with its head, from its source."""

    def __init__(self, side, patch, width, depth, heads, pooled):
        super().__init__()
        grid, self.patch, self.side, self.pooled = side // patch, patch, side, pooled
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.backbone = nn.Module()
        self.backbone.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.backbone.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        projection = nn.Conv2d(3, width, patch, patch)
        self.backbone.patch_embed = nn.ModuleDict({"projection": projection})
        self.backbone.layers = nn.ModuleList(
            nn.ModuleDict({"ln1": norm(width), "attn": Attention(width, heads),
                           "ln2": norm(width), "ffn": ffn(width, 3 * width)})
            for _ in range(depth)
        )  # fmt: skip
        self.backbone.add_module("ln2" if pooled else "ln1", norm(width))
        layer = nn.Linear(width, 5)
        layers = {"fc": layer} if pooled else {"layers": nn.ModuleDict({"head": layer})}
        self.head = nn.ModuleDict(layers)

    def forward(self, x):
        net, grid = self.backbone, self.side // self.patch
        x = functional.pad(x, (0, -x.shape[3] % self.patch, 0, -x.shape[2] % self.patch))
        x = net.patch_embed["projection"](x)
        size, x = tuple(x.shape[2:]), x.flatten(2).transpose(1, 2)
        place = net.pos_embed
        if size != (grid, grid):
            cells = place[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
            cells = functional.interpolate(cells, size=size, align_corners=False, mode="bicubic")
            place = torch.cat((place[:, :1], cells.flatten(2).transpose(1, 2)), dim=1)
        x = torch.cat((net.cls_token.expand(len(x), -1, -1), x), dim=1) + place
        for layer in net.layers:
            x = x + layer["attn"](layer["ln1"](x))
            x = x + layer["ffn"]["layers"](layer["ln2"](x))
        if self.pooled:
            return self.head["fc"](net.ln2(x[:, 1:].mean(dim=1)))
        return self.head["layers"]["head"](net.ln1(x)[:, 0])


@pytest.mark.parametrize("pooled", [False, True])
def test_a_vit_at_any_size(pooled, tmp_path):
    theirs = randomise(ViT(48, 16, 64, 3, 2, pooled))
    config = "model = dict(backbone=dict(arch=dict(num_heads=2)))"
    torch.save({"meta": {"config": config}, "state_dict": theirs.state_dict()}, tmp_path / "a.pth")
    # the grid as it is, as many patches in another arrangement, other counts, not filled
    for height, width in ((48, 48), (144, 16), (64, 96), (70, 33)):
        model, report = assert_equal_logits(theirs, tmp_path / "a.pth", image(3, height, width))
    assert "num_heads = 2 (metadata)" in str(report)
    assert model.spec.encoder_options["style"] == "mmpretrain"
    model.save_pretrained(tmp_path / "ours")
    assert_equal_logits(theirs, tmp_path / "ours", image(3, 70, 33))
    if pooled:  # its encoder alone, in their style
        arguments = {k: v for k, v in model.spec.encoder_options["arguments"].items()
                     if k != "global_pool"}  # fmt: skip
        options = {"style": "mmpretrain", "arguments": arguments, "pyramid": "none", "layers": [2]}
        ours = ts.create_classifier(model.spec.encoder, classes=2, encoder_options=options).eval()
        ts.transfer_weights(tmp_path / "a.pth", ours)
        with torch.no_grad():
            x = image(3, 144, 16)
            pool = ours.encoder(x)[-1].mean(dim=(2, 3))
            given = theirs.head["fc"](theirs.backbone.ln2(pool))
            assert relative(given, theirs(x)) < 1e-5


@pytest.mark.parametrize("neck", ["neck.", "neck.0."])  # one neck, or the first of a list
def test_an_hrnet_with_its_neck(neck, tmp_path):
    stages = {
        f"stage{k}": {"num_modules": 1, "num_branches": k, "block_type": "BASIC",
                      "num_blocks": [1] * k, "num_channels": [8 * 2**i for i in range(k)],
                      "fuse_method": "SUM"}
        for k in (2, 3, 4)
    }  # fmt: skip
    theirs = randomise(
        timm.create_model("hrnet_w18", num_classes=3, head_conv_bias=False, **stages)
    )
    places = {
        r"^incre_modules\.": f"{neck}increase_layers.",
        r"^downsamp_modules\.(\d)\.0\.": rf"{neck}downsample_layers.\1.conv.",
        r"^downsamp_modules\.(\d)\.1\.": rf"{neck}downsample_layers.\1.bn.",
        r"^final_layer\.0\.": f"{neck}final_layer.conv.",
        r"^final_layer\.1\.": f"{neck}final_layer.bn.",
        r"^classifier\.": "head.fc.",
        r"^(?!neck|head)": "backbone.",
    }
    names = renamed(theirs.state_dict(), places, prefix="")
    state = {names[key]: value for key, value in theirs.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    model, _ = assert_equal_logits(theirs, tmp_path / "a.pth", image(3, 64, 96))
    assert model.spec.encoder_options["arguments"]["head_conv_bias"] is False


def described_vit(width, depth, hidden, patch, said):
    """What is made of a ViT's names and shapes beside a config."""
    block = {
        "ln1.weight": (width,), "ln1.bias": (width,), "ln2.weight": (width,), "ln2.bias": (width,),
        "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
        "ffn.layers.0.0.weight": (hidden, width), "ffn.layers.0.0.bias": (hidden,),
        "ffn.layers.1.weight": (width, hidden), "ffn.layers.1.bias": (width,),
    }  # fmt: skip
    names = {
        "cls_token": (1, 1, width), "pos_embed": (1, 1 + (224 // patch) ** 2, width),
        "patch_embed.projection.weight": (width, 3, patch, patch),
        "patch_embed.projection.bias": (width,), "ln1.weight": (width,), "ln1.bias": (width,),
        **{f"layers.{i}.{key}": shape for i in range(depth) for key, shape in block.items()},
    }  # fmt: skip
    shapes = {f"backbone.{key}": shape for key, shape in names.items()}
    shapes |= {"head.layers.head.weight": (5, width), "head.layers.head.bias": (5,)}
    meta = {"meta": {"cfg": f"model = dict({said})"}}
    return FORMATS["mmpretrain"].describe(
        Listing("a.pth", shapes, {}, metadata=meta), Findings("a.pth")
    )


@pytest.mark.parametrize(
    ("sizes", "said", "heads"),
    [
        ((384, 12, 1536, 16), "", None),  # timm's 6
        ((384, 12, 1536, 16), "backbone=dict(arch='deit-small')", None),
        ((384, 12, 1536, 16), "backbone=dict(type='MoCoV3ViT', arch='mocov3-small')", 12),
        ((768, 8, 2304, 16), "", 8),
        ((1280, 32, 5120, 14), "", 16),
        ((1408, 40, 6144, 14), "backbone=dict(arch='eva-g')", 16),
    ],
)
def test_the_heads_of_the_published_sizes(sizes, said, heads):
    found = described_vit(*sizes, said)
    assert found.spec.encoder_options.get("arguments", {}).get("num_heads") == heads
    with torch.device("meta"):  # and it has the shapes of the file
        model = ts.load.loading.build(found.spec)
    assert model.encoder.model.blocks[0].mlp.fc1.weight.shape == (sizes[2], sizes[0])


@pytest.mark.parametrize(
    ("head", "mode"),
    [("MultiLabelLinearClsHead", "multilabel"), ("mmpretrain.MultiLabelClsHead", "multilabel"),
     ("LinearClsHead", "multiclass")],
)  # fmt: skip
def test_the_mode_that_the_config_s_head_says(head, mode, tmp_path):
    said = f"head=dict(type='{head}')"
    assert described_vit(64, 2, 256, 16, said).spec.mode == mode
    theirs = ResNetV1c()
    meta = {"cfg": f"model = dict({said})"}
    torch.save({"meta": meta, "state_dict": theirs.state_dict()}, tmp_path / "a.pth")
    info = ts.inspect_checkpoint(tmp_path / "a.pth")
    assert info.spec.mode == mode
    assert ("mode = 'multilabel' (metadata)" in str(info)) is (mode == "multilabel")


@pytest.mark.parametrize(
    ("extra", "said", "message"),
    [
        ("backbone.pre_norm.weight", "", "its ViT has no backbone.pre_norm.weight"),
        ("backbone.dist_token", "", "its ViT has no backbone.dist_token"),
        ("head.layers.pre_logits.weight", "", "the head of a ViT has no head.layers.pre_logits"),
        ("backbone.ln2.weight", "", "it has both, expected one"),
        ("", "out_type='featmap'", "out_type='featmap' of the backbone, which is not built"),
        ("", "norm_cfg=dict(type='LN', eps=1e-5)", "eps must be 1e-6"),
    ],
)
def test_what_timms_vit_has_not_is_refused_by_name(extra, said, message):
    shapes = {key: tuple(value.shape) for key, value in ViT(32, 16, 64, 1, 1, False)
              .state_dict().items()}  # fmt: skip
    meta = {"meta": {"config": f"model = dict(backbone=dict({said}))"}}
    listing = Listing("a.pth", {**shapes, **({extra: (64,)} if extra else {})}, {}, metadata=meta)
    found = FORMATS["mmpretrain"].describe(listing, Findings("a.pth"))
    assert (found.spec, message in found.missing) == (None, True), found.missing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {f"net.{k}": v for k, v in s.items()}, r"net\.backbone\.stem\.0\.weight"),
        (lambda s: dict(list(s.items())[::2]), r"there is no backbone\.|get nothing: .*encoder"),
        (
            lambda s: {k: v.transpose(0, 1) if "layer2.0.conv1" in k else v for k, v in s.items()},
            r"backbone\.layer2\.0\.conv1\.weight",
        ),
        (lambda s: {**s, "neck.w": torch.zeros(1)}, r"go nowhere: neck\.w"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_its_keys(change, message, tmp_path):
    torch.save({"state_dict": change(ResNetV1c().state_dict())}, tmp_path / "a.pth")
    with pytest.raises(TransfersegError) as raised:
        ts.load_checkpoint(tmp_path / "a.pth")
    assert re.search(message, str(raised.value))
