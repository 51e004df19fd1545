"""Hugging Face transformers' own models, saved by themselves, as the oracle."""

import copy
import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import transferseg as ts
from tests.load.files import fed, image, relative
from tests.models.randomise import randomise
from transferseg.errors import CheckpointError, TransferError
from transferseg.load.formats import FORMATS
from transferseg.load.inspection import examine
from transferseg.load.listing import read_listing
from transferseg.load.loading import build, fill

STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNET = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 1, 1]}
CONVNEXT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
SWIN = {
    "embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 3,
    "image_size": 96,
}  # fmt: skip
VIT = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
DINO = {
    "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def upernet(backbone, **options):
    options = {"hidden_size": 12, "auxiliary_channels": 8, "num_labels": 4} | options
    return hf.UperNetForSemanticSegmentation(hf.UperNetConfig(backbone_config=backbone, **options))


MODELS = {
    "resnet": lambda: hf.ResNetForImageClassification(hf.ResNetConfig(**RESNET, num_labels=3)),
    "basic": lambda: hf.ResNetForImageClassification(
        hf.ResNetConfig(**RESNET, layer_type="basic", num_channels=1, num_labels=3)
    ),
    "convnext": lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(**CONVNEXT)),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT, num_labels=5)),
    "swin": lambda: hf.SwinForImageClassification(hf.SwinConfig(**SWIN, num_labels=2)),
    "upernet_swin": lambda: upernet(hf.SwinConfig(**SWIN, out_features=STAGES)),
    "upernet_convnext": lambda: upernet(
        hf.ConvNextConfig(**CONVNEXT, out_features=STAGES), pool_scales=[1, 2],
        auxiliary_num_convs=2, auxiliary_concat_input=True,
    ),
}  # fmt: skip


def saved(model, folder, **options):
    randomise(model).save_pretrained(folder, **options)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name -> a model and the folder that it saved."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = saved(MODELS[name](), folder), folder
        return made[name]

    return get


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("resnet", [(64, 64), (65, 97)]),
        ("basic", [(63, 64)]),
        ("convnext", [(64, 64), (65, 99)]),
        ("vit", [(32, 32)]),  # it refuses other sizes
        ("swin", [(96, 96), (192, 192), (96, 192), (97, 130)]),
        ("upernet_swin", [(96, 96), (97, 130), (33, 65)]),
        ("upernet_convnext", [(64, 64), (49, 131)]),
    ],
)
def test_equal_logits(name, sides, folders):
    theirs, folder = folders(name)
    ours, report = ts.load_checkpoint(folder)
    assert not [key for key in report.plan.left if not key.endswith("num_batches_tracked")]
    assert report.source_format == "huggingface"
    used = {key for move in report.plan.moves for key in move.sources}
    assert len(used | set(report.plan.unused)) == len(load_file(folder / "model.safetensors"))
    for height, width in sides:
        x = image(ours.spec.input.channels, height, width)
        with torch.no_grad():  # their Swin remembers the maps that it has seen
            assert relative(ours(x), copy.deepcopy(theirs)(x).logits) < 1e-5
    ours.save_pretrained(folder / "ours")
    again, _ = ts.load_checkpoint(folder / "ours")
    with torch.no_grad():
        assert torch.equal(again(x), ours(x))


def test_what_is_joined_is_reported(folders):
    _, folder = folders("vit")
    _, report = ts.load_checkpoint(folder)
    assert "joined 8: each from 3 tensors" in str(report)
    (move,) = (m for m in report.plan.moves if m.target == "encoder.model.blocks.0.attn.qkv.bias")
    assert [key.split(".")[-2] for key in move.sources] == ["query", "key", "value"]
    assert move.source_shape == (96,)
    told = {m["target"]: m for m in report.to_dict()["moves"]}[move.target]
    assert (told["source"], *told["joined"]) == move.sources
    assert [c.fraction for c in report.coverage.values()] == [1.0]


def test_upernet_keeps_its_auxiliary_head(folders):
    for name in ("upernet_swin", "upernet_convnext"):
        theirs, folder = folders(name)
        ours, _ = ts.load_checkpoint(folder)
        x = image(3, 64, 64)
        with torch.no_grad():
            features = theirs.backbone(x).feature_maps
            wanted = theirs.auxiliary_head(features)
            given = ours.auxiliary_head(ours.encoder(x), (64, 64))
        assert relative(given, wanted) < 1e-5


