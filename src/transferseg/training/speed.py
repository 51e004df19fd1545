"""How many images a second a model takes, measured so that the figure means something."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transferseg.errors import DataError, TrainingError
from transferseg.spec import ModelSpec
from transferseg.training.inference import (
    Precision,
    autocast,
    both_sides,
    check_pair,
    check_precision,
    device_of,
    dtype_of,
)
from transferseg.training.modes import evaluation_mode


@dataclass(frozen=True)
class Speed:
    """The time that forward passes took, and all that it depends on.

    Attributes:
        seconds: of each measured pass, in order.
        size: height and width of the images.
        batch_size: images a pass.
        channels: of an image.
        precision: "fp32", "bf16" or "fp16": by autocast, or what the model's weights are in.
        compiled: whether by `torch.compile`.
        channels_last: whether model and images lay channels last.
        warmup: passes before the measured ones.
        parameters: of the model.
        device: its type, such as "cuda".
        machine: the name of the processor or accelerator.
        threads: of the CPU that torch may use.
        torch_version: torch.__version__.
        peak_memory: bytes of device memory that tensors held at most during the measured passes,
            the model's weights among them; None where torch does not count them (not CUDA).
    """

    seconds: tuple[float, ...]
    size: tuple[int, int]
    batch_size: int
    channels: int
    precision: str
    compiled: bool
    channels_last: bool
    warmup: int
    parameters: int
    device: str
    machine: str
    threads: int
    torch_version: str
    peak_memory: int | None

    @property
    def median(self) -> float:
        """Seconds of the median pass."""
        return self.percentile(50)

    @property
    def frames_per_second(self) -> float:
        """Images a second of the median pass."""
        return self.batch_size / self.median

    def percentile(self, percent: float) -> float:
        """Seconds that `percent` of the passes took at most, interpolated linearly."""
        return float(np.percentile(self.seconds, percent))

    def __str__(self) -> str:
        fast, slow = (self.batch_size / self.percentile(percent) for percent in (5, 95))
        height, width = self.size
        how: list[str] = [self.precision]
        how += ["compiled"] * self.compiled + ["channels last"] * self.channels_last
        memory = "" if self.peak_memory is None else f"; at most {self.peak_memory / 2**20:.0f} MiB"
        return (
            f"{self.frames_per_second:.2f} images a second (median of {len(self.seconds)} passes "
            f"after {self.warmup}; 5 to 95 %: {slow:.2f} to {fast:.2f})\n"
            f"batch {self.batch_size}x{self.channels}x{height}x{width}, {', '.join(how)}, "
            f"{self.parameters:,} parameters{memory}\n"
            f"{self.device} ({self.machine}), torch {self.torch_version}, {self.threads} threads"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, with `frames_per_second`, the median and two percentiles."""
        values = {**asdict(self), "seconds": list(self.seconds), "size": list(self.size)}
        derived = {"frames_per_second": self.frames_per_second, "median": self.median}
        tails = {f"percentile_{percent}": self.percentile(percent) for percent in (5, 95)}
        return {**derived, **tails, **values}


