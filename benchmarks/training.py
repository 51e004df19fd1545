"""Our loop beside a hand-written one; on a GPU, our training beside smp's in plain PyTorch.

    python benchmarks/training.py                 # minutes on a CPU; the rest where there is a GPU
    python benchmarks/training.py --only loop     # or throughput, or inference
    python benchmarks/training.py --table FILE    # and the tables as markdown into FILE

**loop**, on the CPU: `fit` and the shortest PyTorch loop that does the same train two copies of one
model on the same batches. They run in turn, update by update, in one process, so that whatever else
the machine does falls on both; the figure is the median over the rounds of what fit takes more. In
the end both copies must have the same weights, to the last bit. Peak memory is of a process of its
own a side, above what it held before the first update (as Linux counts it; elsewhere it is nan).
**throughput**, on a GPU: images per second in training, of batches that already lie on it: smp's
network in plain PyTorch, in float32 and with autocast to float16, and the same network of ours by
`fit`, in float32, in bf16, and with channels_last and torch.compile. A process of its own a row.
**inference**, on a GPU: images per second of the Attention U-Net at 256 x 256, whose figure in
Khadka 2020 is 116.79 (on another GPU; over the network of 2015, which is "plain" here).
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from accelerate import Accelerator
from processes import in_a_process, memory_of, timed, wait
from torch import nn
from torch.utils.data import DataLoader

import transferseg as ts

LOSS = ts.losses.BCEDiceLoss("binary")
WARM_UP = 5


@dataclass(frozen=True)
class Step:
    """One size of a training step on the CPU."""

    build: Callable[[], nn.Module]
    size: int
    batch: int
    rounds: int


def tiny() -> nn.Module:
    """One convolution: what is left of its step is what a loop costs."""
    model = nn.Conv2d(3, 1, 3, padding=1)
    model.spec = ts.ModelSpec("unet", "none", ["lesion"], "binary")
    return model


def unet(encoder: str) -> Callable[[], nn.Module]:
    """A builder of a U-Net."""
    return lambda: ts.create_model("unet", encoder, classes=["lesion"])


STEPS = {
    "one convolution, 2 x 32 px": Step(tiny, 32, 2, 2000),
    "U-Net resnet10t, 2 x 64 px": Step(unet("resnet10t"), 64, 2, 200),
    "U-Net resnet34, 4 x 128 px": Step(unet("resnet34"), 128, 4, 60),
    "U-Net resnet34, 4 x 224 px": Step(unet("resnet34"), 224, 4, 30),
}


def loader_of(step: Step) -> DataLoader:
    """As many batches as there are rounds, of eight random images."""
    torch.manual_seed(1)
    images = torch.rand(8, 3, step.size, step.size)
    samples = [{"image": x, "mask": (x[:1] > 0.5).to(torch.uint8)} for x in images]
    count = (step.rounds + WARM_UP + 2) * step.batch
    return DataLoader([samples[index % 8] for index in range(count)], batch_size=step.batch)


def ours(model: nn.Module, loader: DataLoader) -> Iterator[object]:
    """`fit`; one item an update."""
    state = ts.TrainState.prepare(
        model, optimizer=ts.training.adamw, accelerator=Accelerator(cpu=True)
    )
    return ts.fit(state, loader, loss=LOSS, epochs=1)


def by_hand(model: nn.Module, loader: DataLoader) -> Iterator[object]:
    """The shortest loop that does the same."""
    optimizer = ts.training.adamw(model)
    model.train()
    for batch in loader:
        loss = LOSS(model(batch["image"]), batch["mask"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


LOOPS = {"ours": ours, "by hand": by_hand}


def measure_loop(name: str) -> dict[str, list[float]]:
    """Seconds of each side's updates, the sides in turn; both must end with the same weights."""
    step = STEPS[name]
    torch.manual_seed(0)
    first = step.build()
    models = {"ours": first, "by hand": copy.deepcopy(first)}
    events = {side: loop(models[side], loader_of(step)) for side, loop in LOOPS.items()}
    for _ in range(WARM_UP):
        for side in LOOPS:
            next(events[side])
    seconds: dict[str, list[float]] = {side: [] for side in LOOPS}
    for turn in range(step.rounds):
        for side in list(LOOPS)[:: 1 if turn % 2 else -1]:
            seconds[side].append(timed(lambda side=side: next(events[side])))
    sides = (model.state_dict().values() for model in models.values())
    if not all(torch.equal(a, b) for a, b in zip(*sides, strict=True)):
        raise SystemExit(f"{name}: the two loops did not train the same")
    return seconds