@pytest.mark.parametrize("make", [
    lambda: hf.ViTModel(hf.ViTConfig(**VIT, layer_norm_eps=1e-6)),
    lambda: hf.Dinov2Model(hf.Dinov2Config(**DINO)),
    lambda: hf.Dinov2Backbone(hf.Dinov2Config(**DINO, use_swiglu_ffn=True)),
    lambda: hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(**DINO, num_register_tokens=2)),
])  # fmt: skip
def test_encoders_alone(make, tmp_path):
    theirs = saved(make(), tmp_path)
    info = ts.inspect_checkpoint(tmp_path)
    assert (info.format, info.architecture) == ("huggingface", "encoder")
    with pytest.raises(CheckpointError, match=r"no head.*encoder_options=\{'arguments'"):
        ts.load_checkpoint(tmp_path)
    family = f"transformers {theirs.config.model_type}"
    seen = examine(read_listing(tmp_path), {})
    options = json.loads(seen.info.missing.partition("encoder_options=")[2].replace("'", '"')
                         .replace("True", "true").replace("False", "false"))  # fmt: skip
    options |= {"pyramid": "none", "layers": [0, 3]}
    ours = ts.create_model(
        "fcn", info.encoder, classes=2, output_stride=32, maps=2, weights=tmp_path,
        encoder_options=options,
    ).eval()  # fmt: skip
    side = theirs.config.image_size
    x = image(3, side, side)
    # not their `hidden_states`, of which the last is after the norm in version 4, before it in 5
    wanted = []
    for module in theirs.modules():
        if type(module).__name__ in ("ViTLayer", "Dinov2Layer", "Dinov2WithRegistersLayer"):
            module.register_forward_hook(lambda *given: wanted.append(given[-1]))
    with torch.no_grad():
        theirs(x)
        prefix = 1 + getattr(theirs.config, "num_register_tokens", 0)
        for given, index in zip(ours.encoder(x), (0, 3), strict=True):
            tokens = wanted[index][:, prefix:].transpose(1, 2).reshape(given.shape)
            assert relative(given, tokens) < 1e-5
    report = ts.transfer_weights(tmp_path, ours)
    assert report.source_format == family


def test_backbones_with_maps_alone(tmp_path):
    for make in (
        lambda: hf.ResNetBackbone(hf.ResNetConfig(**RESNET, out_features=STAGES)),
        lambda: hf.ConvNextModel(hf.ConvNextConfig(**CONVNEXT)),
        lambda: hf.SwinModel(hf.SwinConfig(**SWIN)),
    ):
        theirs = saved(make(), tmp_path)
        info = ts.inspect_checkpoint(tmp_path)
        told = info.missing.partition("encoder_options=")[2].replace("'", '"')
        options = json.loads(told.replace("True", "true"))
        ours = ts.create_model(
            "unet", info.encoder, classes=2, weights=tmp_path, encoder_options=options
        ).eval()
        x = image(3, 96, 96)
        with torch.no_grad():
            given = ours.encoder(x)[-1]
            found = theirs(x, output_hidden_states=True)
            last = found.reshaped_hidden_states if hasattr(theirs, "layernorm") and hasattr(
                found, "reshaped_hidden_states") else found.hidden_states  # fmt: skip
            assert relative(given, last[-1]) < 1e-5


def test_shards_bin_files_and_bare_files(folders, tmp_path):
    theirs, folder = folders("vit")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    (tmp_path / "bin").mkdir()
    state = load_file(folder / "model.safetensors")
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "config.json").write_text((folder / "config.json").read_text())
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "memory.pth")  # newer names
    x = image(3, 32, 32)
    for path, asked in (
        ("shards", {}),
        ("bin", {}),
        ("memory.pth", {"num_heads": 4}),
    ):
        ours, _ = ts.load_checkpoint(tmp_path / path, **asked)
        with torch.no_grad():
            assert relative(ours(x), theirs(x).logits) < 1e-5
    info = ts.inspect_checkpoint(tmp_path / "memory.pth")
    assert "num_heads = 1 (convention)" in str(info)
    assert "layer_norm_eps = 1e-12 (convention)" in str(info)


