from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from transferseg.errors import DataError
from transferseg.plots import PALETTE, save
from transferseg.plots.figures import axes_or_new

PNG = b"\x89PNG\r\n\x1a\n"

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB
SEEN = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


def lab(linear):
    """Linear sRGB to CIE L*a*b* under D65."""
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
         [0.0193339, 0.1191920, 0.9503041]]
    )  # fmt: skip
    x, y, z = (to_xyz @ linear) / (0.95047, 1.0, 1.08883)
    fx, fy, fz = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


@pytest.mark.parametrize("eyes", SEEN)
def test_palette_stays_apart_for_colour_blind_eyes(eyes):
    encoded = np.array([to_rgb(colour) for colour in PALETTE])
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = [lab(np.clip(SEEN[eyes] @ colour, 0, 1)) for colour in linear]
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert nearest > 15  # a difference of 2.3 is just noticeable


def test_a_given_axes_is_drawn_into_and_a_new_one_is_not_pyplots():
    given = Figure().subplots()
    assert axes_or_new(given) is given
    assert axes_or_new(None).figure is not axes_or_new(None).figure


def test_pictures_need_neither_pyplot_nor_a_display(tmp_path):
    program = (
        "import sys, numpy, transferseg.plots as p\n"
        "assert 'matplotlib' not in sys.modules\n"
        "p.save(p.overlay(numpy.zeros((8, 8)), numpy.eye(8, dtype=int)), sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    hidden = {"DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    target = tmp_path / "a.png"
    subprocess.run([sys.executable, "-c", program, str(target)], check=True, env=environment)
    assert target.read_bytes().startswith(PNG)


def test_save_writes_the_whole_figure_of_an_axes_in_a_subfigure(tmp_path):
    figure = Figure(figsize=(4, 2))
    left, right = figure.subfigures(1, 2)
    left.subplots().plot([0, 1])
    axes = right.subplots()
    axes.plot([1, 0])
    from_axes = save(axes, tmp_path / "new" / "folder" / "axes.png")
    from_figure = save(figure, tmp_path / "figure.png")
    assert from_axes.read_bytes() == from_figure.read_bytes()
    assert from_axes.read_bytes().startswith(PNG)


def test_save_that_fails_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    figure = Figure()

    def half_a_picture(path, **options):
        path.write_bytes(PNG)
        raise OSError("no space left")

    monkeypatch.setattr(figure, "savefig", half_a_picture)
    with pytest.raises(OSError, match="no space"):
        save(figure, target)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"old")]


def test_save_refuses_another_ending(tmp_path):
    with pytest.raises(DataError, match=r"must end in '\.png', got .*a\.jpg"):
        save(Figure(), tmp_path / "a.jpg")
