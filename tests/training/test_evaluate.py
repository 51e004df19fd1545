from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler

from transferseg.errors import DataError, TrainingError
from transferseg.training import MeanLoss, TrainState, adamw, evaluate, evaluation_mode, fit

from .tiny import Accuracy, TermsLoss, accelerator, bce, loader, net, samples


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def by_hand(model, data):
    model = copy.deepcopy(model).eval()
    batch = next(iter(DataLoader(data, batch_size=len(data))))
    with torch.no_grad():
        logits = model(batch["image"])
    return logits, batch["mask"]


@pytest.mark.parametrize("use", [False, True])
def test_scores_are_those_by_hand(use):
    model = net()
    logits, mask = by_hand(model, samples(7))
    expected = ((logits > 0) == (mask > 0)).float().mean().item()
    scores = evaluate(
        model,
        loader(7, batch=3, shuffle=False),
        metrics={"a": Accuracy(), "loss": MeanLoss(TermsLoss())},
        accelerator=accelerator() if use else None,
    )
    assert scores["a"]["accuracy"] == pytest.approx(expected)
    terms = {k: v.item() for k, v in TermsLoss().terms(logits, mask).items()}
    assert scores["loss"] == pytest.approx(terms)


def test_the_real_counts():
    from transferseg.metrics import SegmentationCounts

    model = net()
    counts = SegmentationCounts(model.spec.classes, mode="binary")
    scores = evaluate(model, loader(5), metrics=counts)
    logits, mask = by_hand(model, samples(5))
    tp, found, there = ((logits > 0) & (mask > 0)).sum(), (logits > 0).sum(), (mask > 0).sum()
    assert scores.dice["lesion"] == pytest.approx((2 * tp / (found + there)).item())
    assert len(counts.rows) == 5
    evaluate(model, loader(3), metrics=counts)
    assert len(counts.rows) == 3  # forgotten at the start, kept at the end


def test_every_submodule_gets_its_mode_back():
    model = net()
    model.norm.eval()
    before = modes(model)
    evaluate(model, loader(4), metrics=Accuracy())
    assert modes(model) == before
    model.forward = lambda image: 1 / 0
    with pytest.raises(ZeroDivisionError):
        evaluate(model, loader(4), metrics=Accuracy())
    assert modes(model) == before
    with evaluation_mode(model):
        assert not any(modes(model).values())


def test_weights_and_random_state_are_as_they_were():
    model = net()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(model, loader(4, shuffle=True), metrics=Accuracy())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_evaluating_between_updates_changes_nothing():
    from .conftest import _forget

    results = []
    for often in (False, True):
        _forget()
        state = TrainState.prepare(
            net(), optimizer=adamw, accelerator=accelerator(gradient_accumulation_steps=2)
        )
        for _ in fit(state, loader(9), loss=bce, epochs=2):
            if often:
                evaluate(state.model, loader(5), metrics=Accuracy(), accelerator=state.accelerator)
                evaluate(state.unwrapped, loader(5), metrics=Accuracy())
        results.append({k: v.clone() for k, v in state.unwrapped.state_dict().items()})
    assert all(torch.equal(v, results[1][k]) for k, v in results[0].items())


def test_a_sampler_shorter_than_its_data_loses_no_sample():
    """accelerate's gather_for_metrics would cut the last batch by the data set's length."""
    data = DataLoader(samples(9), batch_size=4, sampler=SubsetRandomSampler(range(7)))
    metric = Accuracy()
    evaluate(net(), data, metrics=metric, accelerator=accelerator())
    assert metric.all == 7 * 36


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("use", [False, True])
def test_images_go_in_as_the_weights_are(dtype, use):
    """And come out as float32, to be compared with the image as it was."""
    model = copy.deepcopy(net(norm=False)).to(dtype)
    data = samples(7)
    with torch.no_grad():
        logits = model.eval()(torch.stack([one["image"] for one in data]).to(dtype)).float()
    images = torch.stack([one["image"] for one in data])
    found = evaluate(
        model.train(),
        DataLoader(data, batch_size=3),
        metrics=MeanLoss(nn.functional.l1_loss),
        accelerator=accelerator() if use else None,
        target="image",
    )
    assert found["loss"] == pytest.approx((logits - images).abs().mean().item(), rel=1e-5)


def test_the_image_as_target():
    class Same(nn.Module):
        spec = net().spec

        def forward(self, image):
            return image + 2

    found = evaluate(Same(), loader(3), metrics=MeanLoss(nn.functional.mse_loss), target="image")
    assert found == {"loss": pytest.approx(4.0)}


def test_mean_losses_add_up():
    first, second, both = (MeanLoss(TermsLoss()) for _ in range(3))
    logits, mask = torch.randn(5, 1, 3, 3), torch.ones(5, 1, 3, 3)
    first.update(logits[:3], mask[:3])
    second.update(logits[3:], mask[3:])
    both.update(logits, mask)
    assert (first + second).scores() == pytest.approx(both.scores())
    with pytest.raises(TrainingError, match="no batch"):
        MeanLoss(bce).scores()


def test_errors():
    with pytest.raises(TrainingError, match="no batches"):
        evaluate(net(), loader(1, batch=2, drop_last=True), metrics=Accuracy())
    with pytest.raises(TrainingError, match="Did you mean 'mask'"):
        evaluate(net(), loader(2), metrics=Accuracy(), target="masks")
    data = [{"image": torch.zeros(1, 4, 4)}]
    with pytest.raises(DataError, match="no tensor 'mask'"):
        evaluate(net(), DataLoader(data), metrics=Accuracy())
    data = [{"image": torch.zeros(3, 4, 4), "mask": torch.zeros(1, 4, 4, dtype=torch.uint8)}]
    with pytest.raises(DataError, match=r"3 channel\(s\), the model takes 1"):
        evaluate(net(), DataLoader(data), metrics=Accuracy())


def test_progress_is_shown_and_gone(capsys):
    evaluate(net(), loader(2), metrics=Accuracy(), progress=True)
    assert "evaluate" in capsys.readouterr().err
    evaluate(net(), loader(2), metrics=Accuracy())
    assert capsys.readouterr().err == ""
