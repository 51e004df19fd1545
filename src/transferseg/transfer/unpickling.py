"""Carry out a pickle's program without Python: nothing is imported, called or set by it."""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

from transferseg.transfer.inert import (
    BUILDERS,
    INERT,
    ORDINARY,
    Inert,
    MalformedError,
    Persistent,
    UnknownGlobalError,
    pairs,
)

#: A program has about 45 steps a tensor: a network of 10,000 tensors needs a tenth of this.
MOST_STEPS = 5_000_000

_LITERALS = frozenset(
    (
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
        "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    )
)  # fmt: skip
_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_SKIPPED_STEPS = frozenset(("PROTO", "FRAME", "READONLY_BUFFER"))
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(frozen=True)
class Outcome:
    """What a program made.

    Attributes:
        value: containers, numbers, texts, `Stored` tensors, `Inert` objects.
        skipped: globals of known writers whose objects were not made.
        ordinary: whether it named nothing but what torch.save writes for a dict of tensors.
    """

    value: Any
    skipped: tuple[str, ...]
    ordinary: bool


def run_program(file: IO[bytes], persistent: Persistent) -> Outcome:
    """Carry out the pickle at the file's position.

    Containers, numbers, texts and tensors (as `Stored` descriptions) are themselves; whatever else
    the program asks for becomes an `Inert` that holds what it was given.

    Args:
        file: read up to the program's end, and no further.
        persistent: makes a storage of torch's persistent identifiers.

    Raises:
        UnknownGlobalError: a global of no known writer; it names the global.
        MalformedError: no pickle, one that is cut short, or one that is made to exhaust its reader.
    """
    machine = _Machine(persistent)
    try:
        value = machine.run(file)
    except (UnknownGlobalError, MalformedError):
        raise
    # pickletools and the steps raise whatever a wrong byte makes wrong
    except Exception as error:
        raise MalformedError(f"{type(error).__name__}: {error}") from error
    return Outcome(value, tuple(machine.skipped), machine.ordinary)


class _Machine:
    """The stack and the memo of one program."""

    def __init__(self, persistent: Persistent) -> None:
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.skipped: dict[str, None] = {}
        self.ordinary = True
        self.copied = 0

    def run(self, file: IO[bytes]) -> Any:  # noqa: ANN401 - what the program makes
        for count, (step, argument, _) in enumerate(pickletools.genops(file)):
            if count > MOST_STEPS:
                raise MalformedError(f"its program has more than {MOST_STEPS:,} steps")
            name = step.name
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name == "STOP":
                return self.stack.pop()
            elif name not in _SKIPPED_STEPS:
                if name not in _STEPS:
                    raise MalformedError(f"its program has the step {name}, which none here needs")
                _STEPS[name](self, argument)
        raise MalformedError("its program has no end")

    def take(self, count: int) -> list[Any]:
        """The topmost values, off the stack."""
        if len(self.stack) < count:
            raise MalformedError("its program takes more than it has")
        if count == 0:
            return []
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def since_mark(self) -> list[Any]:
        """What was put since the last mark, off the stack."""
        taken, self.stack = self.stack, self.marked.pop()
        return taken

    def mark(self, _: object) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def name_global(self, module: str, name: str) -> Inert:
        module = _OLD_MODULES.get(module, module)
        full = f"{module}.{name}"
        kind = INERT.get(full) or INERT.get(module.split(".")[0])
        if kind is None:
            raise UnknownGlobalError(full)
        if kind == "skipped":
            self.skipped[full] = None
        self.ordinary = self.ordinary and ORDINARY.fullmatch(full) is not None
        return Inert(full)

    def text_global(self, argument: str) -> None:
        self.stack.append(self.name_global(*argument.split(" ", 1)))

    def stack_global(self, _: object) -> None:
        module, name = self.take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise MalformedError("its program names a global by something else than text")
        self.stack.append(self.name_global(module, name))

    def make(self, maker: Any, given: Sequence[Any]) -> None:  # noqa: ANN401 - anything
        """What calling a global with these arguments stands for; nothing is called but our own."""
        if not isinstance(maker, Inert):
            raise MalformedError(f"its program calls a {type(maker).__name__}")
        # a call may copy what it is given, and a program may give the same many times
        self.copied += len(given) + sum(len(one) for one in given if isinstance(one, list | tuple))
        if self.copied > MOST_STEPS:
            raise MalformedError(f"its program copies more than {MOST_STEPS:,} items")
        build = BUILDERS.get(maker.name)
        self.stack.append(build(*given) if build else Inert(maker.name, tuple(given)))

    def reduce(self, _: object) -> None:
        maker, given = self.take(2)
        if not isinstance(given, tuple):
            raise MalformedError("its program calls something with no tuple of arguments")
        self.make(maker, given)

    def new_with_keywords(self, _: object) -> None:
        maker, given, keywords = self.take(3)
        self.make(maker, (*given, keywords))

    def instance(self, argument: str) -> None:
        given = self.since_mark()
        self.make(self.name_global(*argument.split(" ", 1)), given)

    def old_object(self, _: object) -> None:
        maker, *given = self.since_mark()
        self.make(maker, given)

    def build(self, _: object) -> None:
        """An object's state: kept where the object is inert, of no use elsewhere."""
        state = self.take(1)[0]
        self.ordinary = self.ordinary and isinstance(state, dict)
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state

    def append(self, _: object) -> None:
        self.extend_by(self.take(1))

    def appends(self, _: object) -> None:
        self.extend_by(self.since_mark())

    def extend_by(self, values: list[Any]) -> None:
        last = self.stack[-1]
        (last.values if isinstance(last, Inert) else last).extend(values)

    def set_item(self, _: object) -> None:
        self.update_by(self.take(2))

    def set_items(self, _: object) -> None:
        self.update_by(self.since_mark())

    def update_by(self, values: list[Any]) -> None:
        last = self.stack[-1]
        items = last.items if isinstance(last, Inert) else last
        if not isinstance(items, dict):
            raise MalformedError(f"its program puts an item into a {type(items).__name__}")
        items.update(pairs(values))

    def put(self, index: int) -> None:
        self.memo[int(index)] = self.stack[-1]

    def memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[int(index)])

    def persistent_text(self, argument: str) -> None:
        self.stack.append(self.persistent(argument))

    def persistent_value(self, _: object) -> None:
        self.stack.append(self.persistent(self.take(1)[0]))


