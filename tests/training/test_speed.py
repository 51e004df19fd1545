"""Passes are counted and timed as told; no test here looks at a real clock."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from transferseg.errors import DataError, TrainingError
from transferseg.spec import InputSpec, ModelSpec
from transferseg.training import measure_speed
from transferseg.training import speed as module


class Clocked(nn.Module):
    """Each pass takes as long as it is told; notes what it is called with."""

    def __init__(self, times=()):
        super().__init__()
        self.spec = ModelSpec("unet", "none", ["lesion"], "binary", input=InputSpec(2))
        self.last = nn.Conv2d(2, 1, 1)
        self.dropout = nn.Dropout()
        self.times, self.now, self.seen = list(times), 0.0, []

    def forward(self, image):
        self.now += self.times[len(self.seen)] if self.times else 1.0
        logits = self.last(image)
        self.seen.append((image, logits.dtype, self.training, torch.is_inference_mode_enabled()))
        return logits


@pytest.fixture
def clocked(monkeypatch):
    def make(*times):
        model = Clocked(times)
        monkeypatch.setattr(module, "perf_counter", lambda: model.now)
        return model

    return make


def test_passes_after_the_warm_up_are_timed(clocked):
    model = clocked(100.0, 50.0, 0.5, 0.25, 1.0, 0.25, 0.125)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    speed = measure_speed(model.train(), size=(8, 6), batch_size=4, warmup=2, repeats=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(model.seen) == 7
    assert speed.seconds == (0.5, 0.25, 1.0, 0.25, 0.125)
    assert speed.median == 0.25
    assert speed.frames_per_second == 4 / 0.25
    assert speed.percentile(75) == 0.5
    assert speed.percentile(100) == 1.0
    for image, dtype, training, inference in model.seen:
        assert tuple(image.shape) == (4, 2, 8, 6)
        assert (dtype, training, inference) == (torch.float32, False, True)
    assert model.training
    assert model.dropout.training


def test_it_says_what_it_depends_on(clocked):
    speed = measure_speed(clocked(), size=32, warmup=3, repeats=10, channels_last=True)
    assert (speed.size, speed.batch_size, speed.channels, speed.parameters) == ((32, 32), 1, 2, 3)
    assert (speed.device, speed.peak_memory) == ("cpu", None)
    assert speed.threads == torch.get_num_threads()
    assert speed.machine
    text = str(speed)
    assert text.startswith("1.00 images a second (median of 10 passes after 3; 5 to 95 %: 1.00 to")
    assert "batch 1x2x32x32, fp32, channels last, 3 parameters\n" in text
    assert f"torch {torch.__version__}, " in text
    values = json.loads(json.dumps(speed.to_dict()))
    assert values["frames_per_second"] == values["median"] == values["percentile_95"] == 1.0
    assert values["seconds"] == [1.0] * 10
    assert values["torch_version"] == torch.__version__


def test_precision_layout_and_channels(clocked):
    model = clocked()
    speed = measure_speed(model, size=8, precision="bf16", channels_last=True, warmup=0, repeats=1)
    (image, dtype, _, _) = model.seen[0]
    assert dtype is torch.bfloat16
    assert speed.precision == "bf16"
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert not image.is_contiguous()
    plain = nn.Conv2d(5, 1, 1)
    assert measure_speed(plain, channels=5, size=8, warmup=0, repeats=2).channels == 5
    with pytest.raises(TrainingError, match="give channels="):
        measure_speed(plain)


def test_compiled_with_the_options_of_torch_compile(clocked, monkeypatch):
    given = []

    def compile(model, **options):
        given.append(options)
        return lambda image: model(image * 0)

    monkeypatch.setattr(torch, "compile", compile)
    model = clocked()
    speed = measure_speed(model, size=8, compile={"mode": "max-autotune"}, warmup=1, repeats=1)
    assert given == [{"mode": "max-autotune"}]
    assert speed.compiled
    assert "fp32, compiled, " in str(speed)
    assert all(image.abs().max() == 0 for image, *_ in model.seen)
    measure_speed(model, size=8, compile=True, warmup=1, repeats=1)
    assert given[1] == {}
    with pytest.raises(DataError, match="warmup is a whole number from 1, got 0"):
        measure_speed(model, size=8, compile=True, warmup=0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": 0}, "size must be"),
        ({"size": 2.5}, "size must be"),
        ({"batch_size": 0}, "batch_size"),
        ({"repeats": 0}, "repeats"),
        ({"repeats": True}, "repeats"),
        ({"channels": 0}, "channels is a whole number from 1, got 0"),
        ({"warmup": -1}, "warmup"),
        ({"precision": "int8"}, "unknown precision"),
    ],
)
def test_what_cannot_be(options, match):
    with pytest.raises(DataError, match=match):
        measure_speed(Clocked(), **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_device_is_waited_for_and_its_memory_counted():
    model = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(8)))
    speed = measure_speed(
        model, channels=64, size=512, batch_size=4, device="cuda", warmup=3, repeats=5
    )
    # 8 layers of 64 * 64 * 9 multiply-adds a pixel: no GPU does them in the time of a launch
    assert speed.median > 2e-4
    assert speed.peak_memory > 2 * 4 * 64 * 512 * 512 * 4
    assert speed.device == "cuda"


def test_weights_in_half_precision_are_measured_and_named(clocked):
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float64, "torch.float64")):
        model = clocked()
        assert measure_speed(model.to(dtype), size=8, warmup=1, repeats=1).precision == name
        assert model.seen[-1][0].dtype is dtype
