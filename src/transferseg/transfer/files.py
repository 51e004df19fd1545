"""Read the tensors of any source safely, and write a checkpoint folder atomically."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from transferseg.errors import CheckpointError, some
from transferseg.spec import ModelSpec

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
TRANSFER_FILE = "transfer.json"

#: Where weights come from: a checkpoint folder or file, a dict of tensors, a module.
Source: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | nn.Module"

#: Keys under which training scripts store the weights, in the order in which they are looked for.
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
#: Prefixes that wrappers of a module put before every key (DataParallel and DDP, torch.compile).
WRAPPER_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class SourceWeights:
    """The tensors of a source by name, and what is known of the model that they came from.

    Attributes:
        tensors: read only; never changed by a transfer.
        origin: the path, or the kind of object.
        spec: the source's model spec, if it is a model or checkpoint of transferseg.
        peeled: the wrappers that were taken off, outermost first.
    """

    tensors: Mapping[str, Tensor]
    origin: str
    spec: ModelSpec | None = None
    peeled: tuple[str, ...] = field(default=())


def read_source(source: Source) -> SourceWeights:
    """The tensors of a path, a dict or a module, without changing any of them.

    Args:
        source: a folder that `save_pretrained` wrote, a `.safetensors` file, a `.pt`, `.pth` or
            `.ckpt` file (read with `weights_only=True`: nothing is unpickled but tensors and plain
            containers), a dict of tensors, or a module.

    Raises:
        CheckpointError: the file is missing, broken, holds no tensors, or would have to be
            unpickled; it names the file.

    Example:
        >>> read_source({"module.fc.weight": torch.zeros(2, 2)}).peeled
        ('module.',)
    """
    if isinstance(source, nn.Module):
        source = unwrapped(source)
        spec = getattr(source, "spec", None)
        known = spec if isinstance(spec, ModelSpec) else None
        origin = f"{type(source).__name__} in memory"
        return _peel(source.state_dict(), origin, known)
    if isinstance(source, Mapping):
        return _peel(source, "dict in memory", None)
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(
            f"a source is a path, a dict or a module, got {type(source).__name__}."
        )
    path = Path(source)
    file = path / WEIGHTS_FILE if path.is_dir() else path
    spec = read_spec(file.parent) if file.name == WEIGHTS_FILE and _is_ours(file.parent) else None
    return _peel(_read_file(file), str(path), spec)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, parallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


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
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{path} holds no transferseg model spec: {error}.") from error


def _is_ours(folder: Path) -> bool:
    """Whether its config.json names a spec; one that is broken is then an error, not a stranger."""
    try:
        return "spec" in json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: expected a checkpoint file or folder.")
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        with warnings.catch_warnings():
            # torch warns of unusual pickle protocols; what it cannot read raises all the same.
            warnings.simplefilter("ignore", UserWarning)
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds Python objects besides tensors, which would have to be unpickled and "
            "could run any code. Save its state dict alone (torch.save(model.state_dict(), path)) "
            f"where you trust it, and pass that file. ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # a broken pickle can raise anything (KeyError, IndexError, ...)
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {type(error).__name__}: {error}."
        ) from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, expected a dict.")
    return loaded


def _peel(values: Mapping[str, Any], origin: str, spec: ModelSpec | None) -> SourceWeights:
    peeled: list[str] = []
    while wrapper := next((k for k in WRAPPER_KEYS if isinstance(values.get(k), Mapping)), None):
        values = values[wrapper]
        peeled.append(wrapper)
    tensors = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
    others = [str(name) for name in values if str(name) not in tensors]
    if not tensors or others:
        raise CheckpointError(
            f"{origin}: expected a dict of tensors, got {len(tensors)} tensors and "
            f"{len(others)} other values ({some(others)}). Pass the entry that holds the weights."
        )
    while prefix := _common_prefix(tensors):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        peeled.append(prefix)
    return SourceWeights(tensors, origin, spec, tuple(peeled))


def _common_prefix(tensors: Mapping[str, Tensor]) -> str | None:
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return prefix
    return None


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
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        # A compiled part (model.encoder = torch.compile(model.encoder)) keeps its own names.
        name.replace("_orig_mod.", ""): value.detach().contiguous().cpu()
        for name, value in module.state_dict().items()
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
