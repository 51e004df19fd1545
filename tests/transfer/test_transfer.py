"""The transfers of the two-step scheme between our own models, exact; and nothing undeclared."""

import json

import pytest
import torch

import transferseg as ts
from tests.models.randomise import randomise
from transferseg.errors import TransferError

CHANNELS = {"channels": [16, 16, 8, 8, 8]}


def unet(encoder="resnet10t", classes=("lung",), seed=1, **options):
    options = {"in_channels": 1, **CHANNELS, **options}
    return randomise(ts.create_model("unet", encoder, classes=classes, **options), seed=seed)


def autoencoder(encoder="resnet10t", **options):
    return randomise(ts.create_autoencoder(encoder, **{"in_channels": 1, **CHANNELS, **options}))


def snapshot(module_or_dict):
    values = getattr(module_or_dict, "state_dict", lambda: module_or_dict)()
    return {key: value.clone() for key, value in values.items()}


def assert_unchanged(before, after):
    after = getattr(after, "state_dict", lambda: after)()
    assert list(before) == list(after)
    assert all(torch.equal(before[key].nan_to_num(7), after[key].nan_to_num(7)) for key in before)


@pytest.mark.parametrize("encoder", ["resnet10t", "vgg11"])
def test_autoencoder_to_unet_keeps_the_function_and_opens_the_skips(encoder):
    source, target = autoencoder(encoder), unet(encoder)
    report = ts.transfer_weights(source, target, parts=("encoder", "decoder"))
    assert report.coverage["encoder"].fraction == 1.0
    assert report.coverage["decoder"].loaded_tensors == report.coverage["decoder"].tensors
    image = torch.randn(2, 1, 61, 83)
    with torch.no_grad():
        theirs = source.decoder(source.encoder(image), (61, 83))
        ours = target.decoder(target.encoder(image), (61, 83))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    target.train()
    target(image).square().mean().backward()
    for index, main in enumerate(target.decoder.in_channels):
        weight = target.decoder.blocks[index].conv1[0].weight
        if target.decoder.skip_channels[index]:
            assert torch.all(weight[:, main:] == 0)
            assert weight.grad[:, main:].abs().max() > 0


