"""A recipe in use: data, loaders, and the options of `train`, `fit` and folds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import transferseg as ts
from transferseg.errors import TrainingError
from transferseg.training import recipes, train

from .conftest import _forget
from .small_recipes import READER, build, small
from .tiny import accelerator, loader, net


def test_it_works_with_train_in_one_line():
    recipe = small("khadka2020")
    model = build("cnn", recipe)
    parts = ts.data.split_by_group(READER.groups, {"train": 0.6, "validation": 0.4}, seed=0)
    loaders = [
        recipe.loader(recipe.dataset(model, READER, parts[part], train=training), shuffle=training)
        for part, training in (("train", True), ("validation", False))
    ]
    options = recipe.train_options(model, loaders[0], accelerator=accelerator())
    history = train(model, *loaders, **options, progress=False)
    assert [row["step"] for row in history.rows] == [len(loaders[0])]
    assert history.rows[0]["score"] == history.rows[0]["validation_mean_dice"]
    assert history.rows[0]["learning_rate"] == 1e-4


@pytest.mark.parametrize(
    ("images", "accumulate", "epochs"),
    [(800, 1, 160), (801, 1, 159), (800, 4, 640), (8, 1, 16_000)],
)
def test_updates_become_epochs_that_hold_them(images, accumulate, epochs):
    """16,000 iterations are 160 epochs of the 800 training images, as the paper says."""
    recipe = recipes.zhou2022_sgd()
    batches = loader(images, batch=8)
    options = recipe.train_options(
        net(), batches, accelerator=accelerator(gradient_accumulation_steps=accumulate)
    )
    each = math.ceil(len(batches) / accumulate)
    assert options["epochs"] == epochs
    assert (epochs - 1) * each < 16_000 <= epochs * each
    assert "steps" not in options
    assert options["auxiliary_weight"] is None  # of a model without such a head
    assert recipe.fit_options(net())["steps"] == 16_000


def test_a_sample_that_is_left_out_counts_in_no_epoch():
    """Five images in batches of two are two updates for a norm over a 1 x 1 map, else three."""
    recipe = recipes.zhou2022_sgd(steps=6)
    model, data = net(pooled=True), loader(5)
    model.norm.eval()
    random = torch.get_rng_state()
    options = recipe.train_options(model, data, accelerator=accelerator())
    assert (options["epochs"], len(data)) == (3, 3)
    assert (model.norm.training, model.pool.training) == (False, True)
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.warns(UserWarning, match="left out"):
        history = train(model, data, loader(4), **options, progress=False)
    assert history.rows[-1]["step"] == 6
    assert recipe.train_options(net(), data, accelerator=accelerator())["epochs"] == 2


def test_training_and_validation_data():
    recipe = small("zhou2022_sgd")
    model = build("cnn", recipe)
    train_data = recipe.dataset(model, READER, train=True, seed=1)
    plain = recipe.dataset(model, READER, [1, 2], cache=True)
    assert train_data.augment is not None
    assert (plain.augment, plain.indices, len(train_data)) == (None, (1, 2), 6)
    assert tuple(train_data[0]["image"].shape) == (3, 48, 48)
    assert tuple(plain[0]["image"].shape) == (3, 64, 64)
    assert recipe.loader(plain).batch_size == 2
    with pytest.raises(TrainingError, match=r"khadka2020 brings images to .*input_spec=recipe"):
        small("khadka2020").dataset(model, READER)
    small("khadka2020").replace(input=None).dataset(model, READER)


def test_folds_take_epochs():
    model = net()
    options = recipes.merand2021().fold_options(model, accelerator=accelerator())
    assert options["folds"] == ts.data.RotatingKFold(9)
    assert (options["batch_size"], options["epochs"], options["score"]) == (32, 100, "mean_iou")
    with pytest.raises(TrainingError, match=r"counts updates, and folds count epochs"):
        recipes.zhou2022_sgd().fold_options(model)
    options = recipes.zhou2022_sgd().replace(epochs=160, steps=None).fold_options(model)
    assert options["epochs"] == 160
    assert "folds" not in options
    for chosen in (recipes.modern().replace(epochs=2, steps=None), recipes.khadka2020()):
        given = chosen.fold_options(model, accelerator=accelerator())
        assert given["ema_decay"] == chosen.ema_decay


def test_precision_is_asked_for():
    assert small("modern").accelerator(cpu=True).mixed_precision == "bf16"
    with pytest.raises(TrainingError, match=r"trains in fp16: AcceleratorState has already"):
        small("modern", precision="fp16").accelerator(cpu=True)
    assert small("khadka2020").accelerator(cpu=True).mixed_precision == "bf16"  # as configured
    _forget()
    assert small("khadka2020").accelerator(cpu=True).mixed_precision == "no"


def test_what_cannot_be_is_refused():
    recipe = recipes.khadka2020()
    for changes, match in (
        ({"steps": 5}, "one of epochs and steps, got epochs=50, steps=5"),
        ({"epochs": None}, "one of epochs and steps"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"batch_size": 2.5}, r"batch_size must be .* got 2\.5"),
        ({"patience": 0}, "patience must be 1 or more"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0"),
        ({"ema_decay": 1.0}, "ema_decay must be 0 or more and below 1"),
        ({"precision": "bf15"}, "unknown precision 'bf15'.*'bf16'"),
    ):
        with pytest.raises(TrainingError, match=match):
            recipe.replace(**changes)
    with pytest.raises(TrainingError, match="crop of 512 px is larger than the image of 320"):
        recipes.zhou2022_sgd(size=320)
    iterable = torch.utils.data.DataLoader(Endless(), batch_size=1)
    with pytest.raises(TrainingError, match="does not know how many batches"):
        recipes.modern().train_options(net(), iterable)
    assert replace(recipe, epochs=3) == recipe.replace(epochs=3)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())
