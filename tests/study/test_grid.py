from __future__ import annotations

import pytest

from tests.stages import world
from transferseg.errors import SpecError
from transferseg.study import Cell, Study


def build(start: str, seed: int):
    if start == "nowhere":
        return None
    parent = world.autoencoder() if start == "pretrained" else None
    return world.unet(parent=parent, seed=seed)


def test_a_grid_is_every_combination_that_can_be_built():
    study = Study.grid(build, start=["random", "nowhere", "pretrained"], seed=[0, 1])
    places = [tuple(cell.axes.values()) for cell in study.cells]
    assert places == [("random", 0), ("random", 1), ("pretrained", 0), ("pretrained", 1)]


def test_stages_stand_once_and_after_their_parents():
    stages = Study.grid(build, start=["pretrained", "random"], seed=[0, 1]).stages
    assert [stage.name for stage in stages] == ["autoencoder", "unet", "unet", "unet", "unet"]
    assert len({stage.key for stage in stages}) == 5


@pytest.mark.parametrize(
    ("cells", "options", "match"),
    [
        ([], {}, "one cell or more"),
        ([({"seed": 0}, 0), ({"seed": 0}, 1)], {}, r"two cells lie at \{'seed': 0\}"),
        ([({"seed": 0}, 0), ({"fold": 0}, 1)], {}, "must have the same axes"),
        ([({"fold": 0}, 0)], {}, "'?seed'? are no axes"),
        ([({"seed": 0}, 0)], {"mode": "best"}, "'max' or 'min'"),
    ],
)
def test_studies_that_make_no_sense(cells, options, match):
    with pytest.raises(SpecError, match=match):
        Study([Cell(axes, world.unet(seed=seed)) for axes, seed in cells], **options)


def test_axes_need_values():
    with pytest.raises(SpecError, match="axes without values: seed"):
        Study.grid(build, start=["random"], seed=[])
    with pytest.raises(SpecError, match="one cell or more"):
        Study.grid(build, start=["nowhere"], seed=[0])