_Step: TypeAlias = Callable[[_Machine, Any], None]


def _pushing(make: Callable[[_Machine], Any]) -> _Step:
    def step(machine: _Machine, _: object) -> None:
        value = make(machine)  # first: taking a mark's values puts the former stack back
        machine.stack.append(value)

    return step


def _new_set(machine: _Machine, _: object) -> None:
    machine.ordinary = False  # torch's reader would hash what goes into it
    machine.stack.append([])


def _frozen_set(machine: _Machine, _: object) -> None:
    machine.ordinary = False
    values = machine.since_mark()
    machine.stack.append(values)


def _drop(machine: _Machine, _: object) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


def _drop_marked(machine: _Machine, _: object) -> None:
    machine.since_mark()


#: Sets stay lists: hashing what a file holds could take forever.
_STEPS: Mapping[str, _Step] = {
    "MARK": _Machine.mark,
    "POP": _drop,
    "POP_MARK": _drop_marked,
    "DUP": _pushing(lambda machine: machine.stack[-1]),
    "EMPTY_LIST": _pushing(lambda _: []),
    "EMPTY_TUPLE": _pushing(lambda _: ()),
    "EMPTY_DICT": _pushing(lambda _: {}),
    "EMPTY_SET": _new_set,
    "LIST": _pushing(lambda machine: machine.since_mark()),
    "FROZENSET": _frozen_set,
    "TUPLE": _pushing(lambda machine: tuple(machine.since_mark())),
    "TUPLE1": _pushing(lambda machine: tuple(machine.take(1))),
    "TUPLE2": _pushing(lambda machine: tuple(machine.take(2))),
    "TUPLE3": _pushing(lambda machine: tuple(machine.take(3))),
    "DICT": _pushing(lambda machine: dict(pairs(machine.since_mark()))),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.text_global,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "INST": _Machine.instance,
    "OBJ": _Machine.old_object,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent_text,
    "BINPERSID": _Machine.persistent_value,
}
