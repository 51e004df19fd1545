"""A timm model's name and the arguments that its builder is called with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transferseg.errors import SpecError, did_you_mean, unknown_name

#: encoder option "style": whose way of computing with the same weights
STYLES = ("timm", "mmseg", "transformers", "mmpretrain", "torchvision", "smp")
ELSEWHERE = "it belongs to timm's classifier, which the encoder does without"
BUILDER = "timm's builder has it for itself"
#: argument that is not taken -> what is to be done instead
REFUSED: dict[str, str] = {
    "pretrained": "give weights= (of an Encoder pretrained=)",
    "checkpoint_path": "give weights=",
    "pretrained_cfg": "give weights=, and input_spec= for its statistics",
    "pretrained_cfg_overlay": "give weights=, and input_spec= for its statistics",
    "num_classes": ELSEWHERE,
    "drop_rate": f"{ELSEWHERE}; drop_path_rate, and dropout= of decoder and classifier, are others",
    "in_chans": "give in_channels=",
    "in_channels": "it is no option of the encoder; give in_channels= beside them",
    "output_stride": "give output_stride= beside the options",
    "features_only": "an encoder always gives feature maps",
    "out_indices": "an encoder gives all maps; a plain ViT has the option 'layers'",
    "feature_cls": "an encoder always gives feature maps",
    "feature_cfg": "an encoder always gives feature maps",
    "dynamic_img_size": "an encoder always follows the size of the image",
    "dynamic_img_pad": "an encoder always pads where it must",
    "always_partition": "the encoder option 'style' decides: windows never shrink in 'mmseg'",
    "strict_img_size": "an encoder always follows the size of the image",
    "device": "move the model afterwards",
    "dtype": "convert the model afterwards",
    **dict.fromkeys(
        ("pretrained_strict", "pretrained_filter_fn", "pretrained_model_args", "cache_dir",
         "kwargs_filter", "model_cfg", "pruned", "scriptable", "exportable", "no_jit"),
        BUILDER,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """What an encoder's timm model is built as, hashable.

    Attributes:
        name: timm's name, or one of the plain encoders'.
        text: the arguments as JSON text with sorted keys.
        style: one of `STYLES`.
    """

    name: str
    text: str = "{}"
    style: str = "timm"

    @classmethod
    def of(
        cls, name: str, arguments: Mapping[str, Any] | None = None, style: str = "timm"
    ) -> Variant:
        """The variant of arguments that timm's builder may be given.

        Args:
            name: timm's name, or one of the plain encoders'.
            arguments: JSON values by name; None for none.
            style: one of `STYLES`.

        Raises:
            SpecError: a name that is no text, an unknown style, no mapping of JSON values, a null
                (timm leaves it out), or an argument that is decided elsewhere; says where.

        Example:
            >>> Variant.of("resnet18", {"channels": (8, 16, 32, 64)}).arguments
            {'channels': (8, 16, 32, 64)}
        """
        if not isinstance(name, str):
            raise SpecError(f"an encoder is given by its name, got {name!r}.")
        if style not in STYLES:
            raise SpecError(unknown_name("style", str(style), STYLES))
        if arguments is None:
            return cls(name, style=style)
        if not isinstance(arguments, Mapping) or not all(isinstance(k, str) for k in arguments):
            raise SpecError(
                f"arguments of encoder {name!r} must be a dict of values by name, "
                f"got {arguments!r}."
            )
        for key, value in arguments.items():
            if key in REFUSED:
                raise SpecError(
                    f"argument {key!r} of encoder {name!r} is not taken: {REFUSED[key]}."
                )
            if value is None:
                raise SpecError(
                    f"argument {key!r} of encoder {name!r} is null, which timm leaves out; "
                    "give a value, or leave it out."
                )
        try:
            return cls(name, json.dumps(dict(arguments), sort_keys=True), style)
        except (TypeError, ValueError) as error:
            raise SpecError(
                f"arguments of encoder {name!r} must be JSON values: {error}."
            ) from error

    @property
    def arguments(self) -> dict[str, Any]:
        """As timm's builder takes them: lists are tuples."""
        values: dict[str, Any] = _tuples(json.loads(self.text))
        return values

    def refused(self, error: Exception, known: tuple[str, ...]) -> SpecError:
        """What timm's error about the arguments means.

        Args:
            error: what the builder raised.
            known: arguments of the model's class, of which one may be meant.

        Returns:
            An error that names the argument where timm names it.
        """
        why = str(error).strip() or type(error).__name__
        named = re.search(r"unexpected keyword argument(?:\(s\))?:? \[?'(\w+)'", why)
        if named and named[1] in self.arguments:
            near = did_you_mean(named[1], known)
            return SpecError(f"timm's {self.name!r} has no argument {named[1]!r}.{near}")
        fixed = re.search(r"multiple values for (?:keyword )?argument '(\w+)'", why)
        if fixed and fixed[1] in self.arguments:
            return SpecError(f"timm fixes argument {fixed[1]!r} of {self.name!r}; leave it out.")
        return SpecError(f"timm cannot build {self.name!r} with {self.arguments}: {why}")


def _tuples(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
