"""Every recipe of the registry trains; the numbers are those of the papers."""

from __future__ import annotations

import inspect
import json
import math

import pytest
import torch

import transferseg as ts
from transferseg.data import RandomScaleCrop
from transferseg.training import RECIPES, Recipe, fit, recipes

from .small_recipes import MODELS, READER, build, small
from .tiny import net


@pytest.mark.parametrize("kind", sorted(MODELS))
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_trains_every_kind_of_model(name, kind):
    recipe = small(name)
    model = build(kind, recipe)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batches = recipe.loader(recipe.dataset(model, READER, train=True), shuffle=True)
    state = recipe.prepare(model, accelerator=recipe.accelerator(cpu=True))
    options = {**recipe.fit_options(model), "epochs": None, "steps": 2}
    events = [event for event in fit(state, batches, **options) if hasattr(event, "tensors")]
    assert [event.step for event in events] == [1, 2]
    assert all(math.isfinite(event.loss) for event in events)
    assert {tuple(batch["image"].shape[2:]) for batch in batches} == {recipe.crop}
    after = model.state_dict()
    moved = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert len(moved) > len(before) / 2
    assert all(value.isfinite().all() for value in after.values())
    assert ("main_loss" in events[0].terms) == (kind == "cnn")
    assert (state.ema is None) == (recipe.ema_decay is None)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_read_the_same_anywhere(name):
    recipe = RECIPES[name]()
    assert recipe.name == name
    text = json.dumps(recipe.describe(), allow_nan=False)
    assert text == json.dumps(RECIPES[name]().describe())
    assert " at 0x" not in repr(recipe) + text
    assert repr(recipe) == repr(RECIPES[name]())
    for field in ("optimizer=", "schedule=", "loss=BCEDiceLoss", "batch_size=", "augment="):
        assert field in repr(recipe)


OTHER = {
    "warmup_steps": 7, "crop": 96, "precision": "no", "score": "loss", "patience": 3,
    "scale": (0.25, 0.5), "betas": (0.8, 0.9), "largest_share": 0.5, "ema_decay": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_keyword_changes_the_recipe(name):
    plain = repr(RECIPES[name]())
    for keyword, parameter in inspect.signature(RECIPES[name]).parameters.items():
        value = OTHER[keyword] if keyword in OTHER else parameter.default * 2 + (keyword == "seed")
        value = min(value, 1.0) if keyword == "flip" else value
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert repr(RECIPES[name](**{keyword: value})) != plain, keyword


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_keyword_is_explained(name):
    text = inspect.getdoc(RECIPES[name])
    for keyword in inspect.signature(RECIPES[name]).parameters:
        assert f"\n    {keyword}: " in text


# --- numbers ------------------------------------------------------------------------------------


def groups_of(name):
    model = build("cnn", RECIPES[name]())
    return RECIPES[name]().optimizer(model)


def test_numbers_of_zhou():
    sgd, adamw = recipes.zhou2022_sgd(), recipes.zhou2022_adamw()
    optimizer = groups_of("zhou2022_sgd")
    (group,) = optimizer.param_groups  # norms and biases decay too
    assert type(optimizer) is torch.optim.SGD
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, 0.005)
    assert not group["nesterov"]
    optimizer = groups_of("zhou2022_adamw")
    decayed, bare = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW
    assert (decayed["lr"], decayed["betas"], decayed["weight_decay"]) == (6e-5, (0.9, 0.999), 0.01)
    assert (bare["lr"], bare["weight_decay"]) == (6e-5, 0.0)
    for recipe in (sgd, adamw):
        assert (recipe.steps, recipe.epochs, recipe.batch_size) == (16_000, None, 8)
        assert (recipe.size, recipe.crop, recipe.auxiliary_weight) == (640, (512, 512), 0.4)
        crop, flip, colours = recipe.augment.steps
        assert crop == RandomScaleCrop(512)
        assert flip.reflect == 0.5
        assert (colours.brightness, colours.contrast, colours.saturation, colours.hue) == (
            32 / 255, (0.5, 1.5), (0.5, 1.5), 36.0,
        )  # fmt: skip


def test_the_loss_of_zhou_is_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    target = torch.randint(3, (2, 8, 8), generator=generator)
    value = recipes.zhou2022_sgd().loss(mode="multiclass")(logits, target)
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(logits, target))


def test_numbers_of_khadka():
    recipe = recipes.khadka2020()
    optimizer = groups_of("khadka2020")
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.Adam
    assert (group["lr"], group["weight_decay"]) == (1e-4, 2e-5)
    assert (recipe.batch_size, recipe.size, recipe.epochs) == (16, 256, 50)
    grey = torch.tensor([[[0, 255]]]).numpy().transpose(1, 2, 0).astype("uint8").repeat(3, -1)
    assert ts.data.normalise(grey, recipe.input).tolist() == [[[-1.0, 1.0]]] * 3
    assert recipe.augment.transforms.keywords["degrees"] == 5.0


