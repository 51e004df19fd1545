"""What a model is apart from its weights: frozen values that go to JSON and back unchanged."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any, Literal, TypeAlias, cast, get_args

from transferseg.errors import SpecError, unknown_name
from transferseg.types import TargetMode

ChannelOrder: TypeAlias = Literal["RGB", "BGR", "L", "any"]

#: More channels than any image has; a file that says more is not to be believed.
MOST_CHANNELS = 2**16


@dataclass(frozen=True)
class InputSpec:
    """What the weights expect of an image: `(x - mean) / std` on values scaled to `value_range`.

    Attributes:
        channels: number of input channels, 1 or more.
        channel_order: "RGB" or "BGR" (three channels), "L" (one, greyscale), "any" else.
        value_range: the range that the full range of the raw dtype is mapped to before `mean` and
            `std` apply: (0, 1) for timm and torchvision, (0, 255) for MMSegmentation.
        mean: one value a channel, in units of `value_range`.
        std: one value a channel, in units of `value_range`, each above 0.

    Raises:
        SpecError: lengths that do not fit `channels`, an empty range, a std of 0.

    Example:
        >>> InputSpec(channels=1, mean=(0.5,), std=(0.5,)).channel_order
        'L'
    """

    channels: int = 3
    channel_order: ChannelOrder | None = None
    value_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_channels(self.channels)
        order = self.channel_order or {1: "L", 3: "RGB"}.get(self.channels, "any")
        needs = {"L": 1, "RGB": 3, "BGR": 3}.get(order, self.channels)
        if order not in get_args(ChannelOrder):
            raise SpecError(unknown_name("channel order", order, get_args(ChannelOrder)))
        if needs != self.channels:
            raise SpecError(f"channel order {order!r} has {needs} channels, got {self.channels}.")
        mean = tuple(map(float, self.mean)) or (0.0,) * self.channels
        std = tuple(map(float, self.std)) or (1.0,) * self.channels
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != self.channels:
                raise SpecError(
                    f"{name} has {len(values)} values for {self.channels} input channels; "
                    "give one value a channel."
                )
        if not all(map(isfinite, (*mean, *std, *map(float, self.value_range)))):
            raise SpecError(f"mean, std and value_range must be finite numbers, got {self}.")
        if min(std) <= 0:
            raise SpecError(f"std must be above 0 in every channel, got {std}.")
        low, high = map(float, self.value_range)
        if not low < high:
            raise SpecError(f"value_range must go up, got {self.value_range}.")
        for name, value in (
            ("channel_order", order), ("mean", mean), ("std", std), ("value_range", (low, high))
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    @classmethod
    def from_statistics(
        cls, mean: Sequence[float], std: Sequence[float], *, channels: int
    ) -> InputSpec:
        """The spec of an encoder whose RGB statistics are known, for any number of channels.

        Three channels keep the statistics; any other number gets their averages in each channel,
        so that a greyscale image is scaled as its RGB copy would be on average.

        Example:
            >>> InputSpec.from_statistics((0.2, 0.4, 0.6), (0.1, 0.1, 0.1), channels=1).mean
            (0.4,)
        """
        _check_channels(channels)
        if channels == len(mean):
            return cls(channels=channels, mean=tuple(mean), std=tuple(std))
        average = round(sum(mean) / len(mean), 6), round(sum(std) / len(std), 6)
        return cls(channels=channels, mean=(average[0],) * channels, std=(average[1],) * channels)


@dataclass(frozen=True)
class ModelSpec:
    """Everything that rebuilds a model without its weights.

    Attributes:
        architecture: a name of `list_architectures()`, "classifier" or "autoencoder".
        encoder: a timm model name, or "plain" (`list_encoders()`).
        classes: class names, in the order of the output channels; for an autoencoder the names of
            the reconstructed channels.
        mode: "binary" (one sigmoid), "multiclass" (softmax), "multilabel" (independent sigmoids).
        threshold: probability above which a binary or multilabel pixel is foreground.
        output_stride: of the encoder's last feature map; 32 (plain encoders: 16) unless dilated.
        dilation: whose way of dilating below 32: "timm" (torchvision's), for ResNets also "smp" (it
            dilates the first block of a stage too) and "mmseg" (of a basic block it dilates the
            first convolution alone).
        decoder: the decoder's own options, JSON values.
        auxiliary: whether an auxiliary head is trained beside the main one, or that head's options,
            JSON values ({} is True).
        input: what the weights expect of an image.
        encoder_options: the encoder's own options, JSON values.

    Raises:
        SpecError: no classes, a name twice, a mode that does not fit the number of classes, a
            threshold outside 0..1.

    Example:
        >>> spec = ModelSpec("unet", "resnet18", classes=("lesion",), mode="binary")
        >>> ModelSpec.from_json(spec.to_json()) == spec
        True
    """

    architecture: str
    encoder: str
    classes: tuple[str, ...]
    mode: TargetMode = "multiclass"
    threshold: float = 0.5
    output_stride: int = 32
    dilation: str = "timm"
    decoder: Mapping[str, Any] = field(default_factory=dict)
    auxiliary: bool | Mapping[str, Any] = False
    input: InputSpec = field(default_factory=InputSpec)
    encoder_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given: object = self.classes  # from JSON it may be anything
        if isinstance(given, str) or not all(isinstance(name, str) for name in self.classes):
            raise SpecError(f"classes must be a list of names, got {self.classes!r}.")
        object.__setattr__(self, "classes", tuple(self.classes))
        # Through JSON once: a copy that no caller can change, with lists instead of tuples, so that
        # a spec read back from its file compares equal.
        own = () if isinstance(self.auxiliary, bool) else ("auxiliary",)
        for name in ("decoder", "encoder_options", *own):
            try:
                copied = json.loads(json.dumps(dict(getattr(self, name))))
            except (TypeError, ValueError) as error:
                what = name.removesuffix("_options")
                raise SpecError(f"{what} options must be JSON values: {error}.") from error
            object.__setattr__(self, name, copied)
        if self.auxiliary == {}:
            object.__setattr__(self, "auxiliary", True)
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise SpecError(f"class names must be given and be distinct, got {self.classes}.")
        if self.mode not in get_args(TargetMode):
            raise SpecError(unknown_name("mode", str(self.mode), get_args(TargetMode)))
        if (self.mode == "binary") != (len(self.classes) == 1) and self.mode != "multilabel":
            raise SpecError(
                f"mode {self.mode!r} does not fit {len(self.classes)} class(es): binary has one "
                "(the foreground), multiclass two or more (with the background)."
            )
        threshold: object = self.threshold
        if not isinstance(threshold, (int, float)) or not 0.0 < threshold < 1.0:
            raise SpecError(f"threshold must lie between 0 and 1, got {self.threshold!r}.")

    def __hash__(self) -> int:
        return hash((self.architecture, self.encoder, self.classes, self.mode))

    def replace(self, **changes: Any) -> ModelSpec:  # noqa: ANN401 - field values of any type
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-ready values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    def to_json(self) -> str:
        """The spec as JSON text with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """The spec of `to_dict`'s values.

        Raises:
            SpecError: a field that does not exist (it names it), or a missing one.
        """
        if not isinstance(values, Mapping):
            raise SpecError(f"a model spec is a dict of fields, got {type(values).__name__}.")
        known = set(cls.__dataclass_fields__)
        for name in values:
            if name not in known:
                raise SpecError(unknown_name("field of a model spec", name, known))
        try:
            values = dict(values)
            if "input" in values:
                raw = dict(values["input"])
                for name in ("value_range", "mean", "std"):
                    if name in raw:
                        raw[name] = tuple(raw[name])
                values["input"] = InputSpec(**raw)
            return cls(**values)
        except SpecError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise SpecError(f"the model spec does not fit: {error}.") from error

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """The spec of `to_json`'s text; a text that is not one is a SpecError."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"the model spec is not JSON: {error}.") from error
        return cls.from_dict(values)


def _check_channels(channels: object) -> None:
    whole = isinstance(channels, int) and not isinstance(channels, bool)
    if not whole or not 1 <= cast(int, channels) <= MOST_CHANNELS:
        raise SpecError(
            f"input channels must be a whole number from 1 to {MOST_CHANNELS}, got {channels!r}."
        )


def class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    """Class names from a number or from names.

    Example:
        >>> class_names(2), class_names(["polyp"])
        (('class_0', 'class_1'), ('polyp',))
    """
    if hasattr(classes, "__index__"):  # any integer, NumPy's too
        count = operator.index(classes)
        if isinstance(classes, bool) or count < 1:
            raise SpecError(f"classes must be a number from 1 or a list of names, got {classes!r}.")
        return tuple(f"class_{index}" for index in range(count))
    if isinstance(classes, str):
        raise SpecError(f"classes must be a number or a list of names, got the text {classes!r}.")
    if not isinstance(classes, Iterable):
        raise SpecError(f"classes must be a number from 1 or a list of names, got {classes!r}.")
    return tuple(classes)


def default_mode(classes: Sequence[str]) -> TargetMode:
    """Binary for one class, multiclass for more."""
    return "binary" if len(classes) == 1 else "multiclass"
