"""What is known of a checkpoint's model, and from where: keys, metadata, convention, keyword."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar, cast

from transferseg.errors import CheckpointError, some
from transferseg.spec import InputSpec, ModelSpec, class_names, default_mode
from transferseg.types import TargetMode

Origin: TypeAlias = Literal["keys", "metadata", "convention", "keyword"]
T = TypeVar("T")


@dataclass(frozen=True)
class Assumption:
    """Something that keys and shapes do not tell.

    Attributes:
        what: a field of the spec or an option of the decoder, such as "align_corners".
        value: what it was taken to be.
        origin: where that comes from.
        why: the sentence that says so.
    """

    what: str
    value: Any
    origin: Origin
    why: str

    def __str__(self) -> str:
        return f"{self.what} = {_shown(self.value)} ({self.origin}): {self.why}"


@dataclass
class Findings:
    """Collects what a format finds out, and lets a keyword decide what is open.

    Args:
        origin: the checkpoint, for messages.
        asked: keyword -> value, of those that were given.

    Attributes:
        assumed: what keys and shapes did not tell, in the order in which it was settled.

    Example:
        >>> found = Findings("a.pth", {"align_corners": True})
        >>> found.fixed("in_channels", 3)
        3
        >>> found.open("align_corners", False, why="the 512 x 512 configs")
        True
        >>> print(found.assumed[0])
        align_corners = True (keyword): given by the caller
    """

    origin: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    assumed: list[Assumption] = field(default_factory=list)
    _consulted: set[str] = field(default_factory=set)

    def fixed(self, what: str, value: T, *, shown_by: str = "") -> T:
        """What keys and shapes tell.

        Raises:
            CheckpointError: the caller asked for something else.
        """
        self._consulted.add(what)
        asked = self.asked.get(what)
        if asked is not None and _plain(asked) != _plain(value):
            where = f" ({shown_by})" if shown_by else ""
            raise CheckpointError(
                f"{self.origin}: {what}={asked!r} was asked for, but the names and shapes of its "
                f"tensors{where} say {value!r}; leave {what}= out."
            )
        return value

    def open(self, what: str, convention: T, *, why: str, metadata: T | None = None) -> T:
        """What they do not tell: the keyword, else the metadata, else the convention."""
        self._consulted.add(what)
        if self.asked.get(what) is not None:
            value, origin, reason = self.asked[what], "keyword", "given by the caller"
        elif metadata is not None:
            value, origin, reason = metadata, "metadata", "stands in the file"
        else:
            value, origin, reason = convention, "convention", why
        self.assumed.append(Assumption(what, value, cast(Origin, origin), reason))
        return cast(T, value)

    def note(self, what: str, value: object, origin: Origin, why: str) -> None:
        """Report something that was taken to be so, and which no keyword changes."""
        self.assumed.append(Assumption(what, value, origin, why))

    def encoder(
        self,
        candidates: Sequence[str],
        *,
        convention: str | None = None,
        why: str = "",
        metadata: str | None = None,
        also: Sequence[str] = (),
    ) -> str | None:
        """The encoder, where keys and shapes leave `candidates`; None where several remain.

        Args:
            candidates: those that compute different things.
            convention: which of them such files hold.
            why: the sentence that says so.
            metadata: what the file calls it; taken where it is one of them.
            also: others that compute what a candidate does, so that they may be asked for.

        Raises:
            CheckpointError: `encoder=` names another one.
        """
        self._consulted.add("encoder")
        asked, able = self.asked.get("encoder"), [*candidates, *also]
        if asked is not None and asked not in able:
            raise CheckpointError(
                f"{self.origin}: encoder={asked!r} was asked for, but the names and shapes of its "
                f"tensors are those of {some(able) or 'no encoder that is known'}."
            )
        beside = f"; {some(able)} have the same names and shapes" if len(able) > 1 else ""
        chosen = candidates[0] if len(candidates) == 1 else None
        if asked is not None:
            chosen = str(asked)
            self.note("encoder", asked, "keyword", f"given by the caller{beside}")
        elif metadata in able:
            chosen = metadata
            self.note("encoder", metadata, "metadata", f"stands in the file{beside}")
        elif chosen is None and convention in candidates:
            chosen = convention
            self.note("encoder", convention, "convention", f"{why}{beside}")
        return chosen

    def classes(self, count: int, names: Sequence[str] | None = None) -> tuple[str, ...]:
        """The names of the classes, of which the shapes tell the number.

        Args:
            count: rows of the head.
            names: what the metadata calls them, if it does.

        Raises:
            CheckpointError: `classes=` has another number.
        """
        self._consulted.add("classes")
        asked = self.asked.get("classes")
        if asked is not None:
            given = class_names(asked)
            if len(given) != count:
                raise CheckpointError(
                    f"{self.origin}: classes= names {len(given)}, but the head has {count} rows."
                )
            if not hasattr(asked, "__index__"):  # a number says no names
                self.note("classes", given, "keyword", "given by the caller")
                return given
        if names is not None and len(names) == count and len(set(names)) == count:
            self.note("classes", tuple(names), "metadata", "stands in the file")
            return tuple(names)
        return class_names(count)

    def spec(
        self,
        architecture: str,
        encoder: str,
        classes: tuple[str, ...],
        input_spec: InputSpec,
        *,
        input_why: str,
        input_metadata: InputSpec | None = None,
        mode_metadata: TargetMode | None = None,
        threshold: float = 0.5,
        threshold_why: str = "",
        threshold_metadata: float | None = None,
        **fields: Any,  # noqa: ANN401 - other fields of the spec
    ) -> ModelSpec:
        """The model spec, with what every format leaves open settled.

        Args:
            architecture: of the spec.
            encoder: of the spec.
            classes: from `classes`.
            input_spec: by the ecosystem's convention, for the channels that the stem has.
            input_why: the sentence that says whose convention that is.
            input_metadata: what the file says of it, if it does.
            mode_metadata: the mode that the file says, if it does.
            threshold: by the ecosystem's convention.
            threshold_why: the sentence that says so.
            threshold_metadata: what the file says of it, if it does.
            **fields: more of the spec.
        """
        self.fixed("in_channels", input_spec.channels)
        expected = self.open("input_spec", input_spec, why=input_why, metadata=input_metadata)
        if not isinstance(expected, InputSpec):
            raise CheckpointError(f"{self.origin}: input_spec= is an InputSpec, got {expected!r}.")
        if expected.channels != input_spec.channels:
            raise CheckpointError(
                f"{self.origin}: input_spec= has {expected.channels} channels, but the first "
                f"convolution reads {input_spec.channels}."
            )
        mode = fields.pop("mode", None) or default_mode(classes)
        why = "one class is binary, more exclude each other"
        return ModelSpec(
            architecture=architecture,
            encoder=encoder,
            classes=classes,
            mode=self.open("mode", mode, why=why, metadata=mode_metadata),
            threshold=self.open(
                "threshold",
                threshold,
                why=threshold_why or "a probability of one half",
                metadata=threshold_metadata,
            ),
            input=expected,
            **fields,
        )

    def refuse_idle(self, known: Collection[str] = ()) -> None:
        """Refuse keywords that this format had no question for.

        Args:
            known: those that it may have without having come to its question.

        Raises:
            CheckpointError: naming them.
        """
        consulted = {*self._consulted, *known}
        idle = [k for k, v in self.asked.items() if v is not None and k not in consulted]
        if idle:
            raise CheckpointError(
                f"{self.origin}: {', '.join(f'{k}=' for k in idle)} says nothing about such a "
                "checkpoint; leave it out."
            )


def numbers(given: object) -> list[float]:
    """The numbers of a list among the hints; an empty list where it is none.

    Example:
        >>> numbers([1, 0.5]), numbers([1, "x"]), numbers(3)
        ([1.0, 0.5], [], [])
    """
    if not isinstance(given, (list, tuple)):
        return []
    try:
        whole = all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in given)
        return [float(n) for n in given] if whole else []
    except OverflowError:  # a whole number of 400 digits is no float
        return []


def _plain(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value


def _shown(value: object) -> str:
    """A value for a table: of an input spec what differs from file to file."""
    if not isinstance(value, InputSpec):
        return repr(value)
    low, high = value.value_range
    return f"{value.channel_order} in {low:g}..{high:g}, mean {value.mean}, std {value.std}"