@pytest.mark.parametrize("architecture", ["unet", "deeplabv3"])
def test_classifier_and_autoencoder_to_encoder(architecture):
    options = {"unet": CHANNELS, "deeplabv3": {"channels": 16}}[architecture]
    image = torch.randn(1, 1, 64, 64)
    classifier = randomise(ts.create_classifier("resnet10t", classes=14, in_channels=1))
    for source in (classifier, autoencoder()):
        target = ts.create_model(architecture, "resnet10t", classes=2, in_channels=1, **options)
        before = snapshot(target)
        report = ts.transfer_weights(source, target)
        assert report.coverage["encoder"].fraction == 1.0
        parts = {key.split(".")[0] for key in source.state_dict()} - {"encoder"}
        wanted = {f"part {part!r} was not asked for" for part in parts}
        assert set(report.plan.unused.values()) == wanted
        wanted = source.eval().encoder(image)[-1]
        step = target.spec.output_stride  # the same features where both have a position
        got = target.eval().encoder(image)[-1][..., :: 32 // step, :: 32 // step]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        for key, value in target.state_dict().items():
            if not key.startswith("encoder."):
                assert torch.equal(value, before[key])


def test_segmenter_to_other_classes_goes_by_name():
    source = unet(classes=("background", "lung", "heart", "rib"))
    target = unet(classes=("heart", "background", "device"), seed=2)
    before = snapshot(target)
    report = ts.transfer_weights(source, target, parts=("encoder", "decoder", "head"))
    assert torch.equal(target.head.weight[0], source.head.weight[2])
    assert torch.equal(target.head.weight[1], source.head.weight[0])
    assert torch.equal(target.head.weight[2], before["head.weight"][2])
    assert torch.equal(target.head.bias[:2], source.head.bias[[2, 0]])
    assert report.coverage["head"].fraction == pytest.approx(2 / 3)
    assert "rows by name: heart, background; left at initialisation: device" in report.to_text()


def test_equal_sized_heads_with_other_names_or_order_are_not_copied_by_position():
    source, target = unet(classes=("a", "b")), unet(classes=("b", "a"), seed=2)
    ts.transfer_weights(source, target, parts=("encoder", "decoder", "head"))
    assert torch.equal(target.head.weight, source.head.weight.flip(0))
    with pytest.raises(TransferError, match="no class of the source"):
        ts.transfer_weights(source, unet(classes=("x", "y")), parts=("head",))
    other = unet(classes=("x", "b"))
    ts.transfer_weights(source, other, parts=("head",), classes={"a": "x"})
    assert torch.equal(other.head.weight, source.head.weight)


def test_rows_of_a_head_that_is_read_in_another_way():
    """Background and tumour (softmax) into a lesion (sigmoid) and into labels that overlap."""
    source = unet(classes=("background", "tumor"))
    renamed = {"classes": {"tumor": "lesion"}, "parts": ("encoder", "decoder", "head")}
    binary = unet(classes=("lesion",), seed=2)
    report = ts.transfer_weights(source, binary, **renamed)
    assert torch.equal(binary.head.weight[0], source.head.weight[1])
    assert "head rows of a multiclass model in a binary one: other probabilities" in report.notes
    labels = unet(classes=("edema", "lesion"), mode="multilabel", seed=3)
    before = snapshot(labels)
    report = ts.transfer_weights(source, labels, **renamed)
    assert torch.equal(labels.head.bias[1], source.head.bias[1])
    assert torch.equal(labels.head.bias[0], before["head.bias"][0])
    assert "multiclass model in a multilabel one" in report.to_text()
    same = ts.transfer_weights(source, unet(classes=("background", "lesion")), **renamed)
    assert same.notes == ()


def test_colour_classifier_into_a_grey_model_needs_to_be_told_how():
    source = randomise(ts.create_classifier("resnet10t", classes=2, in_channels=3))
    target = unet()
    before = snapshot(target)
    with pytest.raises(TransferError, match=r"encoder\.model\.conv1.*input_channels="):
        ts.transfer_weights(source, target)
    assert_unchanged(before, target)
    report = ts.transfer_weights(source, target, input_channels="sum")
    grey = torch.randn(1, 1, 64, 64, dtype=torch.float64)
    source.double(), target.double()  # sums in another order differ in float32
    torch.testing.assert_close(
        target.encoder(grey)[-1],
        source.encoder(grey.expand(-1, 3, -1, -1))[-1],
        rtol=1e-4,
        atol=1e-5,
    )
    assert "adapted 1 by sum_input_channels" in str(report)


def raw(source):
    return {key: value.clone() for key, value in source.encoder.model.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "options", "names"),
    [
        (lambda s: {f"backbone.{k}": v for k, v in s.items()}, {}, r"backbone\.conv1"),
        (lambda s: s, {"rename": {r"bakbone\.": ""}}, r"bakbone.*match no key"),
        (lambda s: s, {"unused": ("projector.*",)}, r"unused='projector\.\*' matches nothing"),
        (lambda s: s, {"leave": ("encoder.model.layer9.*",)}, r"leave='encoder.model.layer9"),
        (lambda s: s, {"adapt": {"encoder.modle.*": "sum_input_channels"}}, "matches nothing"),
        (lambda s: {**s, "projector.weight": torch.zeros(2)}, {}, r"go nowhere: projector\.weight"),
        (lambda s: {k: v for k, v in s.items() if k != "layer4.0.conv1.weight"}, {},
         r"get nothing: encoder\.model\.layer4\.0\.conv1\.weight"),
        (lambda s: dict(list(s.items())[::2]), {}, r"28 tensors of the target get nothing: .*bn1"),
        (lambda s: {k: v.transpose(0, 1) if k == "layer2.0.conv1.weight" else v
                    for k, v in s.items()}, {},
         r"'layer2\.0\.conv1\.weight' is \(64, 128, 3, 3\), .* is \(128, 64, 3, 3\)"),
        (lambda s: s, {"rename": {r"bn1\.": "conv1.1."}}, r"'bn1\.weight' .*become 'conv1\.1\.w"),
        (lambda s: {**s, "bn1.weight": s["bn1.weight"].to(torch.int32)}, {},
         r"dict in memory holds 'bn1\.weight' as \(64,\) int32"),
        (lambda s: {**s, "layer1.0.conv1.weight": torch.zeros(3, 3)}, {},
         r"'layer1\.0\.conv1\.weight' is \(3, 3\)"),
        (lambda s: {**s, "old.bn1.weight": s["bn1.weight"]}, {"rename": {r"old\.": ""}},
         r"'bn1\.weight' and 'old\.bn1\.weight' both become 'bn1\.weight'"),
        (lambda s: {**s, "layer1.0.conv1.weight": s["layer1.0.conv1.weight"] * float("nan")}, {},
         r"'layer1\.0\.conv1\.weight' holds NaN"),
        (lambda s: s, {"parts": ("encodr",)}, r"no part 'encodr'.*Did you mean 'encoder'"),
        (lambda s: s, {"source_format": "tim"}, "Did you mean 'timm'"),
        (lambda s: s, {"unused": ("layer4.*",)}, r"unused= names tensors that are used: layer4"),
        (lambda s: s, {"input_channels": "sum"}, "input_channels='sum' adapts nothing"),
        (lambda s: s, {"adapt": {"encoder.*": "sum_input_channels"}}, "adapts nothing"),
        (lambda s: s, {"parts": ()}, "parts= names nothing"),
        (lambda s: s, {"classes": {"a": "b"}}, "classes= needs a head"),
    ],
)  # fmt: skip
def test_what_is_not_declared_raises_before_anything_changes(change, options, names):
    target = unet()
    source = change(raw(autoencoder()))
    given, before = snapshot(source), snapshot(target)
    with pytest.raises(TransferError, match=names):
        ts.transfer_weights(source, target, **options)
    assert_unchanged(before, target)
    assert_unchanged(given, source)


