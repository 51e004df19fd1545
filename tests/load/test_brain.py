import pytest
import torch

import transferseg as ts
from tests.load.files import assert_equal_logits, image, relative, saved
from tests.models.brain_unet import BrainUNet
from transferseg.errors import TransferError


@pytest.mark.parametrize(
    ("arguments", "size"), [((32, 3, 1), (64, 96)), ((4, 1, 1), (16, 112)), ((6, 4, 3), (48, 32))]
)
def test_the_published_network(arguments, size, tmp_path):
    theirs = saved(BrainUNet(*arguments), tmp_path / "a.pt")
    picture = image(arguments[1], *size)
    model, report = assert_equal_logits(theirs, tmp_path / "a.pt", picture)
    with torch.no_grad():  # the published network ends in a sigmoid
        assert relative(model(picture).sigmoid(), theirs(picture).sigmoid()) < 1e-5
    assert model.spec.mode == ("binary" if arguments[2] == 1 else "multilabel")
    assert (model.spec.architecture, model.spec.encoder) == ("unet", "plain")
    assert (model.spec.input.mean, model.spec.threshold) == ((0.0,) * arguments[1], 0.5)
    assert any("by its own mean and std" in note for note in report.notes)
    model.save_pretrained(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(ts.Segmenter.from_pretrained(tmp_path / "ours")(picture), model(picture))


def test_its_encoder_goes_into_another_model(tmp_path):
    theirs = saved(BrainUNet(4, 1), tmp_path / "a.pt")
    options = {"arguments": {"width": 4}}
    model = ts.create_model(
        "deeplabv3",
        "plain",
        classes=2,
        in_channels=1,
        encoder_options=options,
        weights=tmp_path / "a.pt",
    )
    own = model.encoder.model.stages
    assert torch.equal(own[4].conv2.weight, theirs.bottleneck.bottleneckconv2.weight)
    assert torch.equal(own[0].norm1.running_var, theirs.encoder1.enc1norm1.running_var)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: dict(list(s.items())[:-40]) | {"conv.weight": s["conv.weight"]}, "get nothing"),
        (
            lambda s: {**s, "upconv3.weight": s["upconv3.weight"].transpose(0, 1).contiguous()},
            r"'upconv3\.weight' is \(16, 32, 2, 2\)",
        ),
        (lambda s: {**s, "decoder5.weight": torch.zeros(2)}, r"go nowhere: decoder5\.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change, told, tmp_path):
    state = change(BrainUNet(4).state_dict())
    state.setdefault("upconv4.weight", torch.zeros(64, 32, 2, 2))
    state.setdefault("decoder4.dec4conv1.weight", torch.zeros(32, 64, 3, 3))
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(TransferError, match=told):
        ts.load_checkpoint(tmp_path / "a.pt")
