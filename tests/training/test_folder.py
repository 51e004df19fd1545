"""Folders of images to folders of masks."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from transferseg.data import ImageMaskFolder, read_mask
from transferseg.errors import DataError, TrainingError
from transferseg.spec import InputSpec, ModelSpec
from transferseg.training import predict, predict_folder, remove_small


class Model(nn.Module):
    def __init__(self, classes=("lesion",), mode="binary"):
        super().__init__()
        torch.manual_seed(0)
        self.spec = ModelSpec("unet", "none", classes, mode, input=InputSpec(3))
        self.last = nn.Conv2d(3, len(classes), 3, padding=1)
        self.images = 0

    def forward(self, image):
        self.images += len(image)
        return self.last(image - 0.5)


def noise(size, dtype=np.uint8):
    return np.random.default_rng(sum(size)).integers(0, np.iinfo(dtype).max, size, dtype)


@pytest.fixture
def images(tmp_path):
    """Files of every kind in sub-folders: name -> file."""
    root = tmp_path / "images"
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = {
        "grey.png": (Image.fromarray(noise((20, 31))), {}),
        "a/colour.jpg": (Image.fromarray(noise((24, 36, 3))), {}),
        "a/deep.png": (Image.fromarray(noise((20, 31), np.uint16)), {}),
        "a/b/alpha.v2.png": (Image.fromarray(noise((22, 33, 4))), {}),
        "a/b/palette.bmp": (Image.fromarray(noise((20, 31, 3))).quantize(8), {}),
        "turned.JPG": (Image.fromarray(noise((24, 36, 3))), {"exif": turned}),
    }
    for name, (image, options) in kinds.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name, **options)
    (root / "notes.txt").write_text("no image")
    return {name.rpartition(".")[0]: root / name for name in kinds}


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_every_kind_of_file_as_predict_does_it(images, tmp_path):
    model, target = Model(), tmp_path / "masks"
    report = predict_folder(model, tmp_path / "images", target, batch_size=2, progress=False)
    assert sorted(report.written) == sorted(images)
    assert (report.skipped, report.failed) == ((), {})
    assert files_below(target) == sorted(f"{name}.png" for name in images)
    for name, path in images.items():
        with Image.open(target / f"{name}.png") as file:
            assert file.mode == "L"
        np.testing.assert_array_equal(read_mask(target / f"{name}.png"), predict(model, path))
    assert str(report) == f"6 images predicted into {target}, 0 were there already, 0 failed."


def test_the_options_are_those_of_predict(images, tmp_path):
    model = Model(("none", "a", "b"), "multiclass")
    options = {
        "size": 32,
        "flips": "vertical",
        "postprocess": lambda m: remove_small(m, min_size=9),
    }
    predict_folder(model, str(tmp_path / "images"), tmp_path / "masks", progress=False, **options)
    for name, path in images.items():
        found = read_mask(tmp_path / "masks" / f"{name}.png")
        np.testing.assert_array_equal(found, predict(model, path, **options))
        assert found.max() < 3
    with pytest.raises(TrainingError, match="Did you mean 'window'"):
        predict_folder(model, tmp_path / "images", tmp_path / "other", windw=3)
    assert not (tmp_path / "other").exists()


def test_many_classes_are_16_bits(images, tmp_path):
    model = Model([f"c{i}" for i in range(300)], "multiclass")
    predict_folder(model, images["grey"], tmp_path / "masks", progress=False)
    found = read_mask(tmp_path / "masks" / "grey.png")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, predict(model, images["grey"]))


def test_a_multilabel_model_writes_a_folder_a_class(images, tmp_path):
    model = Model(("Left Lung", "../heart"), "multilabel")
    target = tmp_path / "masks"
    predict_folder(model, tmp_path / "images", target, progress=False)
    folders = ["Left Lung", "__heart"]
    assert files_below(target) == sorted(f"{f}/{name}.png" for f in folders for name in images)
    for channel, folder in enumerate(folders):
        found = read_mask(target / folder / "a" / "deep.png")
        np.testing.assert_array_equal(found, predict(model, images["a/deep"])[..., channel])
    reader = ImageMaskFolder(
        images=images["a/deep"].parent, masks=target / "Left Lung" / "a", classes=["Left Lung"]
    )
    assert reader.ids == ("colour", "deep")


def test_overlays_lie_beside(images, tmp_path):
    many = Model([f"c{i}" for i in range(20)], "multiclass")  # more than there are colours
    source = tmp_path / "images" / "a" / "b"
    target, pictures = source / "masks", source / "pictures"
    report = predict_folder(many, source, target, overlays=pictures, progress=False)
    assert files_below(pictures) == files_below(target) == ["alpha.v2.png", "palette.png"]
    with Image.open(pictures / "palette.png") as file:
        assert min(file.size) > 100
    # what was written into folders inside the source is no image of a second run
    options = {"overlays": pictures, "resume": True, "progress": False}
    assert predict_folder(many, source, target, **options).skipped == report.written


def test_globs_and_lists(images, tmp_path):
    model = Model()
    report = predict_folder(model, f"{tmp_path}/images/a/**/*.png", tmp_path / "1", progress=False)
    assert report.written == ("b/alpha.v2", "deep")
    files = [images["a/deep"], str(images["a/b/palette"])]
    report = predict_folder(model, iter(files), tmp_path / "2", progress=False)
    assert files_below(tmp_path / "2") == ["b/palette.png", "deep.png"]
    assert report.written == ("b/palette", "deep")
    report = predict_folder(model, images["grey"], tmp_path / "3", progress=False)
    assert report.written == ("grey",)


def test_what_cannot_be_read_is_reported_at_the_end(images, tmp_path):
    root = tmp_path / "images"
    (root / "a" / "broken.png").write_bytes(images["grey"].read_bytes()[:90])
    (root / "a" / "text.jpg").write_text("no image")
    with pytest.warns(UserWarning, match="2 of 8 images have no mask: a/broken, a/text"):
        report = predict_folder(Model(), root, tmp_path / "masks", progress=False)
    assert list(report.failed) == ["a/broken", "a/text"]
    assert str(root / "a" / "broken.png") in report.failed["a/broken"]
    assert sorted(report.written) == sorted(images)
    assert "2 failed:\n  a/broken: " in str(report)
    with pytest.raises(DataError, match=r"broken\.png"):
        predict_folder(
            Model(), root, tmp_path / "masks", on_error="raise", overwrite=True, progress=False
        )
    files = [images["grey"], root / "gone.png"]
    with pytest.warns(UserWarning, match="1 of 2"):
        report = predict_folder(Model(), files, tmp_path / "list", progress=False)
    assert "gone.png: the file does not exist" in report.failed["gone"]


def test_masks_of_a_former_run_are_told_of(images, tmp_path):
    root, target = tmp_path / "images", tmp_path / "masks"
    predict_folder(Model(), root, target, progress=False)
    before = (target / "grey.png").read_bytes()
    images["grey"].write_text("no image any more")
    (root / "text.jpg").write_text("no image")
    with pytest.warns(UserWarning, match="2 of 7 .* no new mask: grey, text; .*still there: grey"):
        predict_folder(Model(), root, target, overwrite=True, progress=False)
    assert (target / "grey.png").read_bytes() == before


@pytest.mark.parametrize("name", ["target", "overlays"])
@pytest.mark.parametrize("place", ["images/notes.txt", "images/notes.txt/below/it"])
def test_a_folder_is_no_file(images, tmp_path, name, place):
    model = Model()
    options = {"target": tmp_path / "masks", name: tmp_path / place}
    with pytest.raises(TrainingError, match=r"notes\.txt is a file, and .* is to be a folder"):
        predict_folder(model, tmp_path / "images", **options)
    assert model.images == 0
    assert not (tmp_path / "masks").exists()


def test_it_goes_on_where_it_was_cut(images, tmp_path, monkeypatch):
    root, target = tmp_path / "images", tmp_path / "masks"
    predict_folder(Model(), root, tmp_path / "whole", progress=False)
    left = iter([True, True, True])
    path_replace = type(target).replace

    def failing(self, other):
        if not next(left, False):
            raise OSError("No space left on device")
        return path_replace(self, other)

    monkeypatch.setattr(type(target), "replace", failing)
    advice = r"mask .* written to .*masks.*\.png: .*No space left.*resume=True"
    with pytest.raises(TrainingError, match=advice):
        predict_folder(Model(), root, target, batch_size=1, progress=False)
    with pytest.raises(TrainingError, match=r"No space left.*again with overwrite=True"):
        predict_folder(Model(), root, target, batch_size=1, progress=False, overwrite=True)
    monkeypatch.undo()
    there = files_below(target)
    assert len(there) == 3  # and nothing half-written
    model = Model()
    report = predict_folder(model, root, target, resume=True, progress=False)
    assert model.images == 3
    assert sorted((*report.skipped, *report.written)) == sorted(images)
    assert sorted(f"{name}.png" for name in report.skipped) == there
    for name in files_below(tmp_path / "whole"):
        assert (target / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_mask_without_its_picture_is_not_done(images, tmp_path):
    options = {"target": tmp_path / "masks", "overlays": tmp_path / "pictures", "progress": False}
    predict_folder(Model(), images["grey"], **options)
    (tmp_path / "pictures" / "grey.png").unlink()
    report = predict_folder(Model(), images["grey"], resume=True, **options)
    assert report.written == ("grey",)
    assert predict_folder(Model(), images["grey"], resume=True, **options).skipped == ("grey",)


def test_nothing_that_is_there_is_lost(images, tmp_path):
    root, model = tmp_path / "images", Model()
    before = {name: path.read_bytes() for name, path in images.items()}
    with pytest.raises(TrainingError, match="is the folder of the images"):
        predict_folder(model, root, root, overwrite=True)
    with pytest.raises(TrainingError, match=r"would overwrite images: .*grey\.png"):
        predict_folder(model, images["grey"], root, overwrite=True)
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(TrainingError, match="would overwrite images"):
        predict_folder(model, images["grey"], tmp_path / "link", overwrite=True)
    truth = tmp_path / "masks" / "grey.png"
    truth.parent.mkdir()
    truth.write_bytes(b"drawn by hand")
    with pytest.raises(TrainingError, match=r"already there: .*grey\.png; give resume=True"):
        predict_folder(model, root, tmp_path / "masks")
    assert truth.read_bytes() == b"drawn by hand"
    predict_folder(model, root, tmp_path / "masks", overwrite=True, progress=False)
    assert read_mask(truth).shape == (20, 31)
    assert before == {name: path.read_bytes() for name, path in images.items()}


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"resume": True, "overwrite": True}, TrainingError, "leave out overwrite"),
        ({"on_error": "ignore"}, TrainingError, "unknown on_error 'ignore'"),
        ({"overlays": "masks"}, TrainingError, "same files"),
        ({"source": "nowhere"}, DataError, "nowhere: the folder does not exist"),
        ({"source": "images/*.gif"}, DataError, "no image matches"),
        ({"source": []}, DataError, "no image files"),
    ],
)
def test_what_cannot_be(images, tmp_path, monkeypatch, options, error, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match):
        predict_folder(Model(), **{"source": "images", "target": "masks", **options})
    assert not (tmp_path / "masks").exists()


def test_two_images_of_one_name(images, tmp_path):
    Image.fromarray(noise((20, 31))).save(tmp_path / "images" / "grey.bmp")
    with pytest.raises(DataError, match="share the name 'grey'"):
        predict_folder(Model(), tmp_path / "images", tmp_path / "masks")


def test_two_processes_write_one_mask_side_by_side(images, tmp_path, monkeypatch):
    """The other one comes in between the writing of the file and its renaming."""
    target, others = tmp_path / "masks", []
    path_replace = type(target).replace

    def late(self, other):
        if not others:
            others.append(1)
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: 1)
                predict_folder(Model(), images["grey"], target, overwrite=True, progress=False)
        return path_replace(self, other)

    monkeypatch.setattr(type(target), "replace", late)
    predict_folder(Model(), images["grey"], target, progress=False)
    np.testing.assert_array_equal(read_mask(target / "grey.png"), predict(Model(), images["grey"]))
    assert files_below(target) == ["grey.png"]