def test_declared_left_overs_pass_and_stand_in_the_report():
    target, source = unet(), raw(autoencoder())
    before = snapshot(target)
    source["projector.weight"] = torch.zeros(2)
    given = snapshot(source)
    report = ts.transfer_weights(
        {"state_dict": {f"module.backbone.{k}": v for k, v in source.items()}},
        target,
        rename={r"backbone\.": ""},
        unused=("backbone.projector.*",),
        leave=("encoder.model.layer4.*",),
    )
    assert torch.equal(target.encoder.model.conv1[0].weight, source["conv1.0.weight"])
    assert torch.equal(
        target.encoder.model.layer4[0].conv1.weight, before["encoder.model.layer4.0.conv1.weight"]
    )
    assert report.peeled == ("state_dict", "module.")
    assert 0 < report.coverage["encoder"].fraction < 1
    assert_unchanged(given, source)
    with pytest.raises(TransferError, match=r"encoder: .*wanted 100.0%"):
        report.raise_if_below(encoder=1.0)
    with pytest.raises(TransferError, match="unknown part"):
        report.raise_if_below(head=1.0)


def test_wrapped_models_are_themselves_on_both_sides():
    source, target = unet(classes=("a", "b")), unet(classes=("b", "a"), seed=2)
    wrapped = torch.nn.DataParallel(source), torch.nn.DataParallel(target)
    ts.transfer_weights(wrapped[0], wrapped[1], parts=("encoder", "decoder", "head"))
    assert torch.equal(target.head.weight, source.head.weight.flip(0))


def test_a_source_without_class_names_is_told():
    source, target = unet(classes=("a", "b")), unet(classes=("b", "a"), seed=2)
    report = ts.transfer_weights(source.state_dict(), target, parts="head")
    assert "head rows copied by position: the source names no classes" in report.to_markdown()


def test_a_head_that_is_left_needs_no_common_class():
    source, target = unet(classes=("a", "b")), unet(classes=("x", "y"), seed=2)
    before = snapshot(target)
    ts.transfer_weights(source, target, parts=("encoder", "head"), leave="head.*")
    assert torch.equal(target.head.weight, before["head.weight"])


def test_tensors_that_trade_places_within_one_module():
    both = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    before = snapshot(both)
    rules = {r"a\.": "b.", r"b\.": "a."}
    ts.transfer_weights(both, both, parts=("a", "b"), rename=rules)
    assert torch.equal(both["a"].weight, before["b.weight"])
    assert torch.equal(both["b"].weight, before["a.weight"])


def test_adapted_values_are_checked_before_anything_is_written():
    source = raw(randomise(ts.create_classifier("resnet10t", classes=2)))
    source["conv1.0.weight"] = torch.full_like(source["conv1.0.weight"], 40000.0)
    target = unet().half()
    before = snapshot(target)
    with pytest.raises(TransferError, match=r"conv1\.0\.weight' holds NaN or infinite.*float16"):
        ts.transfer_weights(source, target, input_channels="sum")
    assert_unchanged(before, target)


def test_reports_pickle():
    import pickle

    source, target = unet(classes=("a", "b")), unet(classes=("b", "c"), seed=2)
    report = ts.transfer_weights(source, target, parts=("encoder", "decoder", "head"))
    assert pickle.loads(pickle.dumps(report)).to_json() == report.to_json()


def test_parts_can_be_longer_prefixes():
    source, target = unet(seed=3), unet()
    before = snapshot(target)
    ts.transfer_weights(source, target, parts=("decoder.blocks.0",))
    for key, value in target.state_dict().items():
        wanted = source.state_dict()[key] if key.startswith("decoder.blocks.0.") else before[key]
        assert torch.equal(value, wanted)


def test_reports_agree_with_each_other(tmp_path):
    source, target = autoencoder(), unet()
    source.save_pretrained(tmp_path / "ae")
    report = ts.transfer_weights(tmp_path / "ae", target, parts=("encoder", "decoder"))
    values = json.loads(report.to_json())
    assert len(values["moves"]) == sum(c["tensors"] for c in values["coverage"].values())
    assert set(values["unused"]) == {"head.weight", "head.bias"}
    for text in (report.to_text(), report.to_markdown(), report._repr_html_()):
        assert "zero_skip_slice" in text
        assert f"{report.coverage['decoder'].fraction:.1%}" in text
    moved = sum(v.numel() for k, v in source.state_dict().items() if k.startswith("decoder."))
    assert report.coverage["decoder"].loaded_values == moved
    target.save_pretrained(tmp_path / "unet", transfer=report)
    assert json.loads((tmp_path / "unet" / "transfer.json").read_text()) == values
    target.save_pretrained(tmp_path / "unet")  # another save, which no transfer is known of
    assert not (tmp_path / "unet" / "transfer.json").exists()
