import pytest
import torch

import transferseg as ts
from transferseg.errors import SpecError
from transferseg.models.encoders import Encoder


def test_the_epsilon_is_set_and_survives_saving(tmp_path):
    options = {"norm_eps": {"*": 1e-12}, "pyramid": "none"}
    model = ts.create_classifier("test_vit", classes=2, encoder_options=options)
    assert model.encoder.model.blocks[0].norm1.eps == 1e-12
    model.save_pretrained(tmp_path)
    assert ts.Classifier.from_pretrained(tmp_path).encoder.model.blocks[5].norm2.eps == 1e-12


def test_it_is_used():
    narrow, wide = (
        Encoder("test_vit", options={"norm_eps": {"blocks.0.norm1": eps}, "pyramid": "none"}).eval()
        for eps in (1e-12, 0.5)
    )
    wide.load_state_dict(narrow.state_dict())
    with torch.no_grad():
        x = torch.rand(1, 3, 160, 160)
        assert not torch.allclose(narrow(x)[-1], wide(x)[-1])


@pytest.mark.parametrize("given", [1e-6, {"*": 0.0}, {"*": "1e-6"}, {"*": 1.5}, {"nowhere": 1e-6}])
def test_what_is_no_epsilon_is_refused(given):
    with pytest.raises(SpecError, match="norm_eps of encoder 'test_vit'"):
        Encoder("test_vit", options={"norm_eps": given})


@pytest.mark.parametrize("make", [
    lambda options: Encoder("resnet18", options=options),
    lambda options: ts.models.whole.WholeModel("test_vit", in_channels=3, classes=2,
                                               options=options),
])  # fmt: skip
def test_styles_of_swin_alone(make):
    for style in ("transformers", "torchvision"):
        with pytest.raises(SpecError, match=f"style '{style}' is one of timm's SwinTransformer"):
            make({"style": style})
