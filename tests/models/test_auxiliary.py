"""The auxiliary head: what it reads, whose layout it has, and how its weights travel."""

import pytest
import torch
import torch.nn.functional as F

import tests.models.tiny_timm  # noqa: F401 - registers its models
import transferseg as ts
from tests.models.families import SMALL
from tests.models.randomise import randomise
from tests.models.test_models import ENCODERS
from tests.models.test_psp import NAMES, OPTIONS
from tests.references.compare import FOLDER, load, relative
from tests.references.key_weights import build, make_input, read_keys
from transferseg.errors import SpecError, TransferError
from transferseg.models import freeze, frozen
from transferseg.models.depth import layer_distances
from transferseg.training import layer_decay_groups

ALL = ("encoder", "decoder", "head", "auxiliary_head")
CASES = [
    *(("fcn", encoder, {}) for encoder in ENCODERS if encoder not in ("resnet10t", "vgg11")),
    *((architecture, "resnet10t", {}) for architecture in sorted(SMALL)),
    ("unet", "vgg11", {}),
    ("unet", "plain", {"channels": [8, 8, 8, 8]}),
    ("unet", "test_vit", {}),
    ("psp", "test_vit", {"encoder_options": {"pyramid": "simple"}}),
]


def small(architecture="fcn", encoder="resnet10t", **options):
    options = {"classes": 2, "in_channels": 1, "auxiliary": True, **options}
    return ts.create_model(architecture, encoder, **{**SMALL[architecture], **options})


def image(channels=1, size=(41, 56)):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("architecture", "encoder", "options"), CASES)
def test_the_contract_with_an_auxiliary_head(architecture, encoder, options):
    """Both logits at the image's size, a gradient in all that trains, `forward` the main alone."""
    model = small(architecture, encoder, **options)
    main, auxiliary = model(image(), auxiliary=True)
    assert main.shape == auxiliary.shape == (2, 2, 41, 56)
    (main.square().mean() + auxiliary.square().mean()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.requires_grad for p in model.auxiliary_head.parameters())
    with torch.no_grad():
        assert torch.equal(model.eval()(image()), model(image(), auxiliary=True)[0])


@pytest.mark.parametrize("align_corners", [False, True])
def test_it_is_mmsegmentations_head(align_corners):
    """Layer by layer under MMSegmentation's own names, on the map of `layer3`."""
    name = "tiny_psp_r18_769" if align_corners else "tiny_psp_r18"
    options = {**OPTIONS, "align_corners": align_corners}
    model, _ = load(name, "psp", "resnet18", NAMES, **options)
    weights = build(read_keys(FOLDER / f"{name}.keys.txt"))
    own = {k.removeprefix("auxiliary_head."): v for k, v in weights.items() if "auxiliary" in k}
    batch = make_input(3, (1, 3, 49, 65))
    found = {}
    model.encoder.model.layer3.register_forward_hook(lambda *a: found.update(layer3=a[-1]))
    with torch.no_grad():
        _, ours = model(batch, auxiliary=True)
        x = F.conv2d(found["layer3"], own["convs.0.conv.weight"], padding=1)
        norm = (own[f"convs.0.bn.{part}"] for part in ("running_mean", "running_var"))
        x = F.batch_norm(x, *norm, own["convs.0.bn.weight"], own["convs.0.bn.bias"], eps=1e-5)
        x = F.conv2d(x.relu(), own["conv_seg.weight"], own["conv_seg.bias"])
        assert x.shape[-2:] == (7, 9)  # dilated: a stride of 8
        wanted = F.interpolate(x, (49, 65), mode="bilinear", align_corners=align_corners)
    assert relative(ours, wanted) < 1e-5


