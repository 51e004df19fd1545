"""A compiled model trains as the plain one, under the plain one's names."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import TorchDynamoPlugin
from safetensors import safe_open
from torch import nn

from transferseg.errors import TrainingError
from transferseg.models import Unfreezing
from transferseg.training import EMA, EpochEvent, TrainState, adamw, cosine, evaluate, fit, train

from .conftest import _forget
from .gradual_processes import small
from .test_resume import everything, told
from .test_resume import same as equal
from .tiny import BINARY, Accuracy, Net, TermsLoss, accelerator, bce, loader, net, same, weights


@pytest.fixture(autouse=True)
def forgotten():
    yield
    torch._dynamo.reset()


def prepare(model=None, **options):
    return TrainState.prepare(
        net() if model is None else model, optimizer=partial(adamw, lr=0.05), schedule=cosine(),
        accelerator=accelerator(**options), seed=7,
    )  # fmt: skip


def follow(state, *, stop=None, folder=None, **options):
    """Events of a run that evaluates after every epoch; saved after the event number `stop`."""
    seen = []
    for event in fit(state, loader(), loss=TermsLoss(), epochs=3, **options):
        seen.append(told(event))
        if isinstance(event, EpochEvent):
            scores = evaluate(
                state.model, loader(5), metrics=Accuracy(), accelerator=state.accelerator
            )
            seen.append(scores)
        if len(seen) == stop:
            state.save(folder)
            break
    return seen


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_compiled_and_not_are_the_same_run(precision):
    """By the backend that computes what the model computes, to the bit."""
    plain = prepare(mixed_precision=precision)
    expected, wanted = follow(plain), everything(plain)
    _forget()
    compiled = prepare(mixed_precision=precision, dynamo_backend="eager")
    assert type(compiled.model).__name__ == "OptimizedModule"
    assert follow(compiled) == expected
    equal(wanted, everything(compiled))
    assert list(compiled.unwrapped.state_dict()) == list(net().state_dict())


def test_a_save_of_a_compiled_run_goes_on_uncompiled(tmp_path):
    straight = prepare()
    expected, wanted = follow(straight), everything(straight)
    _forget()
    events = follow(prepare(dynamo_backend="eager"), stop=3, folder=tmp_path / "save")
    with safe_open(tmp_path / "save" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(net().state_dict())
    _forget()
    resumed = prepare(net(4))
    resumed.load(tmp_path / "save")
    assert events + follow(resumed) == expected
    equal(wanted, everything(resumed))


class Both(Net):
    """Two heads, as a model with an auxiliary one has them."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.spec = BINARY.replace(auxiliary=True)
        self.other = nn.Conv2d(3, 1, 1)

    def forward(self, image, *, auxiliary=False):
        x = F.relu(self.norm(self.first(image)))
        return (self.last(x), self.other(x)) if auxiliary else self.last(x)


def test_both_heads_and_the_whole_of_train_compiled(tmp_path):
    """With the backward pass compiled too, as inductor has it."""
    found = []
    for name in ("no", "aot_eager"):
        _forget()
        torch.manual_seed(0)
        model = Both()
        history = train(
            model, loader(4), loader(4), loss=TermsLoss(), epochs=2, folder=tmp_path / name,
            accelerator=accelerator(dynamo_backend=name), progress=False, ema_decay=0.5, best_k=1,
        )  # fmt: skip
        found.append((weights(model), history))
    (plain, before), (compiled, after) = found
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(value, compiled[name])
    for old, new in zip(before.rows, after.rows, strict=True):
        assert old["auxiliary_loss"] == pytest.approx(new["auxiliary_loss"], rel=1e-5)
        assert old["score"] == pytest.approx(new["score"], rel=1e-5)
    with safe_open(tmp_path / "aot_eager" / "best" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(plain)


def test_what_begins_to_train_does_so_compiled_and_averaged():
    gradual = Unfreezing({1: "first"})
    plain = prepare(small())
    wanted = EMA(plain, decay=0.5), follow(plain, unfreeze=gradual), everything(plain)
    _forget()
    compiled = prepare(small(), dynamo_backend="eager")
    ema = EMA(compiled, decay=0.5)
    assert follow(compiled, unfreeze=gradual) == wanted[1]
    equal(wanted[2], everything(compiled))
    assert same(wanted[0].averaged.module.state_dict(), ema.averaged.module.state_dict())


class Blocks(nn.Module):
    """Blocks of one class, which accelerate can compile one by one."""

    def __init__(self):
        super().__init__()
        self.spec = BINARY
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5)) for _ in "ab"
        )
        self.last = nn.Conv2d(3, 1, 1)

    def forward(self, image):
        x = F.relu(self.first(image))
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def blocks():
    torch.manual_seed(0)
    return Blocks()


# torch's own, while it looks at what one block hands to the next
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_blocks_that_are_compiled_one_by_one_train_after_an_evaluation():
    plain = prepare(blocks())
    expected, wanted = follow(plain), everything(plain)
    _forget()
    plugin = TorchDynamoPlugin(backend="eager", use_regional_compilation=True)
    compiled = prepare(blocks(), dynamo_plugin=plugin)
    events = fit(compiled, loader(), loss=TermsLoss(), epochs=3)
    seen = [told(next(events))]
    compiled.unwrapped.eval()  # left so by the loop around, as `predict` of one's own may
    for event in events:
        seen.append(told(event))
        compiled.unwrapped.eval()
    assert seen == [event for event in expected if isinstance(event, tuple)]
    equal(wanted, everything(compiled))
    assert list(compiled.unwrapped.state_dict()) == list(blocks().state_dict())


def test_a_model_is_compiled_by_the_accelerator():
    with pytest.raises(TrainingError, match=r"dynamo_backend='inductor'"):
        prepare(torch.compile(net(), backend="eager"))


def test_the_model_is_handed_back_plain():
    shared, model = accelerator(dynamo_backend="eager", mixed_precision="bf16"), net()
    train(model, loader(2), loss=bce, epochs=1, accelerator=shared, progress=False)
    assert model(torch.zeros(1, 1, 4, 4)).dtype == torch.float32
    assert not hasattr(model, "_original_forward")
    assert all("_orig_mod" not in name for name in model.state_dict())
