"""The folder of a checkpoint of ours: its spec read, and all of it written atomically."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from transferseg.errors import CheckpointError, some
from transferseg.spec import ModelSpec

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
TRANSFER_FILE = "transfer.json"


def read_spec(folder: str | os.PathLike[str]) -> ModelSpec:
    """The model spec of a checkpoint folder.

    Raises:
        CheckpointError: no `config.json`, or not one that transferseg wrote; it names the file.

    Example:
        >>> import tempfile, transferseg as ts
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ts.create_model("unet", "resnet10t", classes=["lung"]).save_pretrained(folder)
        ...     read_spec(folder).classes
        ('lung',)
    """
    path = Path(folder) / CONFIG_FILE
    try:
        return ModelSpec.from_dict(json.loads(path.read_text(encoding="utf-8"))["spec"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist: expected a folder that save_pretrained wrote."
        ) from None
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} holds no transferseg model spec: {error}.") from error


def is_ours(folder: Path) -> bool:
    """Whether its config.json names a spec; one that is broken is then an error, not a stranger."""
    try:
        return "spec" in json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def write_checkpoint(
    folder: str | os.PathLike[str],
    module: nn.Module,
    texts: Mapping[str, str],
    *,
    remove: Sequence[str] = (),
) -> None:
    """Write `model.safetensors` and text files so that no reader ever sees half of a file.

    Every file is written whole beside its place first; only then do they take their places, one
    after the other, the weights last. When anything fails before that (disk full, no permission),
    what was there stays.

    Args:
        folder: made if it does not exist.
        module: its state dict is written, tensors made contiguous.
        texts: file name -> text, such as `config.json`.
        remove: files of a former checkpoint that would be untrue beside this one.

    Raises:
        CheckpointError: weights that are spread over processes (FSDP); nothing was written.
    """
    folder = Path(folder)
    values = module.state_dict()
    spread = [name for name, value in values.items() if hasattr(value, "full_tensor")]
    if spread:
        raise CheckpointError(
            f"{some(spread)}: spread over several processes (FSDP), so that one alone cannot write "
            "them; call TrainState.save_pretrained(folder) on every process."
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        # A compiled part (model.encoder = torch.compile(model.encoder)) keeps its own names.
        name.replace("_orig_mod.", ""): value.detach().contiguous().cpu()
        for name, value in values.items()
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        for name, text in texts.items():
            (Path(temporary) / name).write_text(text, encoding="utf-8")
        save_file(tensors, Path(temporary) / WEIGHTS_FILE, metadata={"format": "pt"})
        for name in (*texts, WEIGHTS_FILE):
            with (Path(temporary) / name).open("rb") as file:
                os.fsync(file.fileno())
        for name in (*texts, WEIGHTS_FILE):
            (Path(temporary) / name).replace(folder / name)
        for name in remove:
            (folder / name).unlink(missing_ok=True)
