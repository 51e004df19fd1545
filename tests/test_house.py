"""The house keeps its shape: floors, cheap import, documented names, files of a readable size."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType

import pytest

import transferseg

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))


def names_of(module: ModuleType) -> list[str]:
    """What a module offers: its `__all__`, or the documented things that it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def public() -> dict[str, object]:
    """Every public object by its full name: the package's own, then each room's."""
    found = {f"transferseg.{name}": getattr(transferseg, name) for name in transferseg.__all__}
    for room, module in list(found.items()):
        if isinstance(module, ModuleType):
            found |= {f"{room}.{name}": getattr(module, name) for name in names_of(module)}
    return found


def needs_example(name: str, value: object) -> bool:
    """Functions and classes; in the rooms not what one is handed: records, protocols, errors."""
    # In Python 3.10 inspect takes an alias such as Callable[...] for a class.
    if typing.get_origin(value) is not None:
        return False
    if inspect.isclass(value) and issubclass(value, Exception):
        return False
    if name.count(".") == 1:
        return inspect.isclass(value) or inspect.isfunction(value)
    handed = dataclasses.is_dataclass(value) or getattr(value, "_is_protocol", False)
    return inspect.isfunction(value) or (inspect.isclass(value) and not handed)


PUBLIC = public()
# the first name wins: what the package itself offers stands again in its room
USED = {id(value): name for name, value in reversed(PUBLIC.items()) if needs_example(name, value)}


def test_imports_point_down():
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    config = str(ROOT / "pyproject.toml")
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--config", config],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_package_is_cheap():
    heavy = ("timm", "albumentations", "matplotlib", "accelerate", "segmentation_models_pytorch")
    program = f"import sys, transferseg; print(*sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_only_the_transforms_know_albumentations():
    """The library is frozen at its last free release: one place to change when it goes."""
    users = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "albumentations" for name in named):
                users.append(path.relative_to(ROOT / "src" / "transferseg").as_posix())
    assert set(users) <= {"data/transforms.py"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_has_one_job(path):
    assert len(path.read_text("utf-8").splitlines()) <= 350


def listed() -> set[str]:
    """Names that the reference pages show: a room's functions and classes, and single values."""
    found: set[str] = set()
    for page in PAGES:
        for kind, target in re.findall(r"\.\. auto(\w+):: ([\w.]+)", page.read_text("utf-8")):
            room, _, last = target.removeprefix("transferseg.").partition(".")
            found.add(f"{room}.{target.rsplit('.')[-1]}" if last else room)
            if kind == "module":
                module = importlib.import_module(target)
                found |= {
                    f"{room}.{name}" for name in names_of(module) if not is_value(module, name)
                }
    return found


def is_value(module, name: str) -> bool:
    """Whether a public name is a constant, such as DECODERS (and no class, such as CCXS)."""
    return name.isupper() and not isinstance(getattr(module, name), type)


def test_every_public_name_is_in_the_reference():
    wanted = {
        f"{transferseg._PUBLIC[name]}.{name}"
        if name in transferseg._PUBLIC
        else transferseg._ROOMS[name]
        for name in transferseg.__all__
    }
    # values such as DECODERS have their text where they are defined: they need a line of their own
    for name in PUBLIC:
        module, _, last = name.rpartition(".")
        room = PUBLIC.get(module, transferseg)
        if is_value(room, last):
            wanted.add(f"{room.__name__}.{last}".removeprefix("transferseg."))
    assert not wanted - listed(), "list these in docs/reference/"


@pytest.mark.parametrize("name", sorted(USED.values()))
def test_a_public_name_shows_how_it_is_used(name):
    text = inspect.getdoc(PUBLIC[name]) or ""
    assert "Example:" in text, f"the docstring of {name} has no Example"
    assert ">>> " in text, f"the Example of {name} does not run as a doctest"
