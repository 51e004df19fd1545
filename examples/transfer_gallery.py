"""Checkpoints of other libraries, a section each: what is in the file, and where every tensor went.

Each section lets a library write a file as it does for its users (random weights: nothing is
downloaded), recognises it, loads it, and compares the logits with those of the library's own model.
With files of your own as arguments it does the same for them, but for the comparison.

    python examples/transfer_gallery.py
    python examples/transfer_gallery.py FILE_OR_FOLDER ...

The section of MMSegmentation, which does not install beside a current PyTorch, needs the folder of
its reference listings: `--references FOLDER`, or the environment variable TRANSFERSEG_REFERENCES.
Hugging Face's needs `transformers`. Each is skipped with a message without.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import runpy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import transferseg as ts


@dataclass(frozen=True)
class Written:
    """A file or folder, and what the library that wrote it computes of an image."""

    path: Path
    image: Tensor
    logits: Tensor


def image_of(height: int, width: int) -> Tensor:
    """An image, normalised."""
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def written(
    path: Path, model: nn.Module, image: Tensor, read: Callable[..., Tensor] = lambda out: out
) -> Written:
    """With the model's logits, read from what it returns."""
    with torch.inference_mode():
        return Written(path, image, read(model.eval()(image)))


def of_torchvision(folder: Path) -> Written:
    """A state dict, as `torch.save(model.state_dict(), ...)` writes it."""
    build = torchvision.models.segmentation.fcn_resnet50
    model = build(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    torch.save(model.state_dict(), folder / "fcn_resnet50.pth")
    return written(folder / "fcn_resnet50.pth", model, image_of(97, 129), lambda out: out["out"])


def of_timm(folder: Path) -> Written:
    """A classifier with its metadata beside it, as a folder on the hub has them."""
    model = timm.create_model("test_convnext", num_classes=10)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = '{"architecture": "test_convnext", "num_classes": 10}'
    (folder / "config.json").write_text(config, encoding="utf-8")
    return written(folder, model, image_of(97, 129))


def of_smp(folder: Path) -> Written:
    """A folder of smp's `save_pretrained`; its U-Net wants sides that are multiples of 32."""
    model = smp.Unet("resnet18", encoder_weights=None, classes=4)
    model.save_pretrained(folder)
    return written(folder, model, image_of(96, 128))


def of_brain_mri(folder: Path) -> Written:
    """A state dict in the names of the U-Net for brain MRI; its library is a script of its authors.

    Here a U-Net of ours lends the weights; that its network computes the same is for the tests.
    """
    model = ts.create_model("unet", "plain", classes=["tumour"])
    names = {
        r"encoder\.model\.stages\.4\.": "bottleneck.bottleneck",
        **{rf"encoder\.model\.stages\.{k - 1}\.": f"encoder{k}.enc{k}" for k in range(1, 5)},
        **{rf"decoder\.ups\.{4 - k}\.": f"upconv{k}." for k in range(1, 5)},
        **{rf"decoder\.blocks\.{4 - k}\.": f"decoder{k}.dec{k}" for k in range(1, 5)},
        r"(dec\dconv\d)\.0\.": r"\1.",
        r"(dec\d)conv(\d)\.1\.": r"\1norm\2.",
        r"^head\.": "conv.",
    }
    state = {}
    for key, value in model.state_dict().items():
        for pattern, replacement in names.items():
            key = re.sub(pattern, replacement, key)
        state[key] = value
    torch.save(state, folder / "unet.pt")
    return written(folder / "unet.pt", model, image_of(97, 129))


def of_hugging_face(folder: Path) -> Written:
    """A folder of transformers: UPerNet over a narrow Swin."""
    from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(
        embed_dim=24, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], out_features=stages
    )
    config = UperNetConfig(
        backbone_config=swin, hidden_size=32, num_labels=4, auxiliary_in_channels=96
    )
    model = UperNetForSemanticSegmentation(config)
    model.save_pretrained(folder)
    return written(folder, model, image_of(96, 128), lambda out: out.logits)


