"""Training with an auxiliary head: both losses in one sum, through every way of training."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

import transferseg as ts
from transferseg.errors import TrainingError
from transferseg.models import Unfreezing, freeze
from transferseg.training import (
    EpochEvent,
    MeanLoss,
    TrainState,
    adamw,
    cosine,
    evaluate,
    fit,
    predict,
    sgd,
    train,
)
from transferseg.training.auxiliary import training_terms

from .auxiliary import images, segmenter
from .conftest import _forget
from .test_resume import everything, same, told
from .tiny import BINARY, TermsLoss, accelerator, bce, rotate, samples, weights


def prepare(model, *, lr=0.05, optimizer=adamw, **options):
    return TrainState.prepare(
        model,
        optimizer=partial(optimizer, lr=lr),
        schedule=cosine(),
        accelerator=accelerator(**options),
    )


def batch_of(rows):
    return [torch.stack([row[name] for row in rows]) for name in ("image", "mask")]


@pytest.mark.parametrize(("weight", "used"), [(None, 0.4), (0.25, 0.25), (0, 0.0)])
def test_the_loss_is_the_sum_of_both_by_hand(weight, used):
    model = segmenter(dropout=0.0, norms=False).train()
    image, mask = batch_of(samples(2, size=32))
    with torch.no_grad():
        features = model.encoder(image)
        low = model.auxiliary_head.head(model.auxiliary_head.decoder.convs(features[-2]))
        logits = torch.nn.functional.interpolate(low, (32, 32), mode="bilinear")

        def terms(x):
            x = x.double().flatten().numpy()
            y = mask.flatten().numpy()
            entropy = np.mean(np.logaddexp(0, x) - y * x)
            return entropy, np.mean(x**2)

        (entropy, square), (other, other_square) = terms(model(image)), terms(logits)
    main, auxiliary = entropy + 0.1 * square, other + 0.1 * other_square
    state = prepare(model)
    events = list(
        fit(state, images(2, batch=2), loss=TermsLoss(), epochs=1, auxiliary_weight=weight)
    )
    wanted = {
        "main_loss": main, "auxiliary_loss": auxiliary, "bce": entropy, "square": square,
    }  # fmt: skip
    for event in events:
        assert event.loss == pytest.approx(main + used * auxiliary, rel=1e-5)
        assert event.terms == pytest.approx(wanted, rel=1e-5)


def test_at_weight_0_the_rest_trains_as_it_would_without():
    trained = []
    for auxiliary in ({"channels": 4, "dropout": 0.0}, False):
        model = segmenter(dropout=0.0, auxiliary=auxiliary)
        before = weights(model)
        chosen = {"auxiliary_weight": 0} if auxiliary else {}
        state = prepare(model, optimizer=sgd)
        list(fit(state, images(4, batch=2), loss=bce, epochs=1, **chosen))
        trained.append(weights(model))
        _forget()
        if auxiliary:
            still = [n for n, _ in model.auxiliary_head.named_parameters(prefix="auxiliary_head")]
            assert all(torch.equal(trained[0][name], before[name]) for name in still)
    with_it, without = trained
    assert all(torch.equal(with_it[name], value) for name, value in without.items())


def test_at_weight_0_an_infinite_loss_of_the_head_is_none():
    logits = torch.tensor([2.0, 3.0], requires_grad=True)
    others = torch.tensor([float("inf"), 1.0], requires_grad=True)
    value, log = training_terms(F.mse_loss, (logits, others), torch.zeros(2), 0)
    value.backward()
    assert value.item() == log["loss"].item() == 6.5
    assert log["auxiliary_loss"].item() == float("inf")
    assert logits.grad.tolist() == [2.0, 3.0]
    assert others.grad.tolist() == [0.0, 0.0]  # zeros, which other processes wait for


def test_every_part_trains_and_a_frozen_head_does_not():
    model = segmenter(norms=False)
    before = weights(model)
    list(fit(prepare(model), images(4, batch=2), loss=bce, epochs=1))
    parameters = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any(name.startswith("auxiliary_head.") for name in parameters)
    after = weights(model)
    assert [n for n in parameters if torch.equal(after[n], before[n])] == []
    _forget()
    freeze(model, "auxiliary_head")
    list(fit(prepare(model), images(4, batch=2), loss=bce, epochs=1))
    still = [n for n in after if n.startswith("auxiliary_head.")]
    assert all(torch.equal(weights(model)[name], after[name]) for name in still)


def test_it_begins_to_train_at_its_epoch():
    model = segmenter()
    before = weights(model)
    moved = []
    gradual = Unfreezing({1: "auxiliary_head"})
    for event in fit(prepare(model), images(4, batch=2), loss=bce, epochs=2, unfreeze=gradual):
        if isinstance(event, EpochEvent):
            name = "auxiliary_head.head.weight"
            moved.append(not torch.equal(weights(model)[name], before[name]))
    assert moved == [False, True]


def interrupted(folder, stop, **options):
    """The events of a run that is left after the event number `stop`, and of one that goes on."""
    seen = []
    for seed in (0, 5) if stop else (0,):
        _forget()
        state = prepare(segmenter(seed), **options)
        if seed:
            torch.manual_seed(999)
            state.load(folder)
        for event in fit(
            state, images(6, batch=2, shuffle=True), loss=TermsLoss(), epochs=2, clip_norm=0.5
        ):
            seen.append(told(event))
            if len(seen) == stop:
                state.save(folder)
                break
    return state, seen


@pytest.mark.parametrize(("accumulate", "stop"), [(1, 2), (2, 1), (2, 4)])
def test_a_resumed_run_is_the_same_run(tmp_path, accumulate, stop):
    options = {"gradient_accumulation_steps": accumulate}
    straight, wanted = interrupted(tmp_path, None, **options)
    wanted_tensors = everything(straight)
    resumed, events = interrupted(tmp_path / "save", stop, **options)
    assert events == wanted
    same(wanted_tensors, everything(resumed))
    with safe_open(tmp_path / "save" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(segmenter().state_dict())


def test_evaluation_and_prediction_use_the_main_head(tmp_path):
    model = segmenter()
    rows = images(4, batch=2)
    history = train(
        model, rows, rows, loss=TermsLoss(), epochs=2, folder=tmp_path, progress=False,
        auxiliary_weight=0.3, accelerator=accelerator(), allow_shared_groups=True,
    )  # fmt: skip
    for row in history.rows:
        assert row["loss"] == pytest.approx(row["main_loss"] + 0.3 * row["auxiliary_loss"])
    best = ts.Segmenter.from_pretrained(tmp_path / "best")
    assert set(best.state_dict()) == set(model.state_dict())
    image, mask = batch_of(samples(4, size=32))
    found = evaluate(best, rows, metrics=MeanLoss(TermsLoss()))
    assert found["loss"] == pytest.approx(history.best_score)
    with torch.no_grad():
        assert found["loss"] == pytest.approx(float(TermsLoss()(best(image), mask)))
        best.auxiliary_head.head.weight.fill_(float("nan"))
    assert evaluate(best, rows, metrics=MeanLoss(TermsLoss())) == found
    assert predict(best, np.zeros((32, 40), np.uint8)).shape == (32, 40)


def test_rotating_folds_train_it():
    logged = []

    class Small(type(segmenter())):
        """Takes the tiny images of the cohort, enlarged."""

        def forward(self, image, *, auxiliary=False):
            logged.append(auxiliary)
            image = torch.nn.functional.interpolate(image, (36, 36))
            output = super().forward(image, auxiliary=auxiliary)
            small = [torch.nn.functional.interpolate(x, (6, 6)) for x in output] if auxiliary else 0
            return tuple(small) if auxiliary else torch.nn.functional.interpolate(output, (6, 6))

    spec = segmenter().spec.replace(input=BINARY.input)
    (row,) = rotate(Small(spec), epochs=1, auxiliary_weight=0.2, schedule=None).rows
    assert row["loss"] == pytest.approx(row["main_loss"] + 0.2 * row["auxiliary_loss"])
    assert set(logged) == {True, False}


def test_precision_and_layout_reach_both_heads():
    model = segmenter()
    state = prepare(model, mixed_precision="bf16")
    dtypes = []

    def loss(logits, target):
        dtypes.append(logits.dtype)
        return bce(logits, target)

    list(fit(state, images(2, batch=2), loss=loss, epochs=1, channels_last=True))
    assert dtypes == [torch.float32] * 2
    weight = model.auxiliary_head.decoder.convs[0].conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_of_one_that_only_its_norm_cannot_take():
    model = segmenter(auxiliary={"channels": 4, "index": -1})
    freeze(model, "decoder")
    with pytest.raises(TrainingError, match=r"but auxiliary_head\.decoder\.convs\.0\.bn norm"):
        list(fit(prepare(model), images(3, batch=1), loss=bce, epochs=1))


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_weights_out_of_range(weight):
    with pytest.raises(TrainingError, match="a number from 0"):
        fit(prepare(segmenter()), images(2, batch=2), loss=bce, epochs=1, auxiliary_weight=weight)


def test_a_weight_without_a_head():
    model = segmenter(auxiliary=False)
    with pytest.raises(TrainingError, match="Segmenter without an auxiliary head"):
        train(
            model, images(2, batch=2), loss=bce, epochs=1, progress=False, auxiliary_weight=0.4,
            accelerator=accelerator(),
        )  # fmt: skip
