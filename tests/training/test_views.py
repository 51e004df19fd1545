"""Test-time augmentation: views are turned back, sides change places, their mean decides."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transferseg.data.images import normalise, resize_image
from transferseg.errors import DataError
from transferseg.spec import InputSpec, ModelSpec
from transferseg.training import predict, predict_probabilities
from transferseg.training.windows import slide

GREY = InputSpec(channels=1, mean=(0.4,), std=(0.2,))
FLIPS = {"horizontal": (-1,), "vertical": (-2,), "both": (-2, -1)}
EVERY = [names for n in (1, 2, 3) for names in itertools.combinations(FLIPS, n)]


def with_spec(model, classes, mode, threshold=0.5):
    model.spec = ModelSpec("unet", "none", classes, mode, threshold=threshold, input=GREY)
    return model


def pointwise(classes, mode):
    torch.manual_seed(0)
    return with_spec(nn.Conv2d(1, len(classes), 1), classes, mode)


def lopsided(classes=("a", "b"), mode="multilabel"):
    """Its answer depends on the direction."""
    torch.manual_seed(0)
    return with_spec(nn.Conv2d(1, len(classes), 3, padding=1), classes, mode)


class Sides(nn.Module):
    """Left and right by column, so that a reflection exchanges them; the heart by no side."""

    def __init__(self, mode, classes=("Left Lung", "Heart", "Right Lung")):
        super().__init__()
        with_spec(self, classes, mode)

    def forward(self, image):
        columns = torch.linspace(-1, 1, image.shape[-1])
        columns = (columns - columns.flip(0)) / 2  # odd to the last bit
        return torch.cat([image * columns, image * 0.5, image * -columns], dim=1)


def picture(height=21, width=34, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


@pytest.mark.parametrize("flips", EVERY, ids="+".join)
@pytest.mark.parametrize(
    ("classes", "mode"),
    [(("x",), "binary"), (("a", "b", "c"), "multiclass"), (("a", "b"), "multilabel")],
)
def test_flips_change_nothing_of_an_equivariant_model(flips, classes, mode):
    model = pointwise(classes, mode)
    np.testing.assert_array_equal(
        predict_probabilities(model, picture(), flips=flips),
        predict_probabilities(model, picture()),
    )
    np.testing.assert_array_equal(predict(model, picture(), flips=flips), predict(model, picture()))


@pytest.mark.parametrize("mode", ["multilabel", "multiclass"])
@pytest.mark.parametrize("flips", [*FLIPS, ("both", "vertical"), tuple(FLIPS)], ids=str)
def test_sides_change_places(flips, mode):
    model = Sides(mode)
    plain = predict_probabilities(model, picture())
    np.testing.assert_array_equal(predict_probabilities(model, picture(), flips=flips), plain)
    unswapped = predict_probabilities(model, picture(), flips=flips, swap=())
    assert (flips == "vertical") == np.array_equal(unswapped, plain)


def test_sides_by_name():
    pairs = [("Heart", "Right Lung")]
    given = Sides("multilabel", ("Heart", "x", "Right Lung"))
    np.testing.assert_array_equal(
        predict_probabilities(given, picture(), flips="horizontal", swap=pairs),
        predict_probabilities(Sides("multilabel"), picture()),
    )
    with pytest.raises(DataError, match="no counterpart 'left lung'"):
        predict(given, picture(), flips=("vertical", "both"))
    assert predict(given, picture(), flips="vertical").shape == (21, 34, 3)


def by_hand(model, image, flips, scales, logits_of=None):
    """Mean probabilities, (H, W, K), one view after the other."""
    logits_of = logits_of or (lambda pixels: model(pixels[None])[0])
    chances = []
    for scale in scales:
        seen = tuple(round(side * scale) for side in image.shape)
        pixels = torch.from_numpy(normalise(resize_image(image, seen), GREY))
        for dims in [(), *(FLIPS[flip] for flip in flips)]:
            with torch.no_grad():
                logits = logits_of(pixels.flip(dims)).flip(dims)
            back = F.interpolate(logits[None], image.shape, mode="bilinear")[0]
            chances.append(back.sigmoid() if model.spec.mode != "multiclass" else back.softmax(0))
    return torch.stack(chances).double().mean(0).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("mode", ["multilabel", "multiclass"])
def test_probabilities_of_flips_and_scales_are_averaged(mode):
    model, image = lopsided(mode=mode), picture()
    options = {"flips": ("horizontal", "both"), "scales": (0.5, 1.0, 1.5)}
    expected = by_hand(model, image, **options)
    found = predict_probabilities(model, image, **options)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    decided = expected > 0.5 if mode == "multilabel" else expected.argmax(-1)
    sure = np.abs(expected - 0.5).min(-1) > 1e-4
    np.testing.assert_array_equal(predict(model, image, **options)[sure], decided[sure])
    assert not np.allclose(found, predict_probabilities(model, image), atol=1e-3)


def test_windows_slide_over_every_view():
    model, image = lopsided(), picture(40, 50)
    options = {"flips": ("horizontal",), "scales": (1.0, 2.0)}
    windows = {"overlap": 0.25, "blend": "gaussian", "batch_size": 3}

    def logits_of(pixels):
        return slide(model, pixels, window=(16, 24), **windows)

    np.testing.assert_allclose(
        predict_probabilities(model, image, window=(16, 24), **windows, **options),
        by_hand(model, image, **options, logits_of=logits_of),
        atol=1e-5,
    )


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_a_window_that_holds_the_image_is_the_whole_image(blend):
    model = lopsided()
    np.testing.assert_array_equal(
        predict_probabilities(model, picture(), window=(21, 99), blend=blend),
        predict_probabilities(model, picture()),
    )


def test_windows_are_those_of_the_resized_image():
    model = lopsided()
    image = picture(30, 60)
    pixels = torch.from_numpy(normalise(resize_image(image, (48, 48)), GREY))
    with torch.no_grad():
        logits = slide(model, pixels, window=(32, 32), overlap=0.5, blend="gaussian", batch_size=4)
    back = F.interpolate(logits[None], (30, 60), mode="bilinear")[0].sigmoid()
    np.testing.assert_allclose(
        predict_probabilities(model, image, size=48, window=32), back.permute(1, 2, 0), atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"window": 0}, "window must be a whole number from 1"),
        ({"window": (32,)}, "window must be a whole number from 1"),
        ({"overlap": 1.0}, "overlap must lie in"),
        ({"overlap": float("nan")}, "overlap must lie in"),
        ({"overlap": "half"}, "overlap must lie in"),
        ({"blend": "gausian"}, "Did you mean 'gaussian'"),
        ({"batch_size": 0}, "batch_size"),
        ({"flips": "horizontl"}, "Did you mean 'horizontal'"),
        ({"flips": ("both", "both")}, "each flip once"),
        ({"flips": None}, "flips and scales are tuples"),
        ({"scales": 2.0}, "flips and scales are tuples"),
        ({"scales": ()}, "scales are numbers"),
        ({"scales": ("2",)}, "scales are numbers"),
        ({"scales": (1.0, -1)}, "scales"),
        ({"precision": "bf8"}, "unknown precision"),
    ],
)
def test_options_that_cannot_be(options, match):
    with pytest.raises(DataError, match=match):
        predict(lopsided(), picture(), **options)