def measure_loop_memory(name: str, side: str) -> float:
    """MiB above what the process held with model and data made; for a process of its own."""
    step = STEPS[name]
    model, loader = step.build(), loader_of(step)
    events = LOOPS[side](model, loader)
    return memory_of(lambda: next(events), times=3)


def loop_rows(options: list[str]) -> Iterator[list[str]]:
    """One row a step."""
    for name in STEPS:
        seconds: Any = in_a_process(__file__, "--loop", name, *options)
        memory = {s: in_a_process(__file__, "--memory", name, s, *options) for s in LOOPS}
        mine, theirs = seconds["ours"], seconds["by hand"]
        more = statistics.median(a - b for a, b in zip(mine, theirs, strict=True))
        usual = statistics.median(theirs)
        yield [
            name, f"{statistics.median(mine) * 1000:.2f}", f"{usual * 1000:.2f}",
            f"{more * 1e6:.0f}", f"{100 * more / usual:+.2f}",
            f"{memory['ours']:.0f}", f"{memory['by hand']:.0f}",
        ]  # fmt: skip


def smp_unet(size: int) -> nn.Module:  # noqa: ARG001
    """Of smp, for any size."""
    return smp.Unet("resnet50", encoder_weights=None, classes=1)


def smp_upernet(size: int) -> nn.Module:
    """Of smp; timm's Swin wants the size of its images (below 224 its windows shrink)."""
    return smp.UPerNet(
        "tu-swin_tiny_patch4_window7_224", encoder_weights=None, classes=1, img_size=size
    )


def our_upernet(size: int) -> nn.Module:  # noqa: ARG001
    """The same network."""
    return ts.create_model("upernet_smp", "swin_tiny_patch4_window7_224", classes=["lesion"])


def our_unet(size: int) -> nn.Module:  # noqa: ARG001
    """The same network."""
    return unet("resnet50")()


#: ours and smp's
NETWORKS = {
    "U-Net ResNet-50": (our_unet, smp_unet),
    "UPerNet Swin-T": (our_upernet, smp_upernet),
}


def plain(
    model: nn.Module, batches: DataLoader, device: torch.device, precision: str
) -> Iterator[object]:
    """Plain PyTorch, in float32 ("no") or with autocast, and a gradient scaler for float16."""
    model.to(device).train()
    optimizer = ts.training.adamw(model)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    for batch in batches:
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            loss = LOSS(model(batch["image"]), batch["mask"])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        yield loss.detach()


def with_fit(
    model: nn.Module, batches: DataLoader, device: torch.device, precision: str, *, fast: bool
) -> Iterator[object]:
    """`fit`; fast: channels_last and torch.compile."""
    accelerator = Accelerator(
        mixed_precision=precision, cpu=device.type == "cpu",
        dynamo_backend="inductor" if fast else "no",
    )  # fmt: skip
    state = ts.TrainState.prepare(model, optimizer=ts.training.adamw, accelerator=accelerator)
    return ts.fit(state, batches, loss=LOSS, epochs=1, channels_last=fast)


#: a row's name -> whose network (0: ours, 1: smp's), its precision, how it is trained
WAYS: dict[str, tuple[int, str, Callable[..., Iterator[object]]]] = {
    "smp, plain PyTorch, float32": (1, "no", plain),
    "smp, plain PyTorch, AMP float16": (1, "fp16", plain),
    "ours, fit, float32": (0, "no", lambda *given: with_fit(*given, fast=False)),
    "ours, fit, bf16": (0, "bf16", lambda *given: with_fit(*given, fast=False)),
    "ours, fit, bf16 + channels_last + compile": (
        0, "bf16", lambda *given: with_fit(*given, fast=True),
    ),
}  # fmt: skip


def ready_batches(count: int, batch: int, size: int, device: torch.device) -> DataLoader:
    """The same batch again and again, as it lies on the device."""
    torch.manual_seed(1)
    image = torch.rand(batch, 3, size, size, device=device)
    made = {"image": image, "mask": (image[:, :1] > 0.5).to(torch.uint8)}
    return DataLoader(range(count * batch), batch_size=batch, collate_fn=lambda _: made)


def measure_throughput(network: str, way: str, arguments: argparse.Namespace) -> list[float]:
    """Images per second, and MiB of the GPU's memory at most (NaN elsewhere)."""
    device, steps = torch.device(arguments.device), arguments.steps
    whose, precision, train = WAYS[way]
    torch.manual_seed(0)
    model = NETWORKS[network][whose](arguments.size)
    batches = ready_batches(WARM_UP + 4 * steps, arguments.batch, arguments.size, device)
    events = train(model, batches, device, precision)
    for _ in range(WARM_UP):
        next(events)
    rates = []
    for _ in range(3):
        wait(device)
        begin = time.perf_counter()
        for _ in range(steps):
            next(events)
        wait(device)
        rates.append(steps * arguments.batch / (time.perf_counter() - begin))
    cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else float("nan")
    return [statistics.median(rates), peak]


