"""What backbones and heads are read from: shapes under a prefix, and the reason to refuse them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transferseg.errors import TransfersegError, some
from transferseg.load.findings import Findings
from transferseg.load.listing import Shape

#: The ends of the keys of a convolution, a linear layer or a norm.
TENSOR = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


class NotBuiltError(TransfersegError):
    """A checkpoint that is recognised and that no model of ours computes; its text says why."""


@dataclass(frozen=True)
class Part:
    """The tensors of a checkpoint behind one prefix.

    Args:
        prefix: such as "backbone."; "" for all.
        shapes: what follows it -> shape.

    Example:
        >>> part = Part("backbone.", {"layers.0.ln1.weight": (8,), "layers.1.ln1.weight": (8,)})
        >>> part.count("layers.{}.ln1.weight"), part.of("layers.0.ln1.weight", 1)
        (2, (8,))
    """

    prefix: str
    shapes: Mapping[str, Shape]

    def has(self, key: str) -> bool:
        """Whether there is such a tensor."""
        return key in self.shapes

    def of(self, key: str, rank: int) -> Shape:
        """The shape of a tensor that must be there.

        Raises:
            NotBuiltError: it is not, or has another number of dimensions; it is named.
        """
        shape = self.shapes.get(key)
        if shape is None:
            raise NotBuiltError(f"there is no {self.prefix}{key}")
        if len(shape) != rank or 0 in shape:
            raise NotBuiltError(f"{self.prefix}{key} is {shape}, expected {rank} dimensions")
        return shape

    def count(self, template: str) -> int:
        """How many there are of a numbered tensor, from 0 without a gap."""
        number = 0
        while template.format(number) in self.shapes:
            number += 1
        return number

    def refuse_strangers(self, pattern: str, what: str) -> None:
        """Refuse tensors that a network of that kind has not.

        Args:
            pattern: of the keys that it has, matched in full.
            what: the kind, for the message.

        Raises:
            NotBuiltError: naming them.
        """
        known = re.compile(pattern)
        if strange := [self.prefix + key for key in self.shapes if not known.fullmatch(key)]:
            raise NotBuiltError(f"{what} has no {some(strange)}")


@dataclass(frozen=True)
class Body:
    """A backbone as an encoder.

    Attributes:
        encoder: its name.
        channels: of the maps that heads read, shallow to deep.
        in_channels: that the first convolution reads.
        options: the encoder's own.
        kind: "resnet", "hrnet", "swin", "vit" or "unet".
    """

    encoder: str
    channels: tuple[int, ...]
    in_channels: int
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parallel(self) -> bool:
        """Whether the maps end side by side, so that heads of one map read them all."""
        return self.kind == "hrnet"


def opened(
    findings: Findings,
    what: str,
    convention: Any,  # noqa: ANN401 - a JSON value
    *,
    why: str,
    metadata: Any = None,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """`findings.open`, where the caller may say it in `encoder_options=` too.

    Args:
        findings: of the checkpoint.
        what: an option of the encoder, or an argument of its builder.
        convention: its usual value.
        why: whose convention that is.
        metadata: what the file says.
    """
    asked = findings.asked.get("encoder_options")
    given = {**asked, **arguments_in(asked)} if isinstance(asked, Mapping) else {}
    if what in given and findings.asked.get(what) is None:
        findings.note(what, given[what], "keyword", "given by the caller in encoder_options")
        return given[what]
    return findings.open(what, convention, why=why, metadata=metadata)


def arguments_in(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of timm's builder among an encoder's options.

    Example:
        >>> arguments_in({"arguments": {"num_heads": 2}})
        {'num_heads': 2}
    """
    given = options.get("arguments")
    return given if isinstance(given, Mapping) else {}


def settle_options(findings: Findings, options: Mapping[str, Any]) -> None:
    """Refuse `encoder_options=` of which the file says otherwise.

    Raises:
        CheckpointError: naming them.
    """
    asked = findings.asked.get("encoder_options")
    if not isinstance(asked, Mapping):
        return
    outer = {key: value for key, value in asked.items() if key != "arguments"}
    same = _within(outer, options) and _within(arguments_in(asked), arguments_in(options))
    findings.fixed("encoder_options", asked if same else dict(options))


def _within(given: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    return all(_plain(value) == _plain(known.get(key)) for key, value in given.items())


def _plain(value: object) -> object:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
