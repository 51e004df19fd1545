"""Our networks beside segmentation-models-pytorch's and torchvision's: time and peak memory.

    python benchmarks/models.py                     # every pair: minutes an entry
    python benchmarks/models.py --pairs "unet*"     # some of them
    python benchmarks/models.py --table FILE        # and the table as markdown into FILE

Both sides of a pair are one network: the weights of the peer are copied into ours, and the logits
must agree before anything is measured. Then the two run in turn, in one process, so that whatever
else the machine does falls on both; the figure is the median of their ratios. Peak memory is of a
process of its own a side: the resident set at its largest, less what it was before the first step
(as Linux counts it; elsewhere the column is empty).
The forward pass is in eval mode without gradients; the training step is forward, binary
cross-entropy, backward and SGD.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from processes import in_a_process, memory_of, timed, write_table
from torch import Tensor, nn

import transferseg as ts

CLASSES = 2


@dataclass(frozen=True)
class Pair:
    """One network, ours and a peer's."""

    ours: Callable[[], nn.Module]
    peer: Callable[[], nn.Module]
    library: str
    late: str = "head."  # prefix of our tensors that the peer has last, but for its head


def of_smp(architecture: str, encoder: str, **options: object) -> Callable[[], nn.Module]:
    """A builder of smp's; without downloading anything."""
    build = getattr(smp, architecture)
    return lambda: build(encoder, encoder_weights=None, classes=CLASSES, **options)


def of_torchvision(name: str) -> Callable[[], nn.Module]:
    """A builder of torchvision's segmentation models."""
    build = getattr(torchvision.models.segmentation, name)
    return lambda: build(weights=None, weights_backbone=None, num_classes=CLASSES)


def of_ours(architecture: str, encoder: str, **options: object) -> Callable[[], nn.Module]:
    """A builder of ours."""
    return lambda: ts.create_model(architecture, encoder, classes=CLASSES, **options)


SMP_VGG = {"full_resolution_skip": False, "center": True}
SMP_ATROUS = {"rates": [12, 24, 36], "align_corners": True, "dilation": "smp"}
SMP_SEPARABLE = {**SMP_ATROUS, "layout": "projection"}
PAIRS = {
    "unet resnet34": Pair(of_ours("unet", "resnet34"), of_smp("Unet", "resnet34"), "smp"),
    "unet resnext50_32x4d": Pair(
        of_ours("unet", "resnext50_32x4d"), of_smp("Unet", "resnext50_32x4d"), "smp"
    ),
    "unet vgg16_bn": Pair(
        of_ours("unet", "vgg16_bn", **SMP_VGG), of_smp("Unet", "vgg16_bn"), "smp"
    ),
    "unet swin_tiny_patch4_window7_224": Pair(
        of_ours("unet", "swin_tiny_patch4_window7_224"),
        of_smp("Unet", "tu-swin_tiny_patch4_window7_224"),
        "smp",
    ),
    "deeplabv3 resnet50 (smp)": Pair(
        of_ours("deeplabv3", "resnet50", output_stride=8, **SMP_ATROUS),
        of_smp("DeepLabV3", "resnet50", encoder_output_stride=8),
        "smp",
    ),
    "deeplabv3 resnet50 (torchvision)": Pair(
        of_ours("deeplabv3", "resnet50"), of_torchvision("deeplabv3_resnet50"), "torchvision"
    ),
    "deeplabv3plus resnet50": Pair(
        of_ours("deeplabv3plus", "resnet50", **SMP_SEPARABLE),
        of_smp("DeepLabV3Plus", "resnet50"),
        "smp",
        "decoder.convs.",
    ),
    "upernet_smp resnet50": Pair(
        of_ours("upernet_smp", "resnet50"), of_smp("UPerNet", "resnet50"), "smp"
    ),
    "psp_smp resnet50": Pair(
        of_ours("psp_smp", "resnet50", stride=8),
        of_smp("PSPNet", "resnet50"),
        "smp",
    ),
    "fcn resnet50": Pair(
        of_ours("fcn", "resnet50", num_convs=1, concat=False),
        of_torchvision("fcn_resnet50"),
        "torchvision",
    ),
}


def same_network(pair: Pair, size: int) -> tuple[nn.Module, nn.Module]:
    """Both sides with the peer's weights, which are copied in their order; checked by logits."""
    torch.manual_seed(0)
    ours, peer = pair.ours(), pair.peer()
    theirs, own = peer.state_dict(), ours.state_dict()
    keys = sorted(own, key=lambda key: 2 * key.startswith("head.") + key.startswith(pair.late))
    given, taken = [theirs[key] for key in in_order(theirs)], [own[key] for key in in_order(keys)]
    if [value.shape for value in given] != [value.shape for value in taken]:
        raise SystemExit("the two sides do not have the same tensors in the same order")
    with torch.no_grad():
        for value, new in zip(taken, given, strict=True):
            value.copy_(new)
        image = torch.rand(2, 3, size, size)
        mine, theirs = (logits(model.eval(), image) for model in (ours, peer))
    worst = float((mine - theirs).abs().max() / theirs.abs().max())
    if worst > 1e-4:
        raise SystemExit(f"not the same network: logits differ by {worst:.1e}")
    return ours, peer


