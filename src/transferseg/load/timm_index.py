"""Which timm models have these names and shapes: an index that ships with the package.

Building all of timm's models takes minutes, so their digests are stored in `timm_models.json`;
models that it lacks (a newer timm's, or the user's own) are built when they are asked for. Who
changes the timm that is required writes it anew: `write_index(path)`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import timm
import torch
from timm.models import is_model, model_entrypoint
from torch import nn

from transferseg.models.build import prune

Shape: TypeAlias = tuple[int, ...]

INDEX_FILE = "timm_models.json"
#: Keys that some versions of timm wrote and others did not: they are computed again.
RECOMPUTED = (
    "*.relative_position_index",
    "*.attn_mask",
    "*.relative_coords_table",
    "*num_batches_tracked",
)


class Layout(NamedTuple):
    """Which modules of a timm model depend on the image's channels and on the classes."""

    first: tuple[str, ...]
    classifier: tuple[str, ...]


class Row(NamedTuple):
    """A model in the index: its layout, and the digests of it all and of it as an encoder."""

    layout: Layout
    whole: str
    encoder: str | None


def digest(shapes: Mapping[str, Shape], layout: Layout) -> str:
    """A short hash of names and shapes that no number of channels or classes changes.

    Example:
        >>> layout = Layout(("conv1",), ("fc",))
        >>> rgb = digest({"conv1.weight": (8, 3, 7, 7), "fc.bias": (10,)}, layout)
        >>> rgb == digest({"conv1.weight": (8, 1, 7, 7)}, layout)
        True
    """
    return _digest(_lasting(shapes), layout)


def _lasting(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {k: s for k, s in shapes.items() if not any(fnmatchcase(k, p) for p in RECOMPUTED)}


def _digest(lasting: Mapping[str, Shape], layout: Layout) -> str:
    lines = []
    for key, shape in lasting.items():
        module = key.rpartition(".")[0]
        if module in layout.classifier:
            continue
        if module in layout.first and len(shape) == 4:
            shape = (shape[0], 0, *shape[2:])
        lines.append(f"{key}{tuple(shape)}")
    return blake2b("\n".join(sorted(lines)).encode(), digest_size=6).hexdigest()


def models_of(shapes: Mapping[str, Shape], *, encoder: bool = False) -> list[str]:
    """Timm's models with exactly these names and shapes, whatever the channels and classes.

    Args:
        shapes: key -> shape, in timm's own names.
        encoder: whether the shapes are those of a model without what no feature map needs (its
            last norm and convolution, its head), as `Encoder.model` has it.

    Example:
        >>> model = timm.create_model("resnet18", num_classes=4, in_chans=1)
        >>> "resnet18" in models_of({k: tuple(v.shape) for k, v in model.state_dict().items()})
        True
    """
    lasting = _lasting(shapes)  # once, not for each of the layouts
    found: list[str] = []
    digests: dict[Layout, str] = {}
    for name in {**_stored(), **dict.fromkeys(timm.list_models())}:
        if not is_model(name):  # the index may be of another timm
            continue
        known = row(name)
        if known.layout not in digests:
            digests[known.layout] = _digest(lasting, known.layout)
        if digests[known.layout] == (known.encoder if encoder else known.whole):
            found.append(name)
    return found


def row(name: str) -> Row:
    """A model's row: of the index, or found by building it where the index lacks it."""
    return _stored().get(name) or _row(name)


@cache
def _stored() -> Mapping[str, Row]:
    values = json.loads(files("transferseg.load").joinpath(INDEX_FILE).read_text("utf-8"))
    layouts = [Layout(tuple(first), tuple(last)) for first, last in values["layouts"]]
    return {name: Row(layouts[i], w, e) for name, (i, w, e) in values["models"].items()}


@cache
def _row(name: str) -> Row:
    """A model's row, from the model itself, built without memory for its weights."""
    model = bare(name)
    config = timm.get_pretrained_cfg(name)
    layout = Layout(_names(config and config.first_conv), _names(config and config.classifier))
    whole = digest(shapes_of(model), layout)
    try:
        prune(model, None)
    except (AttributeError, TypeError, AssertionError, ValueError, NotImplementedError):
        return Row(layout, whole, None)  # it gives no feature maps
    return Row(layout, whole, digest(shapes_of(model), layout))


def bare(name: str, **options: Any) -> Any:  # noqa: ANN401 - a timm model and its arguments
    """A timm model of which only names and shapes are used.

    Example:
        >>> bare("resnet18").conv1.weight.device.type
        'meta'
    """
    try:
        with torch.device("meta"):
            return model_entrypoint(name)(pretrained=False, **options)
    except (NotImplementedError, RuntimeError):  # constructors that compute with values
        return model_entrypoint(name)(pretrained=False, **options)


def shapes_of(module: nn.Module) -> dict[str, Shape]:
    """Key -> shape of a module's state."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def _names(given: str | Iterable[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def write_index(path: Path) -> None:
    """Build every model of this timm once and write their digests; it takes minutes."""
    rows = {name: _row(name) for name in timm.list_models()}
    layouts = sorted({row.layout for row in rows.values()})
    models = {n: [layouts.index(row.layout), row.whole, row.encoder] for n, row in rows.items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in models.items())
    head = f'"timm": {json.dumps(timm.__version__)},\n"layouts": {json.dumps(layouts)}'
    path.write_text(f'{{{head},\n"models": {{\n{lines}\n}}}}\n', "utf-8")
