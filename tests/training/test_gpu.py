"""Precision, layout and compilation, and that no update waits for the device.

What needs a GPU is skipped without one; the CPU runs what it can of the same.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import GradScalerKwargs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from tests.training.conftest import _forget
from tests.training.tiny import bce, net, same, samples, weights
from transferseg.losses import LOSSES, BCEDiceLoss
from transferseg.models import create_model
from transferseg.training import StepEvent, TrainState, adamw, cosine, evaluate, fit, sgd
from transferseg.training.evaluate import MeanLoss

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])


def on(device, **options) -> Accelerator:
    return Accelerator(cpu=device == "cpu", **options)


def batches(device="cpu", count=12, **options) -> DataLoader:
    """Batches of two that already lie on the device."""
    moved = [
        {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in sample.items()}
        for sample in samples(count)
    ]
    return DataLoader(moved, batch_size=2, **options)


def trained(device, *, model=None, accelerator=None, epochs=2, **options):
    """The state after some updates, and the losses of these."""
    _forget()
    state = TrainState.prepare(
        net(dropout=0.0) if model is None else model,
        optimizer=partial(sgd, lr=0.05),
        accelerator=on(device, **(accelerator or {})),
    )
    events = fit(state, batches(device), loss=bce, epochs=epochs, **options)
    return state, [event.loss for event in events if isinstance(event, StepEvent)]


class NoReadingBack(TorchDispatchMode):
    """What would make a GPU's queue be waited for: a value that Python asks for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
            torch.ops.aten.is_nonzero.default,
        ), function
        return function(*args, **(kwargs or {}))


@contextmanager
def nobody_waits(device):
    if device == "cpu":
        with NoReadingBack():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


OPTIONS = {
    "plain": ({}, {}),
    "clipped": ({}, {"clip_norm": 0.5}),
    "accumulated": ({"gradient_accumulation_steps": 2}, {}),
    "bf16, channels last": ({"mixed_precision": "bf16"}, {"channels_last": True}),
}


@pytest.mark.parametrize("name", OPTIONS)
@devices
def test_no_update_waits_for_the_device(device, name):
    settings, options = OPTIONS[name]
    model = create_model("unet", "test_resnet", classes=["lesion"], in_channels=1)
    data = [
        {"image": image.to(device), "mask": (image > 0.5).to(device, torch.uint8), "id": "x"}
        for image in torch.rand(16, 1, 32, 32)
    ]
    state = TrainState.prepare(
        model, optimizer=sgd, schedule=cosine(), accelerator=on(device, **settings)
    )
    # on a CPU our own losses do read values, which wait for nobody there
    loss = bce if device == "cpu" else BCEDiceLoss("binary")
    events = fit(state, DataLoader(data, batch_size=2), loss=loss, epochs=2, **options)
    next(events)  # the first batch is checked, value by value
    with nobody_waits(device):
        for _ in range(3):
            next(events)
    assert state.step == 4


