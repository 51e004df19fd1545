"""`python -m transferseg inspect FILE` and `convert FILE FOLDER`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from transferseg.errors import SpecError, TransfersegError
from transferseg.load.inspection import inspect_checkpoint
from transferseg.load.loading import load_checkpoint
from transferseg.spec import InputSpec

#: Adds a command to the program: what other floors have to offer.
AddCommand: TypeAlias = Callable[[Any], None]


def main(arguments: Sequence[str] | None = None, *, more: Sequence[AddCommand] = ()) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; by default those of the process.
        more: commands beside those of this room.

    Returns:
        The exit status: 0, or 1 after an error, which is printed to stderr.

    Raises:
        SystemExit: with status 2, as argparse has it, for arguments that are none.

    Example:
        >>> main(["inspect", "nowhere.pth"])
        1
    """
    parser = _parser(more)
    given = parser.parse_args(arguments)
    if any(name in ("path", "encoder", "classes") for name, _ in getattr(given, "option", ())):
        parser.error("--option names another keyword than path, encoder and classes")
    try:
        return int(given.run(given))
    except (TransfersegError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _parser(more: Sequence[AddCommand]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m transferseg", description="Any checkpoint in, a model of transferseg out."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="print what a checkpoint holds")
    inspect.add_argument("file", metavar="FILE", help="a checkpoint file or folder")
    inspect.add_argument("--json", action="store_true", help="print JSON instead of a table")
    inspect.set_defaults(run=_inspect)
    convert = commands.add_parser("convert", help="write a checkpoint in transferseg's format")
    convert.add_argument("file", metavar="FILE", help="a checkpoint file or folder")
    convert.add_argument("folder", metavar="FOLDER", help="made if it does not exist")
    convert.set_defaults(run=_convert)
    for command in (inspect, convert):
        command.add_argument("--encoder", help="which of several encoders of equal shapes it is")
        command.add_argument(
            "--classes", nargs="+", metavar="NAME", help="the names of the classes, in their order"
        )
        command.add_argument(
            "--option",
            nargs=2,
            action="append",
            default=[],
            metavar=("NAME", "VALUE"),
            help="another keyword of load_checkpoint, its value as JSON: align_corners true",
        )
    for add in more:
        add(commands)
    return parser


def _inspect(given: argparse.Namespace) -> int:
    info = inspect_checkpoint(given.file, **_keywords(given))
    print(info.to_json() if given.json else info)
    return 0


def _convert(given: argparse.Namespace) -> int:
    model, report = load_checkpoint(given.file, **_keywords(given))
    model.save_pretrained(given.folder, transfer=report)
    print(report)
    return 0


def _keywords(given: argparse.Namespace) -> dict[str, Any]:
    options = {name: json_value(text) for name, text in given.option}
    stated = options.get("input_spec")
    if isinstance(stated, dict):
        options["input_spec"] = _input_spec(stated)
    named = {"encoder": given.encoder, "classes": given.classes}
    return {**options, **{name: value for name, value in named.items() if value is not None}}


def _input_spec(values: Mapping[str, Any]) -> InputSpec:
    try:
        return InputSpec(**values)
    except TypeError as error:
        raise SpecError(f"an input_spec has the fields of InputSpec: {error}.") from error


def json_value(text: str) -> object:
    """JSON, or the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
