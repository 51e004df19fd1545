from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from transferseg.errors import DataError, SpecError
from transferseg.plots import PALETTE, save
from transferseg.study.table import CellResult, StudyTable

SCORES = {
    # pretraining, parts, architecture, backbone -> scores of the seeds
    ("none", "encoder", "unet", "vgg16"): (0.2, 0.3),
    ("none", "encoder", "unet", "resnet50"): (0.1, 0.4, 0.4),
    ("autoencoder", "encoder", "unet", "vgg16"): (0.5,),
    ("autoencoder", "both", "unet", "vgg16"): (0.6, 0.7),
    ("autoencoder", "both", "unet", "resnet50"): (None,),
    ("none", "encoder", "deeplabv3", "resnet50"): (0.35,),
    ("autoencoder", "both", "deeplabv3", "resnet50"): (0.75, 0.85),
}


@pytest.fixture
def table():
    names = ("pretraining", "parts", "architecture", "backbone")
    return StudyTable(
        [
            CellResult({**dict(zip(names, key, strict=True)), "seed": k}, "done", {"iou": value})
            for key, values in SCORES.items()
            for k, value in enumerate(values)
        ],
        score="iou",
        percent=True,
    )


def series(ax):
    """The bars that have a name: error bars have a hidden one, in older matplotlib none."""
    named = {bars.get_label() or "_": bars for bars in ax.containers}
    return {name: bars for name, bars in named.items() if not name.startswith("_")}


def heights(ax):
    """Series -> heights; from left to right."""
    return {name: [bar.get_height() for bar in bars] for name, bars in series(ax).items()}


def colours(ax):
    return {name: to_hex(bars[0].get_facecolor()).upper() for name, bars in series(ax).items()}


def test_bars_are_the_means_of_the_rows(table, tmp_path):
    ax = table.bars("backbone", ("pretraining", "parts"), where={"architecture": "unet"})
    drawn = heights(ax)
    assert list(drawn) == ["none, encoder", "autoencoder, encoder", "autoencoder, both"]
    np.testing.assert_allclose(drawn["none, encoder"], [25.0, 30.0])
    np.testing.assert_allclose(drawn["autoencoder, encoder"], [50.0])
    np.testing.assert_allclose(drawn["autoencoder, both"], [65.0])  # resnet50: undefined
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["vgg16", "resnet50"]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("iou (%)", "backbone")
    assert ax.get_title() == "architecture = unet"
    lines = [
        sorted(segment[:, 1].tolist())
        for found in ax.collections
        if isinstance(found, LineCollection)
        for segment in found.get_segments()
    ]
    np.testing.assert_allclose(lines, [[20.0, 30.0], [10.0, 40.0], [60.0, 70.0]])
    assert save(ax, tmp_path / "figure 4.png").stat().st_size > 1000


def test_a_series_keeps_its_colour_in_every_chart(table):
    series = ("pretraining", "parts")
    first = table.bars("backbone", series, where={"architecture": "unet"})
    second = table.bars("backbone", series, where={"architecture": "deeplabv3"})
    assert list(heights(second)) == ["none, encoder", "autoencoder, both"]
    assert colours(first) == dict(zip(heights(first), PALETTE, strict=False))
    assert colours(second).items() <= colours(first).items()


def test_more_series_than_colours_are_drawn_where_they_are_few():
    cells = [
        CellResult({"a": index, "half": index // 10, "one": 1}, "done", {"iou": 0.5})
        for index in range(20)
    ]
    ax = StudyTable(cells, score="iou").bars("one", "a", where={"half": 1})
    assert list(heights(ax)) == [str(index) for index in range(10, 20)]


def test_bars_without_series_and_in_axes_of_ones_own():
    cells = [CellResult({"a": a}, "done", {"iou": v}) for a, v in (("x", 0.5), ("y", 0.25))]
    ax = Figure().subplots()
    assert StudyTable(cells, score="iou").bars("a", (), ax=ax) is ax
    assert heights(ax) == {"iou": [0.5, 0.25]}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"series": "pretrainin"}, SpecError, "unknown axis 'pretrainin'.* 'pretraining'"),
        ({"group": "seed"}, SpecError, "'seed' is averaged over: leave it out of group, series"),
        ({}, SpecError, "axis 'parts' varies .*group, series or where"),
        ({"where": {"architectur": "unet"}}, SpecError, "unknown axis 'architectur'"),
        (
            {"where": {"architecture": "unte"}},
            SpecError,
            "unknown value of axis 'architecture' 'unte': .* mean 'unet'",
        ),
        (
            {"where": {"parts": "encoder", "backbone": "vgg16", "architecture": "deeplabv3"}},
            DataError,
            "no row with parts = encoder, backbone = vgg16, architecture = deeplabv3",
        ),
        ({"series": "backbone"}, SpecError, "named once"),
    ],
)
def test_bars_that_cannot_be_drawn_say_why(table, options, error, message):
    with pytest.raises(error, match=message):
        table.bars(**options)


def test_values_that_read_the_same_are_not_drawn_as_one():
    cells = [CellResult({"a": a, "b": 0}, "done", {"iou": 0.5}) for a in (1, "1")]
    with pytest.raises(DataError, match="some values of a read the same"):
        StudyTable(cells, score="iou").bars("b", "a")
