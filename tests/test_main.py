"""`python -m transferseg predict`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import transferseg as ts
from transferseg.__main__ import add_predict
from transferseg.data import read_mask
from transferseg.load.cli import main


def run(*arguments):
    return main([*map(str, arguments)], more=[add_predict])


@pytest.fixture
def model(tmp_path):
    made = ts.create_model("unet", "resnet10t", classes=["a", "b", "c"], in_channels=1).eval()
    made.save_pretrained(tmp_path / "model")
    (tmp_path / "images" / "sub").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "sub" / "1.png")
    return made


def test_predict_writes_what_predict_folder_does(model, tmp_path, capsys):
    folders = tmp_path / "model", tmp_path / "images", tmp_path / "masks"
    options = ("--with", "window", "[32, 48]", "--with", "flips", "vertical")
    assert run("predict", *folders, *options, "--overlays", tmp_path / "pictures") == 0
    assert "1 images predicted into" in capsys.readouterr().out
    image = tmp_path / "images" / "sub" / "1.png"
    np.testing.assert_array_equal(
        read_mask(tmp_path / "masks" / "sub" / "1.png"),
        ts.predict(model, image, window=(32, 48), flips="vertical"),
    )
    assert (tmp_path / "pictures" / "sub" / "1.png").exists()
    assert run("predict", *folders) == 1
    assert "already there" in capsys.readouterr().err
    assert run("predict", *folders, "--resume") == 0
    assert "1 were there already" in capsys.readouterr().out
    assert run("predict", *folders, "--overwrite") == 0
    assert run("predict", *folders, "--with", "target", "x") == 1
    assert "another keyword than" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:1 of 2 images")
def test_the_status_tells_of_images_without_mask(model, tmp_path, capsys):
    (tmp_path / "images" / "broken.png").write_text("no image")
    assert run("predict", tmp_path / "model", tmp_path / "images", tmp_path / "masks") == 1
    assert "1 failed:\n  broken: " in capsys.readouterr().out
