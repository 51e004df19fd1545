from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.training.seen import COLOUR, Model, by_hand, raw
from transferseg.errors import DataError, SpecError, TrainingError
from transferseg.training import predict, predict_probabilities


class Counting(Model):
    """Notes the shape and memory layout of what goes in."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def forward(self, image):
        layout = torch.channels_last
        self.seen.append((tuple(image.shape), image.is_contiguous(memory_format=layout)))
        return super().forward(image)


def several(*sizes):
    return [raw("uint8", 1, size) for size in sizes]


A, B = (33, 47), (40, 36)


def test_many_images_are_predicted_as_each_alone():
    model = Counting(classes=3, mode="multiclass")
    images = several(A, B, A, A, B, A, B)
    images = [image + np.uint8(i) for i, image in enumerate(images)]
    masks = [predict(model, image) for image in images]
    model.seen.clear()
    found = predict(model, images, batch_size=2)
    # four at a time: A B A A, then B A B
    assert sorted(shape for shape, _ in model.seen) == sorted(
        [(2, 1, *A), (1, 1, *A), (1, 1, *B), (1, 1, *A), (2, 1, *B)]
    )
    assert isinstance(found, list)
    for one, other in zip(found, masks, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, image in zip(predict_probabilities(model, tuple(images)), images, strict=True):
        np.testing.assert_allclose(one, predict_probabilities(model, image), atol=1e-6)
    assert predict(model, []) == []


def test_images_of_any_size_share_batches_where_the_model_sees_one_size():
    model = Counting()
    images = several(A, B, (64, 35), (32, 90))
    found = predict_probabilities(model, images, size=(32, 40), batch_size=4)
    assert [shape for shape, _ in model.seen] == [(4, 1, 32, 40)]
    for one, image in zip(found, images, strict=True):
        np.testing.assert_allclose(
            one, predict_probabilities(model, image, size=(32, 40)), atol=1e-6
        )


def test_an_iterator_is_read_as_it_is_used():
    read = []

    def images():
        for number in range(10):
            read.append(number)
            yield raw("uint8", 1)

    found = predict(Model(), images(), batch_size=2)
    assert not read
    assert next(found).shape == A
    assert read == [0, 1, 2, 3]
    assert len(list(found)) == 9
    read.clear()
    found = predict(Model(), images(), batch_size=2, window=32)
    assert next(found).shape == A
    assert read == [0]  # those that go by windows are held one at a time
    with pytest.raises(TrainingError, match="no ModelSpec"):  # at once, not at the first mask
        predict(nn.Conv2d(1, 1, 1), images())


def test_images_larger_than_the_window_go_alone_by_windows():
    model = Counting()
    found = predict(model, several(A, A), window=32, batch_size=8)
    # 33 x 47: two rows of two columns
    assert [shape for shape, _ in model.seen] == [(4, 1, 32, 32)] * 2
    model.seen.clear()
    predict(model, several(A, A), window=64, batch_size=8)
    assert [shape for shape, _ in model.seen] == [(2, 1, *A)]
    assert found[0].shape == A


def test_the_wrong_image_of_many_is_named(tmp_path):
    images = [raw("uint8", 1), np.full((40, 40), 2.0), raw("uint8", 1)]
    with pytest.raises(DataError, match=r"image 1 \(counted from 0\): image: a float image"):
        predict(Model(), images)
    two = np.zeros((40, 40, 2), np.uint8)
    with pytest.raises(DataError, match=r"image 2 .*2 channel"):
        list(predict(Model(), iter([raw("uint8", 1), raw("uint8", 1), two])))
    Image.fromarray(np.full((40, 40), 3, np.float32)).save(tmp_path / "far.tif")
    with pytest.raises(DataError, match=r"far\.tif: image: a float image"):
        predict(Model(), tmp_path / "far.tif")
    assert predict(Model(), [raw("uint8", 1)])[0].shape == A


def test_an_unknown_option_is_told():
    with pytest.raises(TrainingError, match="Did you mean 'window'"):
        predict(Model(), raw("uint8", 1), windw=32)


def test_half_precision_is_autocast_s():
    model = Model()
    image = raw("uint8", 1)
    found = predict_probabilities(model, image, precision="bf16")
    with torch.autocast("cpu", torch.bfloat16):
        expected = by_hand(model, image)[0]
    assert expected.dtype is torch.bfloat16
    np.testing.assert_array_equal(found, expected.float().sigmoid())
    assert found.dtype == np.float32
    exact = predict_probabilities(model, image)
    assert 0 < np.abs(found - exact).max() < 0.02


def test_channels_last_reaches_model_and_image():
    model = Counting(given=COLOUR)
    image = raw("uint8", 3)
    plain = predict_probabilities(model, image)
    assert not model.seen[-1][1]
    np.testing.assert_allclose(
        predict_probabilities(model, image, channels_last=True), plain, atol=1e-5
    )
    assert model.seen[-1][1]
    assert model.last.weight.is_contiguous(memory_format=torch.channels_last)


def test_postprocessing_changes_the_mask_alone():
    model = Model(3, "multilabel")
    image = raw("uint8", 1)
    mask = predict(model, image)
    found = predict(model, image, postprocess=lambda given: given == 0)
    np.testing.assert_array_equal(found, 1 - mask)
    assert found.dtype == np.uint8
    assert [one.sum() for one in predict(model, [image], postprocess=np.zeros_like)] == [0]
    for wrong in (lambda given: given[..., 0], lambda given: given * 0.5):
        with pytest.raises(TrainingError, match="postprocess must give a mask of the shape"):
            predict(model, image, postprocess=wrong)
    for wrong, values in ((300, "0 to 300"), (-1, "-1 to 0")):

        def outside(given, value=wrong):
            return np.pad(np.full((1, 1, 1), value), [(0, side - 1) for side in given.shape])

        with pytest.raises(TrainingError, match=f"fit into uint8, got {values}"):
            predict(model, image, postprocess=outside)
    ignored = predict(model, image, postprocess=lambda given: np.full(given.shape, 255))
    assert (ignored == 255).all()


def test_options_have_one_list():
    from dataclasses import fields

    from transferseg.training.inference import Inference, PredictOptions

    names = [field.name for field in fields(Inference)]
    assert names == list(PredictOptions.__annotations__)
    told = predict.__doc__.split("Returns:")[0]
    assert all(f"\n        {name}: " in told or f"\n    {name}: " in told for name in names)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_windows_may_be_put_together_on_the_cpu():
    model, image = Model(3, "multilabel"), raw("uint8", 1, (90, 70))
    options = {"window": 32, "flips": "both", "scales": (1.0, 1.5)}
    expected = predict_probabilities(model, image, **options)
    for stitch in (None, "cpu"):
        found = predict_probabilities(model, image, **options, device="cuda", stitch=stitch)
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert next(model.parameters()).is_cuda


class Picky(Model):
    def forward(self, image):
        if image.shape[-1] < 40:
            raise SpecError("too narrow")
        return super().forward(image)


def test_an_image_that_the_model_refuses_leaves_the_others(tmp_path):
    from transferseg.training import predict_folder

    images = [raw("uint8", 1, size) for size in (A, B, A, B, (33, 20), A)]
    found = predict(Picky(), iter(images), batch_size=3)
    assert next(found).shape == A
    with pytest.raises(SpecError, match=r"image 1 \(counted from 0\): too narrow"):
        next(found)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    with pytest.warns(UserWarning, match="3 of 6"):
        report = predict_folder(Picky(), tmp_path, tmp_path / "masks", batch_size=3, progress=False)
    assert report.failed == dict.fromkeys(("1", "3", "4"), "too narrow")
    assert report.written == ("0", "2", "5")
    with pytest.raises(SpecError, match=r"1\.png: too narrow"):
        predict_folder(
            Picky(), tmp_path, tmp_path / "2", on_error="raise", batch_size=3, progress=False
        )


class Overflowing(Model):
    """As float16 does: one pixel of an image that is bright on average is not a number."""

    def forward(self, image):
        logits = super().forward(image).clone()
        for one, bright in zip(logits, image.mean((1, 2, 3)) > 0, strict=True):
            if bright:
                one[-1, 5, 7] = torch.nan
        return logits


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("options", [{}, {"window": 32}, {"flips": "both"}])
def test_no_mask_is_made_of_what_is_not_a_number(mode, options, tmp_path):
    from transferseg.training import predict_folder

    model = Overflowing(classes=1 if mode == "binary" else 3, mode=mode)
    images = [np.full(A, value, np.uint8) for value in (0, 255, 0)]
    for function in (predict, predict_probabilities):
        found = function(model, iter(images), **options)
        assert next(found).shape[:2] == A
        with pytest.raises(TrainingError, match=r"image 1 .*not numbers \(NaN\).*precision='bf16'"):
            next(found)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    with pytest.warns(UserWarning, match="1 of 3 images have no mask: 1;"):
        report = predict_folder(model, tmp_path, tmp_path / "masks", progress=False, **options)
    assert report.written == ("0", "2")
    assert "NaN" in report.failed["1"]


class Classifier(Model):
    def forward(self, image):
        return super().forward(image).mean((2, 3))


class Several(Model):
    def forward(self, image):
        return {"out": super().forward(image)}


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (Classifier, r"Classifier gives \(1, 1\) float32; expected .* \(B, 1, H, W\)"),
        (Several, "Several gives dict; expected"),
    ],
)
def test_a_model_that_does_not_segment(model, match, tmp_path):
    from transferseg.training import predict_folder

    with pytest.raises(TrainingError, match=match):
        predict(model(), raw("uint8", 1))
    Image.fromarray(raw("uint8", 1)).save(tmp_path / "1.png")
    with pytest.raises(TrainingError, match=match):  # no image's fault: it ends the run
        predict_folder(model(), tmp_path, tmp_path / "masks", progress=False)


def test_a_pil_image_whose_file_is_cut(tmp_path):
    Image.fromarray(raw("uint8", 3)).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(content[:300])
    with Image.open(tmp_path / "x.png") as image, pytest.raises(DataError, match="PIL image that"):
        predict(Model(), image)
