from __future__ import annotations

import pytest
import torch
from accelerate.utils import GradientAccumulationPlugin

from transferseg.errors import TrainingError
from transferseg.training import TrainState, adamw, fit, sgd

from .conftest import _forget
from .tiny import accelerator, bce, loader, net


def test_one_training_an_accelerator():
    shared = accelerator()
    TrainState.prepare(net(), optimizer=sgd, accelerator=shared)
    with pytest.raises(TrainingError, match="already holds a model"):
        TrainState.prepare(net(), optimizer=sgd, accelerator=shared)
    shared.free_memory()
    state = TrainState.prepare(net(), optimizer=sgd, accelerator=shared)
    assert len(shared._custom_objects) == 1
    assert shared._models == [state.model]


def test_the_same_model_again():
    model = net(dropout=0.0)
    first = TrainState.prepare(
        model, optimizer=sgd, accelerator=accelerator(mixed_precision="bf16")
    )
    assert first.unwrapped is model
    assert hasattr(model, "_original_forward")
    _forget()
    second = TrainState.prepare(model, optimizer=sgd, accelerator=accelerator())
    assert not hasattr(model, "_original_forward")
    dtypes = set()
    model.last.register_forward_hook(lambda *args: dtypes.add(args[-1].dtype))
    list(fit(second, loader(4), loss=bce, epochs=1))
    assert dtypes == {torch.float32}


def test_mixed_precision_computes_in_it_and_saves_full_weights(tmp_path):
    model = net(dropout=0.0)
    state = TrainState.prepare(
        model, optimizer=adamw, accelerator=accelerator(mixed_precision="bf16")
    )
    dtypes = set()
    model.first.register_forward_hook(lambda *args: dtypes.add(args[-1].dtype))
    list(fit(state, loader(4), loss=bce, epochs=1))
    assert dtypes == {torch.bfloat16}
    assert {v.dtype for k, v in model.state_dict().items() if "tracked" not in k} == {torch.float32}
    state.save(tmp_path / "s")
    _forget()
    with pytest.raises(TrainingError, match="mixed_precision is 'no', saved was 'bf16'"):
        TrainState.prepare(net(), optimizer=adamw, accelerator=accelerator()).load(tmp_path / "s")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seed": -1}, "seed must lie in"),
        ({"optimizer": lambda m: sgd(net())}, "parameters that the model does not have"),
        ({"optimizer": lambda m: "sgd"}, "expected a torch optimizer"),
    ],
)
def test_prepare_arguments(options, match):
    with pytest.raises(TrainingError, match=match):
        TrainState.prepare(net(), **{"optimizer": sgd, "accelerator": accelerator(), **options})


def test_an_accumulation_over_epochs_is_refused():
    plugin = GradientAccumulationPlugin(num_steps=2, sync_with_dataloader=False)
    with pytest.raises(TrainingError, match="sync_with_dataloader"):
        TrainState.prepare(
            net(), optimizer=sgd, accelerator=accelerator(gradient_accumulation_plugin=plugin)
        )