def throughput_rows(options: list[str]) -> Iterator[list[str]]:
    """One row a network and way; the ratio is to smp in float32."""
    for network in NETWORKS:
        first = None
        for way in WAYS:
            rate, peak = in_a_process(__file__, "--throughput", network, way, *options)
            first = first or rate
            yield [network, way, f"{rate:.1f}", f"{rate / first:.2f}", f"{peak:.0f}"]


ENCODERS = ("plain", "resnet50", "mobilenetv2_035")
#: what is measured -> options of `measure_speed`
MODES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"precision": "bf16", "channels_last": True},
    "bf16 + compile": {"precision": "bf16", "channels_last": True, "compile": True},
}


def measure_inference(encoder: str, mode: str, batch: int, arguments: argparse.Namespace) -> float:
    """Images per second of the Attention U-Net, the median of its forward passes."""
    model = ts.create_model("attention_unet", encoder, classes=["polyp"])
    speed = ts.training.measure_speed(
        model, size=256, batch_size=batch, device=arguments.device, warmup=2 * WARM_UP,
        repeats=2 * arguments.steps, **MODES[mode],
    )  # fmt: skip
    return batch / statistics.median(speed.seconds)


def inference_rows(options: list[str]) -> Iterator[list[str]]:
    """One row an encoder and mode: one image at a time, and sixteen."""
    for encoder in ENCODERS:
        for mode in MODES:
            rates = (
                in_a_process(__file__, "--inference", encoder, mode, str(batch), *options)
                for batch in (1, 16)
            )
            yield [f"`{encoder}`", mode, *(f"{rate:.1f}" for rate in rates)]


TABLES: dict[str, tuple[list[str], Callable[[list[str]], Iterator[list[str]]]]] = {
    "loop": (
        ["step", "fit, ms", "by hand, ms", "more, us", "more, %", "fit, MiB", "by hand, MiB"],
        loop_rows,
    ),
    "throughput": (
        ["network", "way", "images/s", "to smp in float32", "GPU, MiB"],
        throughput_rows,
    ),
    "inference": (
        ["encoder", "precision", "images/s, one at a time", "images/s, batches of 16"],
        inference_rows,
    ),
}


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--only", choices=list(TABLES), help="one of the tables")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if gpu else "cpu", help="of the last two tables")
    parser.add_argument("--size", type=int, default=512, help="of the images in throughput")
    parser.add_argument("--batch", type=int, default=8, help="of throughput")
    parser.add_argument("--steps", type=int, default=20, help="of throughput, three times")
    parser.add_argument("--table", type=Path, help="a file for the tables as markdown")
    for name, count in (("--loop", 1), ("--memory", 2), ("--throughput", 2), ("--inference", 3)):
        parser.add_argument(name, nargs=count, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measured = one_figure(arguments)
    if measured is not None:
        print(json.dumps(measured))
        return
    names = [arguments.only] if arguments.only else list(TABLES) if gpu else ["loop"]
    shared = ("threads", "device", "size", "batch", "steps")
    options = [f"--{key}={getattr(arguments, key)}" for key in shared]
    chip = torch.cuda.get_device_name() if gpu else "no GPU"
    where = (
        f"{platform.machine()}, {arguments.threads} threads, {chip}, torch {torch.__version__}, "
        f"smp {smp.__version__}; throughput: batches of {arguments.batch} at {arguments.size} px."
    )
    texts = []
    for name in names:
        heads, rows = TABLES[name]
        lines = [f"| {' | '.join(heads)} |", "|---|" + "---|" * (heads[1] in ("way", "precision"))]
        lines[1] += "--:|" * (len(heads) + 1 - lines[1].count("|"))
        print("\n".join(lines), flush=True)
        for row in rows(options):
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
        texts.append("\n".join(lines))
    if arguments.table:
        arguments.table.write_text("\n\n".join([*texts, where]) + "\n", encoding="utf-8")


def one_figure(arguments: argparse.Namespace) -> object:
    """What a process of its own was started for; None if it was not."""
    if arguments.loop:
        return measure_loop(*arguments.loop)
    if arguments.memory:
        return measure_loop_memory(*arguments.memory)
    if arguments.throughput:
        return measure_throughput(*arguments.throughput, arguments)
    if arguments.inference:
        encoder, mode, batch = arguments.inference
        return measure_inference(encoder, mode, int(batch), arguments)
    return None


if __name__ == "__main__":
    main()
