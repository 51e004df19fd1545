"""The epsilon of layer norms, which libraries set otherwise than timm for the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from transferseg.errors import SpecError


def set_norm_eps(model: nn.Module, given: object, name: str) -> None:
    """Set the epsilon of the layer norms of a timm model, in place.

    Args:
        model: timm's.
        given: pattern on the names of modules -> epsilon, such as `{"*": 1e-12}`.
        name: of the encoder, for the message.

    Raises:
        SpecError: no such mapping, an epsilon that is no number above 0, or a pattern that no layer
            norm's name fits.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        >>> set_norm_eps(model, {"*": 1e-12}, "vit")
        >>> model[1].eps
        1e-12
    """
    for pattern, eps in _checked(given, name).items():
        norms = [
            module
            for path, module in model.named_modules()
            if isinstance(module, nn.LayerNorm) and fnmatchcase(path, pattern)
        ]
        if not norms:
            raise SpecError(f"norm_eps of encoder {name!r}: no layer norm is called {pattern!r}.")
        for norm in norms:
            norm.eps = eps


def _checked(given: object, name: str) -> Mapping[str, Any]:
    values = given.values() if isinstance(given, Mapping) else [None]
    if not all(isinstance(value, float) and 0 < value < 1 for value in values):
        raise SpecError(
            f"norm_eps of encoder {name!r} must be a dict of module name (or pattern) -> a number "
            f"between 0 and 1, got {given!r}."
        )
    return given if isinstance(given, Mapping) else {}
