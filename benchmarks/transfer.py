"""What it costs to inspect, plan and load a checkpoint, against torch's own strict loading.

Each way runs in a process of its own on a checkpoint that is generated first, several times in
turn; the fastest run and the least peak memory count. The network is the same on all sides: layers
of one width, as many as fill the size; and torchvision's VGG-16 (553 MB), which is built too, by
`load_checkpoint` from the file alone. Run it on an idle machine:

    python benchmarks/transfer.py [--megabytes 500] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

WIDTH = 1024
#: Limits against torch's own loading: time and peak memory.
MOST_TIME, MOST_MEMORY = 1.3, 1.1


def network(megabytes: int) -> nn.Module:
    """Layers of one width, uninitialised, under the name of an encoder."""
    layers = max(1, megabytes * 10**6 // (4 * WIDTH * WIDTH))
    module = nn.Module()
    with torch.device("meta"):
        module.encoder = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
    return module.to_empty(device="cpu")


def strict(path: Path, model: nn.Module) -> None:
    """What a user would write by hand."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
    else:
        tensors = torch.load(path, weights_only=True)["state_dict"]
    model.load_state_dict(tensors, strict=True)


def inspect(path: Path, model: nn.Module) -> None:
    """Names and shapes alone."""
    from transferseg.transfer import read_listing

    if len(read_listing(path).shapes) != len(model.state_dict()):
        raise RuntimeError("the listing is not whole")


def transfer(path: Path, model: nn.Module) -> None:
    """Inspect, plan, check and load."""
    from transferseg.transfer import transfer_weights

    inspect(path, model)
    transfer_weights(path, model).raise_if_below(encoder=1.0)


def build_strict(path: Path, model: nn.Module) -> None:  # noqa: ARG001
    """What a user writes who knows what the file holds."""
    strict(path, torchvision.models.vgg16(weights=None))


def load_checkpoint(path: Path, model: nn.Module) -> None:  # noqa: ARG001
    """Find out what it holds, build that and load it."""
    import transferseg as ts

    ts.load_checkpoint(path)


Way = Callable[[Path, nn.Module], None]
INTO_A_MODEL: dict[str, Way] = {
    "torch, strict": strict,
    "transferseg: inspect": inspect,
    "transferseg: inspect, plan, load": transfer,
}
BUILT: dict[str, Way] = {
    "torchvision: build, then strict": build_strict,
    "transferseg: load_checkpoint": load_checkpoint,
}


def measure(way: str, path: Path, megabytes: int) -> None:
    """One run in this process; prints seconds and MB of peak memory.

    Imports are not counted. The model is there before, its pages touched, as it is when weights
    are loaded into one.
    """
    import resource

    import transferseg.load  # imports are not what is measured
    import transferseg.transfer  # noqa: F401

    model = network(megabytes if way in INTO_A_MODEL else 0)
    for parameter in model.parameters():
        parameter.data.zero_()
    start = time.perf_counter()
    {**INTO_A_MODEL, **BUILT}[way](path, model)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak": peak / 1e3}))


def run(way: str, path: Path, megabytes: int) -> dict[str, float]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--file", str(path)]
    done = subprocess.run(
        [*command, "--megabytes", str(megabytes)], capture_output=True, text=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(folder: Path, megabytes: int, repeats: int) -> str:
    """The markdown table of all ways on both formats."""
    model = network(megabytes)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    tensors = model.state_dict()
    files = [folder / name for name in ("layers.pth", "layers.safetensors", "vgg16.pth")]
    torch.save({"state_dict": tensors, "epoch": 3}, files[0])
    save_file(tensors, files[1])
    torch.save({"state_dict": torchvision.models.vgg16(weights=None).state_dict()}, files[2])
    rows = [
        "| file | way | seconds | of torch's | peak memory, MB | of torch's | within the limits |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in files:
        ways = BUILT if path.stem == "vgg16" else INTO_A_MODEL
        results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(repeats):  # in turn, so that no way has the quiet minutes for itself
            for way, found in results.items():
                found.append(run(way, path, megabytes))
        best = {way: min(f["seconds"] for f in found) for way, found in results.items()}
        peak = {way: min(f["peak"] for f in found) for way, found in results.items()}
        peer = next(iter(ways))
        for way in ways:
            faster, smaller = best[way] / best[peer], peak[way] / peak[peer]
            within = "yes" if faster <= MOST_TIME and smaller <= MOST_MEMORY else "NO"
            rows.append(
                f"| {path.name} | {way} | {best[way]:.3f} | {faster:.2f} | {peak[way]:,.0f} "
                f"| {smaller:.2f} | {within} |"
            )
    return "\n".join(rows)


def main() -> None:
    """Measure all ways, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way is not None:
        measure(given.way, given.file, given.megabytes)
        return
    with tempfile.TemporaryDirectory() as folder:
        print(table(Path(folder), given.megabytes, given.repeats))


if __name__ == "__main__":
    main()