def test_the_processor_and_the_labels_are_taken_from_the_folder(tmp_path):
    config = hf.ViTConfig(**VIT, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    saved(hf.ViTForImageClassification(config), tmp_path)
    assert ts.inspect_checkpoint(tmp_path).spec.input.mean == (0.5, 0.5, 0.5)
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    info = ts.inspect_checkpoint(tmp_path)
    assert (info.spec.input.mean, info.spec.input.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert info.spec.classes == ("cat", "dog")
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(processor | {"do_normalize": 0 > 1})
    )
    assert ts.inspect_checkpoint(tmp_path).spec.input.std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("resnet", {"downsample_in_bottleneck": True}, "downsample_in_bottleneck=True"),
        ("resnet", {"downsample_in_first_stage": True}, "downsample_in_first_stage=True"),
        ("resnet", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("vit", {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("vit", {"model_type": "beit"}, "transformers' beit"),
    ],
)
def test_what_computes_something_else_is_refused_by_name(name, changes, why, folders, tmp_path):
    _, folder = folders(name)
    config = json.loads((folder / "config.json").read_text()) | changes
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{why}.*is not read"):
        ts.load_checkpoint(tmp_path)


def test_models_that_are_not_built_are_named(tmp_path):
    for make, why in (
        (lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**DINO)), "class token beside"),
        (lambda: hf.SwinForImageClassification(
            hf.SwinConfig(**SWIN, use_absolute_embeddings=True)), "use_absolute_embeddings=True"),
        (lambda: upernet(hf.ResNetConfig(**RESNET, out_features=STAGES)), "UPerNet over"),
        (lambda: hf.Dinov2WithRegistersForImageClassification(
            hf.Dinov2WithRegistersConfig(**DINO, num_register_tokens=2)), "class token beside"),
    ):  # fmt: skip
        saved(make(), tmp_path)
        with pytest.raises(CheckpointError, match=f"huggingface.*{why}"):
            ts.load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda s, k: {n: v for n, v in s.items() if n != k},
         r"qkv\.weight' is made of 3 tensors, but there are .*query.*value"),
        (lambda s, k: {n.replace("attention.key", "attention.clef") if n == k else n: v
                       for n, v in s.items()}, r"qkv\.weight' is made of 3 tensors"),
        (lambda s, k: {**s, k: s[k][:, :5]}, r"cannot be joined: their shapes are"),
        (lambda s, k: {**s, k: s[k][:5]}, r"query\.weight' is \(69, 32\), .* is \(96, 32\)"),
        (lambda s, k: {**s, "vit.blocks.1.attn.qkv.weight": torch.zeros(96, 32)},
         r"qkv\.weight' is made of"),
        (lambda s, k: {**s, "vit.layers.1.attention.k_proj.weight": s[k]},
         r"two source keys become one: .*key\.weight.*k_proj"),
        (lambda s, k: {**s, k: s[k] * float("nan")}, r"holds NaN"),
    ],
)  # fmt: skip
def test_parts_that_make_no_tensor_are_refused_by_name(change, names, folders):
    _, folder = folders("vit")
    seen = examine(read_listing(folder), {})
    target = build(seen.info.spec)
    before = fed(target)
    key = "vit.encoder.layer.1.attention.attention.key.weight"
    state = change(load_file(folder / "model.safetensors"), key)
    naming = FORMATS["huggingface"].naming(seen.listing, seen.info.spec)
    with pytest.raises(TransferError, match=names):
        fill(target, state, naming, seen.info)
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


@pytest.mark.parametrize("name", ["upernet_swin", "resnet"])
def test_half_a_file_and_a_wrong_prefix_are_refused(name, folders, tmp_path):
    _, folder = folders(name)
    state = load_file(folder / "model.safetensors")
    half = dict(sorted(state.items())[: len(state) // 2])
    for broken in (half, {f"wrong.{key}": value for key, value in state.items()}):
        torch.save(broken, tmp_path / "a.pth")
        with pytest.raises((CheckpointError, TransferError)):
            ts.load_checkpoint(tmp_path / "a.pth")
