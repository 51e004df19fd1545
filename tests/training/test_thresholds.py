"""The threshold chosen on validation data, beside a search by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import transferseg as ts
from transferseg.errors import DataError, SpecError
from transferseg.spec import InputSpec, ModelSpec
from transferseg.training import choose_threshold, predict, predict_probabilities

AT = tuple(step / 20 for step in range(1, 20))
BINARY = ModelSpec("unet", "none", ("lesion",), "binary", input=InputSpec(1))
TWO = ModelSpec("unet", "none", ("a", "b"), "multilabel", input=InputSpec(1))


def pairs(spec=BINARY, count=6, seed=0):
    """Probabilities too low for their masks, some of whose pixels are ignored."""
    rng = np.random.default_rng(seed)
    shape = (9, 12) if spec.mode == "binary" else (9, 12, len(spec.classes))
    made = []
    for _ in range(count):
        mask = (rng.random(shape) < rng.uniform(0.1, 0.6)).astype(np.uint8)
        chances = np.clip(0.35 * mask + rng.normal(0.15, 0.15, shape), 0, 1).astype(np.float32)
        mask[rng.random(shape) < 0.1] = 255
        made.append((chances, mask))
    return made


def dice(chances, mask, threshold):
    counted = mask != 255
    said, true = (chances > threshold)[counted], (mask == 1)[counted]
    return 2 * (said & true).sum() / (said.sum() + true.sum())


def by_hand(data, scheme):
    curve = {}
    for threshold in AT:
        if scheme == "per_image":
            curve[threshold] = np.mean([dice(*pair, threshold) for pair in data])
        else:
            both = (np.concatenate([pair[part].ravel() for pair in data]) for part in (0, 1))
            curve[threshold] = dice(*both, threshold)
    return curve


@pytest.mark.parametrize("scheme", ["pooled", "per_image"])
def test_the_best_of_all(scheme):
    data = pairs()
    expected = by_hand(data, scheme)
    choice = choose_threshold(BINARY, iter(data), scheme=scheme)
    assert choice.curve == pytest.approx(expected)
    assert choice.threshold == max(expected, key=expected.__getitem__)
    assert 0.05 < choice.threshold < 0.5
    assert choice.value == choice.curve[choice.threshold] > choice.curve[0.5]
    assert (choice.images, choice.score, choice.scheme) == (6, "mean_dice", scheme)
    assert json.loads(json.dumps(choice.to_dict()))["curve"][0] == [0.05, choice.curve[0.05]]


def test_one_of_several_classes():
    data = pairs(TWO)
    alone = choose_threshold(BINARY, [(c[..., 1], m[..., 1]) for c, m in data], score="mean_iou")
    choice = choose_threshold(TWO, data, classes=["b"], score="mean_iou")
    assert choice.curve == pytest.approx(dict(alone.curve))
    assert choice.curve != choose_threshold(TWO, data, score="mean_iou").curve


def model_and_loader():
    model = nn.Conv2d(1, 1, 1)
    nn.init.constant_(model.weight, 1.0)
    nn.init.constant_(model.bias, 0.0)
    model.spec = BINARY
    data = pairs()
    items = [
        {"image": torch.from_numpy(c)[None].logit(eps=1e-6), "mask": torch.from_numpy(m)[None]}
        for c, m in data
    ]
    return model, DataLoader(items, batch_size=4), data


def test_a_model_is_scored_on_a_loader():
    model, loader, data = model_and_loader()
    choice = choose_threshold(model.train(), loader, scheme="per_image")
    assert choice == choose_threshold(BINARY, data, scheme="per_image")
    assert model.training
    assert model.spec == BINARY
    best = choose_threshold(model, loader, thresholds=[choice.threshold])
    assert (best.threshold, len(best.curve)) == (choice.threshold, 1)


def test_a_model_in_half_precision_is_scored_on_a_loader():
    model, loader, data = model_and_loader()
    halves = [(torch.from_numpy(c).logit(eps=1e-6).half().sigmoid().numpy(), m) for c, m in data]
    choice = choose_threshold(model.half(), loader)
    assert choice.threshold == choose_threshold(BINARY, halves).threshold
    assert choice.value == pytest.approx(choose_threshold(BINARY, data).value, abs=0.01)


def test_the_spec_takes_it_and_keeps_it(tmp_path):
    model = ts.create_model("unet", "resnet10t", classes=["lesion"], in_channels=1).eval()
    image = np.random.default_rng(0).integers(0, 256, (32, 40), np.uint8)
    chances = predict_probabilities(model, image)
    truth = (chances > np.quantile(chances, 0.3)).astype(np.uint8)
    at = sorted({round(float(np.quantile(chances, q)), 6) for q in (0.1, 0.3, 0.6)})
    choice = choose_threshold(model.spec, [(chances, truth)], thresholds=at)
    assert choice.threshold == at[1]
    model.spec = model.spec.replace(threshold=choice.threshold)
    np.testing.assert_array_equal(predict(model, image), chances > at[1])
    model.save_pretrained(tmp_path)
    assert ts.Segmenter.from_pretrained(tmp_path).spec.threshold == at[1]


ZEROS = np.zeros((4, 5), np.float32)


@pytest.mark.parametrize(
    ("spec", "data", "options", "error", "match"),
    [
        (BINARY, [], {}, DataError, "."),
        (BINARY, [(ZEROS, np.zeros((5, 4), int))], {}, DataError, "pair 0 .*same shape"),
        (BINARY, [(ZEROS[..., None], np.zeros((4, 5, 1), int))], {}, DataError, r"\(H, W\)"),
        (TWO, [(ZEROS, np.zeros((4, 5), int))], {}, DataError, r"\(H, W, 2\)"),
        (BINARY, [(np.zeros((4, 5), int), np.zeros((4, 5), int))], {}, DataError, "int64"),
        (BINARY, [(ZEROS + 2, np.ones((4, 5), int))], {}, DataError, r"got 2\.\.2"),
        (BINARY, [(ZEROS, np.full((4, 5), 2))], {}, DataError, "pair 0 .*0, 1, 255 alone, got 2"),
        (BINARY, [(ZEROS, np.full((4, 5), 0.5))], {}, DataError, r"got 0\.5"),
        (BINARY, [(ZEROS, 0 * ZEROS + 255)], {"ignore_index": None}, DataError, "0, 1 alone"),
        (BINARY, [(ZEROS * np.nan, np.ones((4, 5), int))], {}, DataError, "within 0..1"),
        (BINARY, [(ZEROS[:0], np.zeros((0, 5), int))], {}, DataError, r"\(0, 5\)"),
        (BINARY, [(ZEROS, np.zeros((4, 5), int))], {}, DataError, "undefined at every threshold"),
        (BINARY, pairs(), {"score": "means"}, SpecError, "no number"),
        (BINARY, pairs(), {"scheme": "pooling"}, SpecError, "pooling"),
        (BINARY.replace(classes=("a", "b"), mode="multiclass"), [], {}, SpecError, "no threshold"),
    ],
)
def test_what_cannot_be(spec, data, options, error, match):
    with pytest.raises(error, match=match):
        choose_threshold(spec, data, **options)