def test_the_penalty_of_khadka_is_its_term_in_the_loss():
    """lambda x ||theta||^2 in the loss, without weight decay, gives the same updates."""

    def run(recipe, penalty):
        model = net(dropout=0.0).train()
        optimizer = recipe.optimizer(model)
        for _ in range(3):
            loss = model(torch.ones(2, 1, 6, 6)).mean()
            loss = loss + penalty * sum(p.square().sum() for p in model.parameters())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.state_dict()

    ours = run(recipes.khadka2020(penalty=0.1), 0.0)
    written = run(recipes.khadka2020(penalty=0.0), 0.1)
    for name, value in ours.items():
        torch.testing.assert_close(value, written[name], rtol=1e-4, atol=1e-6)


def test_numbers_of_merand_and_of_our_own():
    merand, modern = recipes.merand2021(), recipes.modern()
    assert (merand.folds.folds, merand.folds.reshuffle, merand.folds.by_group) == (9, True, True)
    assert (merand.batch_size, merand.size, merand.epochs, merand.patience) == (32, 224, 100, 5)
    augment = merand.replace(augment=ts.data.merand2021_augmentation())
    assert augment.describe() == merand.describe()
    rates = sorted({group["lr"] for group in groups_of("modern").param_groups})
    assert rates[-1] == 1e-3
    assert rates[-2] == pytest.approx(0.75e-3)
    assert {group["weight_decay"] for group in groups_of("modern").param_groups} == {0.0, 0.05}
    assert modern.ema_decay == 0.999
    assert (modern.precision, modern.clip_norm, modern.crop) == ("bf16", 1.0, (256, 256))


@pytest.mark.parametrize(
    ("encoder", "bare"),
    [
        ("tiny_swin", ("relative_position_bias_table", "norm", ".bias")),
        ("test_vit", ("pos_embed", "cls_token", "norm", ".bias")),
    ],
)
def test_tables_positions_and_norms_of_transformers_do_not_decay(encoder, bare):
    model = ts.create_model("upernet", encoder, classes=2, channels=16)
    optimizer = recipes.zhou2022_adamw().optimizer(model)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    found = {name: decay[id(p)] for name, p in model.encoder.named_parameters()}
    assert set(found.values()) == {0.0, 0.01}
    for name, value in found.items():
        one_number_each = dict(model.encoder.named_parameters())[name].ndim < 2
        assert (value == 0.0) == (one_number_each or any(part in name for part in bare)), name
    for part in bare[:1]:
        assert any(part in name for name in found)


# --- schedules ----------------------------------------------------------------------------------


def rate(recipe: Recipe, step: int, total: int) -> float:
    optimizer = recipe.optimizer(build("cnn", recipe))
    scheduler = recipe.schedule(optimizer, total)
    return max(base * scheduler.lr_lambdas[0](step) for base in scheduler.base_lrs)


@pytest.mark.parametrize("step", [0, 1, 4_000, 8_000, 15_999, 16_000])
def test_zhou_sgd_falls_as_the_paper_writes_it(step):
    expected = 0.01 * (1 - step / 16_000) ** 0.9
    assert rate(recipes.zhou2022_sgd(), step, 16_000) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("step", [0, 1, 750, 1_499, 1_500, 8_000, 15_999, 16_000])
def test_zhou_adamw_warms_up_and_falls(step):
    """Against mmengine's LinearLR from 1e-6 and the paper's polynomial from there on."""
    if step < 1_500:
        expected = 1e-6 + (1 - 1e-6) * step / 1_500
    else:
        expected = (1 - (step - 1_500) / 14_500) ** 0.9
    found = rate(recipes.zhou2022_adamw(), step, 16_000) / 6e-5
    assert found == pytest.approx(expected, abs=1 / 1_500 if step < 1_500 else 1e-9)


def test_khadka_waits_for_the_score():
    recipe = recipes.khadka2020()
    optimizer = recipe.optimizer(net())
    scheduler = recipe.schedule(optimizer, 0)
    rates = []
    for score in [0.5, 0.6, *[0.6] * 6, 0.7]:
        scheduler.step(score)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-4] * 7 + [1e-5] * 2)


@pytest.mark.parametrize("step", [0, 100, 200, 2_100, 4_000])
def test_modern_warms_up_to_half_a_cosine(step):
    expected = (
        (step + 1) / 201 if step < 200 else (1 + math.cos(math.pi * (step - 200) / 3_800)) / 2
    )
    assert rate(recipes.modern(), step, 4_000) / 1e-3 == pytest.approx(expected, abs=1e-9)
