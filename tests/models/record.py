"""What the grid found, cell by cell, in a file that a run cut short goes on from."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

PATH = Path(__file__).parents[2] / "docs" / "exports.json"
#: of these the outcomes depend: results of other versions are not mixed
PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "onnxscript")
#: what is tried of a cell's export, in the order of the table
EXPORTS = ("compile", "export_batch", "export_size", "onnx_batch", "onnx_size")


def versions():
    found = {package: version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **found}


def load(path=PATH):
    """The results of a file, or none yet."""
    if not Path(path).exists():
        return {"versions": versions(), "exports": {}, "inductor": {}, "contracts": {}}
    return json.loads(Path(path).read_text("utf-8"))


def save(results, path=PATH):
    """Whole or not at all."""
    beside = Path(f"{path}.part")
    beside.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", "utf-8")
    beside.replace(path)


def cell(results, kind, architecture, family):
    """The outcomes of one cell, by check, to be filled; "ok", "refused: why" or "failed: why"."""
    return results[kind].setdefault(architecture, {}).setdefault(family, {})


def done(outcome):
    """Whether a check need not be tried again."""
    return outcome == "ok" or str(outcome).startswith("refused")
