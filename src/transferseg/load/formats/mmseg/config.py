"""What OpenMMLab writes beside the weights: class names, and the config's text."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transferseg.errors import SpecError
from transferseg.load.findings import numbers
from transferseg.load.formats.mmseg.parts import NotBuiltError
from transferseg.spec import ChannelOrder, InputSpec

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
INPUT_WHY = "OpenMMLab's data preprocessor: RGB in 0..255 with ImageNet's statistics"
_LONGEST = 2_000_000  # characters; a config has some thousands


@dataclass(frozen=True)
class Hints:
    """What a file of OpenMMLab says of its network, as far as it says it.

    Attributes:
        classes: names, in the order of the head's rows.
        config: the config's values by name, such as "model".
    """

    classes: tuple[str, ...] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def has(self, part: str) -> bool:
        """Whether the config describes a part of the model, such as "backbone"."""
        return bool(self._part(part))

    def number(self, part: str, name: str) -> float | None:
        """A number in a part of the model."""
        found = self._part(part).get(name)
        return found if isinstance(found, (int, float)) and not isinstance(found, bool) else None

    def flag(self, part: str, name: str) -> bool | None:
        """A truth value in a part of the model."""
        found = self._part(part).get(name)
        return found if isinstance(found, bool) else None

    def text(self, part: str, name: str) -> str | None:
        """A word in a part of the model."""
        found = self._part(part).get(name)
        return found if isinstance(found, str) else None

    def whole(self, part: str, name: str) -> list[int] | None:
        """Whole numbers in a part of the model; one number is a list of it."""
        found = self._part(part).get(name)
        found = [found] if type(found) is int else found
        if isinstance(found, Sequence) and all(type(item) is int for item in found):
            return list(found) or None
        return None

    def values(self, part: str, name: str) -> Mapping[str, Any]:
        """A dict in a part of the model, or an empty one."""
        found = self._part(part).get(name)
        return found if isinstance(found, Mapping) else {}

    def input_spec(self, channels: int) -> InputSpec | None:
        """What the config says of the image."""
        given = self._part("data_preprocessor") or self._named("data_preprocessor")
        given = given or self._named("img_norm_cfg")
        mean, std = (numbers(given.get(key)) for key in ("mean", "std"))
        if not mean or len(mean) != channels or len(std) != channels:
            return None
        rgb = given.get("bgr_to_rgb", given.get("to_rgb", True))
        order: ChannelOrder | None = None if channels != 3 else "RGB" if rgb else "BGR"
        try:
            return InputSpec(channels, order, (0.0, 255.0), tuple(mean), tuple(std))
        except SpecError:  # no numbers that an image can be scaled by
            return None

    def sliding(self) -> str | None:
        """How the library slides over large images, if it does."""
        given = self._part("test_cfg")
        if given.get("mode") != "slide":
            return None
        return f"windows of {given.get('crop_size')}, {given.get('stride')} apart"

    def _part(self, name: str) -> Mapping[str, Any]:
        found = self._named("model").get(name)
        return found if isinstance(found, Mapping) else {}

    def _named(self, name: str) -> Mapping[str, Any]:
        found = self.config.get(name)
        return found if isinstance(found, Mapping) else {}


def usual_input(channels: int) -> InputSpec:
    """The statistics of OpenMMLab's data preprocessor.

    Example:
        >>> usual_input(3).value_range
        (0.0, 255.0)
    """
    return replace(
        InputSpec.from_statistics(MEAN, STD, channels=channels), value_range=(0.0, 255.0)
    )


def read_hints(metadata: Mapping[str, Any]) -> Hints:
    """The hints among what was saved beside the weights; anything odd is no hint.

    Args:
        metadata: of a listing.

    Example:
        >>> text = "model = dict(decode_head=dict(align_corners=True))"
        >>> hints = read_hints({"meta": {"config": text, "CLASSES": ["road", "wall"]}})
        >>> hints.flag("decode_head", "align_corners"), hints.classes
        (True, ('road', 'wall'))
    """
    meta = metadata.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    about = meta.get("dataset_meta") or metadata.get("dataset_meta")
    config = meta.get("cfg") or meta.get("config")
    if isinstance(config, str):
        config = read_config(config)
    return Hints(
        next(filter(None, map(_names, (meta, about))), None),
        config if isinstance(config, Mapping) else {},
    )


def read_config(text: str) -> dict[str, Any]:
    r"""The values that a config's text assigns; nothing of it is run.

    Args:
        text: Python assignments of literals and `dict(...)` calls; what is none is left out.

    Example:
        >>> read_config("norm = dict(type='BN')\nmodel = dict(norm=norm, k=[1, -2], f=open('x'))")
        {'norm': {'type': 'BN'}, 'model': {'norm': {'type': 'BN'}, 'k': [1, -2], 'f': None}}
    """
    values: dict[str, Any] = {}
    if len(text) > _LONGEST:
        return values
    try:
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                values[node.targets[0].id] = _value(node.value, values)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return values


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON-like
    """The value of a literal; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item, known) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _value(node.operand, known)
        return -inner if isinstance(inner, (int, float)) else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _value(word.value, known) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {k.value: _value(v, known) for k, v in pairs if isinstance(k, ast.Constant)}
    return None


def refuse_unless(hints: Hints, part: str, name: str, usual: Sequence[Any]) -> None:
    """Refuse a word of the config that no key tells and that is not built.

    Args:
        hints: of the file.
        part: of the model.
        name: of the word.
        usual: the values that are built; None among them for one that is not there.

    Raises:
        NotBuiltError: naming it.
    """
    found = hints._part(part).get(name)
    if found not in usual:
        raise NotBuiltError(f"its config says {name}={found!r} of the {part}, which is not built")


def _names(about: object) -> tuple[str, ...] | None:
    """The class names in the metadata of a data set."""
    if not isinstance(about, Mapping):
        return None
    given = about.get("CLASSES") or about.get("classes")
    if isinstance(given, Sequence) and not isinstance(given, str) and given:
        return tuple(given) if all(isinstance(name, str) for name in given) else None
    return None