def in_order(keys: Iterable[str]) -> list[str]:
    """Keys as they come, but those of one downsampling by name: Swin has them in two orders."""
    keys = list(keys)
    place: dict[str, int] = {}
    for index, key in enumerate(keys):
        place.setdefault(_downsampling(key), index)
    return sorted(keys, key=lambda key: (place[_downsampling(key)], key))


def _downsampling(key: str) -> str:
    before, found, _ = key.partition(".downsample.")
    return before + found if found else key


def logits(model: nn.Module, image: Tensor) -> Tensor:
    """The main logits; torchvision gives them in a dict."""
    out = model(image)
    return out["out"] if isinstance(out, dict) else out


def step_of(model: nn.Module, mode: str, size: int) -> Callable[[], None]:
    """What is measured."""
    torch.manual_seed(1)
    if mode == "forward":
        image = torch.rand(1, 3, size, size)

        def forward() -> None:
            with torch.inference_mode():
                logits(model, image)

        model.eval()
        return forward
    image, target = torch.rand(2, 3, size, size), torch.rand(2, CLASSES, size, size).round()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def train() -> None:
        loss = F.binary_cross_entropy_with_logits(logits(model, image), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    return train


def measure_time(pair: Pair, mode: str, size: int, rounds: int) -> tuple[float, float, float]:
    """Median seconds of ours and of the peer, and the median of their ratios."""
    ours, peer = (step_of(model, mode, size) for model in same_network(pair, size))
    for _ in range(2):
        ours(), peer()
    mine, theirs = [], []
    for index in range(rounds):
        for which in (0, 1) if index % 2 else (1, 0):
            (mine, theirs)[which].append(timed((ours, peer)[which]))
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return statistics.median(mine), statistics.median(theirs), statistics.median(ratios)


def measure_memory(pair: Pair, side: str, mode: str, size: int) -> float:
    """MiB above what the process held with the model built; for a process of its own."""
    return memory_of(step_of(getattr(pair, side)(), mode, size), times=3)


def rows_of(names: list[str], options: list[str]) -> list[list[str]]:
    """One row a pair and mode, printed as soon as it is known."""
    rows = []
    for name in names:
        for mode in ("forward", "train"):
            mine, theirs, ratio = in_a_process(__file__, "--time", name, mode, *options)
            memory = {
                side: in_a_process(__file__, "--memory", name, side, mode, *options)
                for side in ("ours", "peer")
            }
            rows.append([
                f"`{name.split()[0]}`", f"`{name.split()[1]}`", PAIRS[name].library, mode,
                f"{mine * 1000:.0f}", f"{theirs * 1000:.0f}", f"{ratio:.2f}",
                f"{memory['ours']:.0f}", f"{memory['peer']:.0f}",
                f"{memory['ours'] / memory['peer']:.2f}",
            ])  # fmt: skip
            print("| " + " | ".join(rows[-1]) + " |", flush=True)
    return rows


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="*", help="which, as a shell pattern")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=15, help="how often each side runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", type=Path, help="a file for the table as markdown")
    parser.add_argument("--time", nargs=2, metavar=("PAIR", "MODE"), help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.time:
        name, mode = arguments.time
        print(json.dumps(measure_time(PAIRS[name], mode, arguments.size, arguments.rounds)))
        return
    if arguments.memory:
        name, side, mode = arguments.memory
        print(json.dumps(measure_memory(PAIRS[name], side, mode, arguments.size)))
        return
    names = [name for name in PAIRS if fnmatch(name, arguments.pairs)]
    if not names:
        parser.error(f"no pair fits {arguments.pairs!r}; there are {list(PAIRS)}")
    heads = [
        "architecture", "encoder", "peer", "mode", "ours, ms", "peer, ms", "ratio",
        "ours, MiB", "peer, MiB", "ratio",
    ]  # fmt: skip
    top = ["| " + " | ".join(heads) + " |", "|" + "---|" * 4 + "---:|" * 6]
    print("\n".join(top), flush=True)
    options = [f"--{key}={getattr(arguments, key)}" for key in ("size", "rounds", "threads")]
    rows = rows_of(names, options)
    if arguments.table:
        where = (
            f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, "
            f"{arguments.size}x{arguments.size} pixels; batch of 1 (forward) and 2 (train)."
        )
        write_table(arguments.table, top, rows, where)


if __name__ == "__main__":
    main()