def measure_speed(
    model: nn.Module,
    *,
    size: int | tuple[int, int] = 256,
    batch_size: int = 1,
    channels: int | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    compile: bool | Mapping[str, Any] = False,
    channels_last: bool = False,
    warmup: int = 10,
    repeats: int = 50,
) -> Speed:
    """Time forward passes of a model in evaluation mode, one by one.

    A pass begins with normalised images on the device and ends when their logits are there: the
    device is waited for before and after each. Reading, resizing, copying to the device and
    thresholding are not in it. The images are random numbers, which cost what any others cost.

    Args:
        model: any that takes (B, C, H, W); every submodule gets its own training mode back.
        size: height and width of the images (one number: both).
        batch_size: images a pass; 1 is what a video stream gives.
        channels: of an image; those of the model's spec by default.
        device: the model is moved there first and stays; it stays where it is when not given.
        precision: "fp32", or "bf16" or "fp16" by autocast; "fp32" leaves a model whose weights are
            in another dtype in that one.
        compile: whether `torch.compile` is applied, or its options: {"mode": "max-autotune"}. It
            compiles in the first pass of the warm-up, so that takes one or more.
        channels_last: lays model and images out channels last; the model stays so.
        warmup: passes that are not measured.
        repeats: passes that are.

    Returns:
        The times, with all that they depend on.

    Raises:
        DataError: a number out of its range, an unknown precision.
        TrainingError: neither `channels` nor a spec.

    Example:
        >>> speed = measure_speed(nn.Conv2d(1, 2, 3), channels=1, size=32, warmup=1, repeats=3)
        >>> len(speed.seconds), speed.size, speed.parameters, speed.frames_per_second > 0
        (3, (32, 32), 20, True)
    """
    check_precision(precision)
    check_pair("size", size)
    sides = both_sides(size) or (0, 0)
    channels = _channels(model) if channels is None else channels
    _check_numbers(
        {"batch_size": batch_size, "channels": channels, "warmup": warmup, "repeats": repeats},
        least={"warmup": 0 if compile is False else 1},
    )
    if device is not None:
        model.to(device)
    # Not from torch's own generator: measuring in the middle of training changes nothing in it.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, channels, *sides, generator=generator)
    images = images.to(device_of(model), dtype_of(model))
    if channels_last:
        model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    network: Callable[[Tensor], Any] = model
    if compile is not False:
        network = torch.compile(model, **(compile if isinstance(compile, Mapping) else {}))
    with evaluation_mode(model):
        seconds = _timed(network, images, precision=precision, warmup=warmup, repeats=repeats)
    return Speed(
        seconds=seconds,
        size=sides,
        batch_size=batch_size,
        channels=channels,
        precision=_computed_in(precision, images.dtype),
        compiled=compile is not False,
        channels_last=channels_last,
        warmup=warmup,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        **_circumstances(images.device),
    )


def _check_numbers(given: Mapping[str, object], *, least: Mapping[str, int]) -> None:
    """Refuse what is no whole number from 1, or from another least."""
    for name, number in given.items():
        first = least.get(name, 1)
        if not isinstance(number, int) or isinstance(number, bool) or number < first:
            raise DataError(f"{name} is a whole number from {first}, got {number!r}.")


@torch.inference_mode()
def _timed(
    network: Callable[[Tensor], Any],
    images: Tensor,
    *,
    precision: Precision,
    warmup: int,
    repeats: int,
) -> tuple[float, ...]:
    """Seconds of each pass that is measured."""
    device = images.device
    seconds = []
    _wait(device)
    for number in range(warmup + repeats):
        if number == warmup and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = perf_counter()
        with autocast(device, precision):  # anew in each pass, as prediction does it
            network(images)
        _wait(device)
        seconds.append(perf_counter() - start)
    return tuple(seconds[warmup:])


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given; the CPU always has."""
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


def _circumstances(device: torch.device) -> dict[str, Any]:
    """Where it was measured, and what memory it took there."""
    cuda = device.type == "cuda"
    return {
        "device": device.type,
        "machine": _machine(device),
        "threads": torch.get_num_threads(),
        "torch_version": str(torch.__version__),
        "peak_memory": torch.cuda.max_memory_allocated(device) if cuda else None,
    }


def _channels(model: nn.Module) -> int:
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise TrainingError(
            f"{type(model).__name__} has no ModelSpec as its .spec, which says how many channels "
            "its images have; give channels=."
        )
    return spec.input.channels


def _computed_in(precision: Precision, weights: torch.dtype) -> str:
    """The name of what is computed in: autocast's, or else the weights'."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return precision if precision != "fp32" else names.get(weights, str(weights))


def _machine(device: torch.device) -> str:
    """The name of the accelerator, or of the processor as well as the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
