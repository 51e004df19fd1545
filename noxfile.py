"""What is checked, each by one command: `nox -l` lists the sessions, `nox -s tests` runs one.

torch is several gigabytes, and no session may cost another copy of it. With uv, nox's preferred
backend here, packages are hard links into uv's cache: every session has its own environment, and
they share one copy on disk. Without uv, `nox --no-venv` runs a session in the environment that nox
itself is in (`pip install -e ".[dev]"`); plain virtualenv would copy.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests", "docs", "examples", "build"]

PATHS = ("src", "tests", "examples", "benchmarks", "docs", "noxfile.py")
HEADLESS = {"MPLBACKEND": "Agg", "NO_ALBUMENTATIONS_UPDATE": "1"}


def install(session: nox.Session, *what: str) -> None:
    """Install, unless the session runs in the caller's own environment (`--no-venv`)."""
    if session.venv_backend != "none":
        session.install(*what)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    install(session, "ruff>=0.9")
    paths = [path for path in PATHS if Path(path).exists()]
    session.run("ruff", "check", *paths)
    session.run("ruff", "format", "--check", *paths)


@nox.session
def types(session: nox.Session) -> None:
    """Static types, strictly."""
    install(session, "-e", ".", "mypy>=1.14")
    session.run("mypy", "--strict", "src")


@nox.session
def tests(session: nox.Session) -> None:
    """The suite with the doctests; arguments after `--` go to pytest."""
    install(session, "-e", ".[test]")
    session.run("pytest", *session.posargs, env=HEADLESS)


@nox.session
def grid(session: nox.Session) -> None:
    """Every architecture over every encoder family: compile, export, ONNX, contract; hours.

    Goes on where docs/exports.json ends, then writes the docs' tables; arguments after `--` choose.
    """
    install(session, "-e", ".[test]")
    session.run("python", "-m", "tests.models.grid", *session.posargs, env=HEADLESS)
    session.run("python", "docs/tables.py", env=HEADLESS)


@nox.session(python="3.10", venv_backend="uv")
def tests_lowest(session: nox.Session) -> None:
    """The suite with the lowest version of every dependency, on the lowest Python (needs uv)."""
    install(session, "--resolution", "lowest-direct", "-e", ".[test]")
    # Whether old releases warn under newer companions is not ours to mend: they must work.
    session.run("pytest", "-o", "filterwarnings=default", *session.posargs, env=HEADLESS)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, any warning an error; lands in docs/_build."""
    install(session, "-e", ".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "docs", "docs/_build", env=HEADLESS)


@nox.session
def examples(session: nox.Session) -> None:
    """Every example, small; those on real data where TRANSFERSEG_DATA names a folder."""
    install(session, "-e", ".")
    results = session.create_tmp()
    session.run("python", "examples/quickstart.py", "--folder", f"{results}/quickstart",
                "--size", "64", "--unlabelled", "32", "--pretrain-epochs", "1", "--epochs", "2",
                env=HEADLESS)  # fmt: skip
    session.run("python", "examples/transfer_gallery.py", env=HEADLESS)
    if not os.environ.get("TRANSFERSEG_DATA"):
        session.log("examples on real data skipped: set TRANSFERSEG_DATA to a folder with its data")
        return
    session.run("python", "examples/ccxs.py", "--folder", f"{results}/ccxs", "--size", "64",
                "--pretrain-images", "32", "--pretrain-epochs", "12", "--epochs", "2",
                "--peer", "--peer-size", "64", "--peer-epochs", "2",
                env=HEADLESS)  # fmt: skip
    session.run("python", "examples/kvasir.py", "--folder", f"{results}/kvasir", "--quick",
                "--peer", env=HEADLESS)  # fmt: skip
    session.run("python", "examples/papers/merand2021.py", "--folder", f"{results}/merand2021",
                "--reduced", "--size", "64", "--images", "24", "--epochs", "1", "--seeds", "0",
                "--backbones", "resnet10t", "--architectures", "unet",
                "--pretrainings", "none", "2-step autoencoder", env=HEADLESS)  # fmt: skip


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Every file in benchmarks/ but the one that the others share."""
    files = sorted(set(Path("benchmarks").glob("*.py")) - {Path("benchmarks/processes.py")})
    if not files:
        session.skip("there is no benchmarks/*.py")
    install(session, "-e", ".[test]")
    for file in files:
        session.run("python", str(file), env=HEADLESS)


@nox.session
def build(session: nox.Session) -> None:
    """Wheel and source distribution; the wheel, installed in a fresh environment, is used."""
    install(session, "-e", ".", "build>=1.2")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", "dist")
    wheel, *others = sorted(Path("dist").glob("*.whl"))
    if others or not list(Path("dist").glob("*.tar.gz")):
        session.error("expected one wheel and one source distribution in dist/")
    fresh = Path(session.create_tmp()).resolve() / "venv"
    session.run("python", "-m", "venv", "--clear", str(fresh))
    python = str(fresh / ("Scripts" if os.name == "nt" else "bin") / "python")
    session.run(python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel), external=True)
    # The session's dependencies are lent, not copied. A folder that a .pth file names is searched,
    # but its own .pth files are not read: the editable transferseg in it stays invisible.
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    lent = str(session.run("python", "-c", where, silent=True)).strip()
    own = str(session.run(python, "-c", where, silent=True, external=True)).strip()
    Path(own, "lent.pth").write_text(f"{lent}\n", encoding="utf-8")
    program = (
        f"import transferseg as ts; assert ts.__file__.startswith({own!r}), ts.__file__; "
        "ts.create_model('unet', 'resnet10t', classes=2); print('wheel', ts.__version__)"
    )
    session.run(python, "-I", "-c", program, external=True)
