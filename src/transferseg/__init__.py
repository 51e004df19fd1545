"""transferseg: move every pretrained weight you can find into a segmentation model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module that defines it; imported on first use, so that `import transferseg` is cheap
_PUBLIC: dict[str, str] = {
    "InputSpec": "transferseg.spec",
    "ModelSpec": "transferseg.spec",
}
_MODULES = ("data", "losses", "metrics", "models", "plots", "training", "transfer", "errors")

__all__ = [*_PUBLIC, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"transferseg.{name}")
    raise AttributeError(f"module 'transferseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from transferseg import data, errors, losses, metrics, models, plots, training, transfer
    from transferseg.spec import InputSpec, ModelSpec