def of_mmsegmentation(folder: Path, references: Path) -> Written:
    """A file as MMSegmentation 1.x writes it: a listing's tensors, and that network's logits."""
    name = references / "tiny" / "tiny_upernet_swin"
    weights = runpy.run_path(str(references / "key_weights.py"))
    reference = torch.load(f"{name}.ref.pt", weights_only=True)
    state = weights["build"](weights["read_keys"](Path(f"{name}.keys.txt")))
    names = tuple(f"class {index}" for index in range(reference["classes"]))
    meta = {"dataset_meta": {"classes": names}}
    torch.save({"meta": meta, "state_dict": state}, folder / "upernet_swin.pth")
    run = next(run for run in reference["runs"] if run["step"] == 1)
    image = weights["make_input"](run["seed"], (1, 3, *run["hw"]))
    full = F.interpolate(run["logits"], run["hw"], mode="bilinear", align_corners=False)
    return Written(folder / "upernet_swin.pth", image, full)


def show(title: str, path: Path) -> nn.Module:
    """Inspect and load a file, and print both reports."""
    print(f"\n{'=' * 20} {title}\n")
    print(ts.inspect_checkpoint(path))
    model, report = ts.load_checkpoint(path)
    print(f"\n{report}")
    return model.eval()


def compare(title: str, write: Callable[[Path], Written]) -> None:
    """A section: what a library wrote, and whether ours computes the same."""
    with tempfile.TemporaryDirectory() as folder:
        made = write(Path(folder))
        model = show(title, made.path)
    with torch.inference_mode():
        ours = model(made.image)
    worst = float((ours - made.logits).abs().max() / made.logits.abs().max())
    print(f"\nlogits against {title}'s own: largest difference {worst:.1e} of the largest value")
    if worst > 1e-5:
        raise SystemExit(f"{title}: the logits differ")


def self_supervised() -> None:
    """An encoder alone, as MoCo v2 writes it: for `create_model` and `transfer_weights`."""
    print(f"\n{'=' * 20} MoCo v2\n")
    query = torchvision.models.resnet18(num_classes=128).state_dict()
    state = {f"module.encoder_q.{key}": value for key, value in query.items()}
    state |= {f"module.encoder_k.{key}": value for key, value in query.items()}
    state["module.queue"] = torch.zeros(128, 64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "moco_v2.pth.tar"
        torch.save({"epoch": 200, "arch": "resnet18", "state_dict": state}, path)
        print(ts.inspect_checkpoint(path))
        model = ts.create_model("unet", "resnet18", classes=["lesion"])
        report = ts.transfer_weights(path, model)
    print(f"\n{report}")
    report.raise_if_below(encoder=1.0)


def foreign() -> None:
    """Names that nobody knows: rules are proposed, to be read and passed in."""
    print(f"\n{'=' * 20} names that no format has\n")
    theirs = timm.create_model("resnet10t", num_classes=0).state_dict()
    state = {f"net.trunk.{k.replace('layer', 'stage')}": value for k, value in theirs.items()}
    model = ts.create_model("unet", "resnet10t", classes=["lesion"])
    suggestion = ts.transfer.suggest_rules(state, model)
    print(suggestion)
    report = ts.transfer_weights(state, model, rename=suggestion.rename)
    print(f"\n{report}")
    report.raise_if_below(encoder=1.0)


def main() -> None:
    """Every section, or the files of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="checkpoints of your own")
    parser.add_argument(
        "--references", type=Path, default=os.environ.get("TRANSFERSEG_REFERENCES"),
        help="folder with MMSegmentation's reference listings",
    )  # fmt: skip
    given = parser.parse_args()
    for path in given.files:
        show(str(path), path)
    if given.files:
        return
    torch.manual_seed(0)
    compare("torchvision", of_torchvision)
    compare("timm", of_timm)
    compare("segmentation-models-pytorch", of_smp)
    compare("U-Net for brain MRI", of_brain_mri)
    if importlib.util.find_spec("transformers"):
        compare("Hugging Face", of_hugging_face)
    else:
        print("\nHugging Face: skipped, since transformers is not installed")
    if given.references:
        references = Path(given.references)
        compare("MMSegmentation", lambda folder: of_mmsegmentation(folder, references))
    else:
        print("\nMMSegmentation: skipped; --references names the folder of its listings")
    self_supervised()
    foreign()


if __name__ == "__main__":
    main()