def test_what_it_reads():
    def read(encoder, architecture="fcn", **options):
        model = small(architecture, encoder, **options)
        head, channels = model.auxiliary_head, model.encoder.channels
        convolution = head.decoder.convs[0].conv.weight
        assert convolution.shape[1] == sum(channels[index] for index in head.reads)
        return head.reads, convolution.shape[0]

    assert read("resnet10t") == ((3,), 256 // 4)
    assert read("vgg11", "unet") == ((4,), 512 // 4)
    assert read("test_vit") == ((2,), 64 // 4)  # the ViT's own maps: the third of four
    assert read("test_vit", "unet") == ((2,), 256 // 4)  # its pyramid, at stride 16
    assert read("tiny_hrnet")[0] == (0, 1, 2, 3)
    assert read("tiny_hrnet", auxiliary={"index": 2, "channels": 5}) == ((2,), 5)


@pytest.mark.parametrize("corners", [False, True])
def test_all_branches_of_hrnet_are_one_map(corners):
    model = small("fcn", "tiny_hrnet", align_corners=corners).eval()
    head, features = model.auxiliary_head, model.encoder(image())
    size = features[0].shape[-2:]
    whole = [F.interpolate(f, size, mode="bilinear", align_corners=corners) for f in features]
    wanted = head.head(head.decoder.convs(torch.cat(whole, dim=1)))
    torch.testing.assert_close(head(features, (41, 56)), wanted)


def test_options_and_their_defaults():
    options = {"num_convs": 2, "kernel_size": 1, "concat": True, "dropout": 0.3, "channels": 6}
    plain, rich = small(), small(auxiliary=options)
    shapes = {k: tuple(v.shape) for k, v in plain.auxiliary_head.named_parameters()}
    assert shapes == {
        "decoder.convs.0.conv.weight": (64, 256, 3, 3),
        "decoder.convs.0.bn.weight": (64,), "decoder.convs.0.bn.bias": (64,),
        "head.weight": (2, 64, 1, 1), "head.bias": (2,),
    }  # fmt: skip
    assert plain.auxiliary_head.decoder.dropout.p == 0.1
    assert rich.auxiliary_head.decoder.dropout.p == 0.3
    weights = dict(rich.auxiliary_head.decoder.named_parameters())
    assert weights["convs.1.conv.weight"].shape == (6, 6, 1, 1)
    assert weights["concat.conv.weight"].shape == (6, 262, 1, 1)
    without = small(auxiliary=False)
    assert without.auxiliary_head is None
    assert small(auxiliary={}).spec.auxiliary is True
    with pytest.raises(SpecError, match="no auxiliary head; build it with auxiliary=True"):
        without(image(), auxiliary=True)


@pytest.mark.parametrize(
    ("encoder", "options", "message"),
    [
        ("resnet10t", {"auxiliary": {"chanels": 4}}, "Did you mean 'channels'"),
        ("resnet10t", {"auxiliary": {"channels": 0}}, "the auxiliary head: fcn needs channels"),
        ("resnet10t", {"auxiliary": {"channels": "a"}}, "the auxiliary head: .* channels='a'"),
        ("resnet10t", {"auxiliary": {"concat": "no"}}, "must be true or false, got 'no'"),
        ("resnet10t", {"auxiliary": {"index": 5}}, r"index 5, .* 5 map\(s\); .* from -5 to 4"),
        ("resnet10t", {"auxiliary": {"index": True}}, "index True"),
        ("resnet10t", {"auxiliary": "fcn"}, "auxiliary options must be JSON"),
        ("test_vit", {"encoder_options": {"layers": [5]}}, r"index -2, .* 1 map\(s\)"),
    ],
)
def test_heads_that_cannot_be_built(encoder, options, message):
    with pytest.raises(SpecError, match=message):
        small("fcn", encoder, **options)


def test_an_encoder_of_one_map_lets_it_be_read_twice():
    model = small("fcn", "test_vit", encoder_options={"layers": [5]}, auxiliary={"index": -1})
    assert model(image(), auxiliary=True)[1].shape == (2, 2, 41, 56)


def test_only_segmentation_models_have_one():
    for model in (ts.create_classifier("resnet10t", classes=2), ts.create_autoencoder("resnet10t")):
        with pytest.raises(SpecError, match=f"{type(model).__name__} has no auxiliary head"):
            type(model)(model.spec.replace(auxiliary=True))


def test_the_rest_begins_as_it_would_without():
    torch.manual_seed(0)
    without = small(auxiliary=False).state_dict()
    torch.manual_seed(0)
    state = small().state_dict()
    assert all(torch.equal(value, state[key]) for key, value in without.items())
    more = {key for key in state if key not in without}
    assert more
    assert all(key.startswith("auxiliary_head.") for key in more)


def test_a_level_of_a_pyramid_that_it_alone_reads_trains():
    def trained(auxiliary):
        options = {"encoder_options": {"pyramid": "simple"}, "auxiliary": auxiliary}
        levels = small("psp", "test_vit", **options).encoder.pyramid.levels
        return [all(p.requires_grad for p in level.parameters()) for level in levels]

    assert trained(False) == [False, False, False, True]
    assert trained(True) == [False, False, True, True]
    assert trained({"index": 0}) == [True, False, False, True]


def test_saved_and_loaded_it_is_equal(tmp_path):
    model = randomise(small(classes=["a", "b"], auxiliary={"channels": 4, "index": -3}))
    model.save_pretrained(tmp_path)
    loaded = ts.Segmenter.from_pretrained(tmp_path)
    assert loaded.spec == model.spec
    for ours, theirs in zip(
        loaded(image(), auxiliary=True), model(image(), auxiliary=True), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_it_moves_with_its_classes_by_name():
    source = randomise(small(classes=["none", "lung", "heart"]))
    model = small(classes=["none", "heart", "rib"])
    fresh = model.auxiliary_head.head.weight[2].clone()
    report = ts.transfer_weights(source, model, parts=ALL)
    assert report.coverage["encoder"].fraction == report.coverage["decoder"].fraction == 1.0
    head = model.auxiliary_head
    assert torch.equal(head.head.weight[1], source.auxiliary_head.head.weight[2])
    assert torch.equal(head.head.bias[0], source.auxiliary_head.head.bias[0])
    assert torch.equal(head.head.weight[2], fresh)
    moved = source.auxiliary_head.decoder.state_dict()
    assert all(torch.equal(v, moved[k]) for k, v in head.decoder.state_dict().items())
    assert 0.9 < report.coverage["auxiliary_head"].fraction < 1.0


def test_between_models_with_and_without_it():
    with_it, without = randomise(small()), small(auxiliary=False)
    report = ts.transfer_weights(with_it, without, parts=ALL[:3])
    unused = dict(report.plan.unused)
    assert set(unused) == {k for k in with_it.state_dict() if k.startswith("auxiliary_head.")}
    assert set(unused.values()) == {"part 'auxiliary_head' was not asked for"}
    with torch.no_grad():
        assert torch.equal(without.eval()(image()), with_it.eval()(image()))
    with pytest.raises(TransferError, match="the target has no part 'auxiliary_head'"):
        ts.transfer_weights(with_it, without, parts=ALL)
    other = small()
    before = {k: v.clone() for k, v in other.auxiliary_head.state_dict().items()}
    ts.transfer_weights(without, other, parts=ALL[:3])
    assert all(torch.equal(v, before[k]) for k, v in other.auxiliary_head.state_dict().items())
    with pytest.raises(TransferError, match="get nothing: auxiliary_head"):
        ts.transfer_weights(without, other, parts=ALL)


def test_it_is_frozen_and_optimised_as_a_part():
    model = small()
    freeze(model, "auxiliary_head")
    own = [n for n, _ in model.named_parameters() if n.startswith("auxiliary_head.")]
    assert list(frozen(model)) == own
    assert not any(module.training for module in model.train().auxiliary_head.modules())
    groups = layer_decay_groups(model, lr=1.0, layer_decay=0.5)
    last = {id(p) for p in groups[-1]["params"]}
    assert groups[-1]["lr"] == 1.0
    assert {id(p) for p in model.auxiliary_head.parameters()} <= last
    assert not any(name.startswith("auxiliary_head") for name in layer_distances(model))


def test_export_and_compilation_hold_the_main_head_alone():
    model = small("fcn", "plain").eval()
    exported = torch.export.export(model, (image(),))
    own = [node for node in exported.graph.nodes if "auxiliary_head" in node.name]
    assert len(own) == 8  # its tensors, which nothing uses
    assert not any(node.users for node in own)
    with torch.no_grad():
        assert relative(exported.module()(image()), model(image())) < 1e-5
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.equal(compiled(image()), model(image()))
        for ours, wanted in zip(
            compiled(image(), auxiliary=True), model(image(), auxiliary=True), strict=True
        ):
            assert torch.equal(ours, wanted)
