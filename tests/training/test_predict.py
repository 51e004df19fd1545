from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from tests.training.seen import COLOUR, GREY, Model, by_hand, raw
from transferseg.errors import DataError, TrainingError
from transferseg.spec import InputSpec, ModelSpec
from transferseg.training import predict, predict_probabilities


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given", [GREY, COLOUR], ids=["grey", "colour"])
def test_probabilities_are_those_by_hand(dtype, channels, given):
    model = Model(given=given)
    image = raw(dtype, channels)
    found = predict_probabilities(model, image)
    assert found.shape == (33, 47)
    assert found.dtype == np.float32
    expected = by_hand(model, image)[0].sigmoid().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    sure = np.abs(expected - 0.5) > 1e-3
    mask = predict(model, image)
    assert mask.dtype == np.uint8
    assert (mask == (expected > 0.5))[sure].all()
    assert model.training
    assert model.dropout.training


@pytest.mark.parametrize("threshold", [0.3, 0.8])
def test_the_threshold_is_the_spec_s(threshold):
    model = Model(threshold=threshold)
    image = raw("uint8", 1)
    chances = predict_probabilities(model, image)
    np.testing.assert_array_equal(predict(model, image), chances > threshold)


def test_multiclass():
    model = Model(5, "multiclass")
    image = raw("uint8", 1, (31, 5))
    logits = by_hand(model, image)
    mask = predict(model, image)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, logits.argmax(0))
    chances = predict_probabilities(model, image)
    assert chances.shape == (31, 5, 5)
    np.testing.assert_allclose(chances.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(chances, logits.softmax(0).permute(1, 2, 0), atol=1e-5)
    many = Model(300, "multiclass")
    assert predict(many, image).dtype == np.uint16
    assert predict(Model(256, "multiclass"), image).dtype == np.uint8


def test_multilabel():
    model = Model(3, "multilabel", threshold=0.4)
    image = raw("uint8", 1)
    mask = predict(model, image)
    assert mask.shape == (33, 47, 3)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, predict_probabilities(model, image) > 0.4)


@pytest.mark.parametrize("size", [16, (64, 24)])
def test_resized_logits_are_resized_back_before_the_decision(size):
    from transferseg.data.images import resize_image

    model = Model(3, "multiclass")
    image = raw("uint8", 1)
    both = (size, size) if isinstance(size, int) else size
    logits = by_hand(model, resize_image(image, both))
    assert logits.shape[1:] == both
    back = F.interpolate(logits[None], (33, 47), mode="bilinear")[0]
    np.testing.assert_allclose(
        predict_probabilities(model, image, size=size), back.softmax(0).permute(1, 2, 0), atol=1e-5
    )
    assert predict(model, image, size=size).shape == (33, 47)
    whole = predict(model, image, size=(33, 47))
    np.testing.assert_array_equal(whole, predict(model, image))


def test_paths_and_pil_images(tmp_path):
    model = Model()
    for name, channels in (("uint8", 1), ("uint8", 3), ("uint16", 1)):
        image = raw(name, channels)
        expected = predict(model, image)
        pil = Image.fromarray(image)
        pil.save(tmp_path / "x.png")
        np.testing.assert_array_equal(predict(model, tmp_path / "x.png"), expected)
        np.testing.assert_array_equal(predict(model, str(tmp_path / "x.png")), expected)
        np.testing.assert_array_equal(predict(model, pil), expected)
    colour = Image.fromarray(raw("uint8", 3))
    with_alpha = colour.convert("RGBA")
    np.testing.assert_array_equal(predict(model, with_alpha), predict(model, colour))
    palette = colour.quantize(16)
    np.testing.assert_array_equal(predict(model, palette), predict(model, palette.convert("RGB")))
    bits = Image.fromarray(raw("uint8", 1)).convert("1")
    np.testing.assert_array_equal(predict(model, bits), predict(model, bits.convert("L")))


def test_a_strided_view_and_a_device():
    model = Model()
    image = raw("uint8", 1, (40, 50))
    view = image[::-2, ::3]
    np.testing.assert_array_equal(
        predict(model, view, device="cpu"), predict(model, view.copy(), device="cpu")
    )


@pytest.mark.parametrize(
    ("image", "options", "match"),
    [
        (torch.zeros(1, 8, 8), {}, "got Tensor"),
        (np.zeros((8,), np.uint8), {}, r"got shape \(8,\)"),
        (np.zeros((0, 8), np.uint8), {}, r"got shape \(0, 8\)"),
        (np.zeros((8, 8), np.int64), {}, "int64"),
        (np.full((8, 8), 2.0), {}, "0..1"),
        (np.zeros((8, 8), np.uint8), {"size": 0}, "whole number from 1"),
        ("gone.png", {}, "gone.png"),
        (Path(), {}, r"\. is a folder; predict_folder"),
    ],
)
def test_images_that_cannot_be_used(image, options, match):
    with pytest.raises(DataError, match=match):
        predict(Model(), image, **options)


def test_a_model_without_a_spec():
    with pytest.raises(TrainingError, match="no ModelSpec"):
        predict(nn.Conv2d(1, 1, 1), np.zeros((8, 8), np.uint8))


def test_bgr_models_see_what_the_prepared_data_set_shows_them():
    from transferseg.data import PreparedDataset, Sample

    class One:
        classes, mode, ids, groups = ("lesion",), "binary", ("a",), ("a",)

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Sample(image, np.zeros((40, 40), np.uint8), None, "a", "a")

    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    model = nn.Conv2d(3, 1, 1)
    model.spec = ModelSpec(
        "unet", "none", ("lesion",), "binary", input=InputSpec(3, channel_order="BGR")
    )
    prepared = PreparedDataset(One(), input=model.spec.input, size=32)[0]["image"]
    with torch.no_grad():
        logits = model(prepared[None])
    wanted = torch.nn.functional.interpolate(logits, (40, 40), mode="bilinear").sigmoid()
    got = predict_probabilities(model, image, size=32)
    np.testing.assert_allclose(got, wanted[0, 0].numpy(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_come_in_the_dtype_of_the_weights(dtype):
    model, image = Model(), raw("uint8", 1)
    expected = predict_probabilities(model, image)
    found = predict_probabilities(model.to(dtype), image, window=32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, predict_probabilities(Model(), image, window=32), atol=0.02)
    assert np.abs(found - expected).max() > 0  # a window sees less
    assert next(model.parameters()).dtype is dtype


def test_pil_images_of_32_bits_are_read_as_files_of_them_are(tmp_path):
    deep = raw("uint16", 1)
    image = Image.fromarray(deep.astype(np.int32))
    assert image.mode == "I"
    expected = predict_probabilities(Model(), deep)
    np.testing.assert_array_equal(predict_probabilities(Model(), image), expected)
    with pytest.raises(DataError, match=r"a PIL image: 32-bit values 0\.\.70000"):
        predict(Model(), Image.fromarray(np.array([[0, 70000]], np.int32)))


def test_an_array_with_an_alpha_is_told_how_to_drop_it():
    for channels in (2, 4):
        image = np.zeros((40, 40, channels), np.uint8)
        with pytest.raises(DataError, match=rf"alpha: image\[\.\.\., :{channels - 1}\]"):
            predict(Model(), image)