def test_a_value_that_is_read_back_is_seen():
    state = TrainState.prepare(net(), optimizer=sgd, accelerator=on("cpu"))

    def loss(logits, target):
        value = bce(logits, target)
        assert math.isfinite(value.item())
        return value

    events = fit(state, batches(), loss=loss, epochs=1)
    next(events)
    with NoReadingBack(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        next(events)


@gpu
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_pinned_batches_are_awaited_by_nobody(precision):
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(
        mixed_precision=precision, dataloader_config=DataLoaderConfiguration(non_blocking=True)
    )
    state = TrainState.prepare(net(), optimizer=adamw, accelerator=accelerator)
    events = fit(state, batches(pin_memory=True), loss=bce, epochs=1)
    next(events)
    with nobody_waits("cuda"):
        for _ in range(4):
            next(events)


@gpu
def test_a_gpu_gives_what_the_cpu_gives():
    (first, one), (second, other) = trained("cpu"), trained("cuda")
    assert next(second.unwrapped.parameters()).is_cuda
    assert other == pytest.approx(one, rel=1e-4)
    for name, value in weights(first.unwrapped).items():
        torch.testing.assert_close(
            second.unwrapped.state_dict()[name].cpu(), value, rtol=1e-3, atol=1e-4
        )


@gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_trains_nearly_the_same(precision):
    _, one = trained("cuda")
    # a scale that fits from the beginning: no update is skipped
    scaler = [GradScalerKwargs(init_scale=64.0)] if precision == "fp16" else []
    state, other = trained(
        "cuda", accelerator={"mixed_precision": precision, "kwargs_handlers": scaler}
    )
    assert other == pytest.approx(one, rel=0.02)
    assert (state.accelerator.scaler is not None) == (precision == "fp16")
    assert all(p.dtype is torch.float32 for p in state.unwrapped.parameters())


@gpu
def test_updates_that_overflow_are_no_updates():
    _forget()
    model = net(dropout=0.0)
    scale = 2.0**40  # beyond float16 at first, halved at every overflow
    state = TrainState.prepare(
        model,
        optimizer=partial(sgd, lr=0.05),
        schedule=cosine(),
        accelerator=on(
            "cuda", mixed_precision="fp16", kwargs_handlers=[GradScalerKwargs(init_scale=scale)]
        ),
    )
    before = weights(model)
    events = fit(state, batches("cuda", 40), loss=bce, steps=3)
    first = next(events)
    assert first.step == state.step == 1
    assert state.samples_seen > 2  # of updates that were skipped
    assert state.accelerator.scaler.get_scale() < scale
    assert len([*events]) == 2
    assert state.scheduler.last_epoch == 3
    assert all(torch.isfinite(v).all() for v in weights(model).values())
    assert not same(before, {k: v.cpu() for k, v in weights(model).items()})


COMPILED = [
    ("cpu", "no", "eager"),  # dynamo's graph, without a compiler
    pytest.param("cuda", "no", "inductor", marks=gpu),
    pytest.param("cuda", "bf16", "inductor", marks=gpu),
]


@pytest.mark.parametrize(("device", "precision", "backend"), COMPILED)
def test_a_compiled_model_trains_the_same(device, precision, backend):
    settings = {"mixed_precision": precision}
    first, one = trained(device, accelerator=settings)
    second, other = trained(device, accelerator={**settings, "dynamo_backend": backend})
    assert hasattr(second.model, "_orig_mod") or hasattr(second.model, "_compiled_call_impl")
    tolerance = 1e-5 if precision == "no" else 0.02
    assert other == pytest.approx(one, rel=tolerance)
    assert second.unwrapped.state_dict().keys() == first.unwrapped.state_dict().keys()


@gpu
def test_channels_last_on_a_gpu_gives_the_same_losses():
    (_, one), (state, other) = trained("cuda"), trained("cuda", channels_last=True)
    weight = state.unwrapped.first.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"boundary"}))  # it makes distance maps
@gpu
def test_no_loss_waits_for_the_device(name):
    loss = LOSSES[name]("multilabel").to("cuda")
    logits = torch.randn(2, 3, 32, 32, device="cuda", requires_grad=True)
    target = torch.randint(0, 2, (2, 3, 32, 32), device="cuda", dtype=torch.uint8)
    loss(logits, target).backward()
    expected, logits.grad = logits.grad, None
    with nobody_waits("cuda"):
        loss(logits, target).backward()
    torch.testing.assert_close(logits.grad, expected)


@gpu
def test_evaluation_in_bf16_on_a_gpu():
    state, _ = trained("cuda", accelerator={"mixed_precision": "bf16"})
    scores = evaluate(
        state.model, DataLoader(samples(), batch_size=4), metrics=MeanLoss(bce),
        accelerator=state.accelerator,
    )  # fmt: skip
    with torch.no_grad():
        model = state.unwrapped.float().cpu().eval()
        batch = next(iter(DataLoader(samples(), batch_size=10)))
        expected = bce(model(batch["image"]), batch["mask"]).item()
    assert scores["loss"] == pytest.approx(expected, rel=0.02)
