from __future__ import annotations

import numpy as np
import pytest

from tests.stages import world
from transferseg.errors import DataError, SpecError
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
        ([({"fold": 0}, 0)], {"repeats": "run"}, "run are no axes"),
        ([({"seed": 0}, 0)], {"mode": "best"}, "'max' or 'min'"),
        ([({"seed": 0}, 0)], {"score": "mean_iou"}, "'test_' or 'validation_'"),
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


def test_a_score_needs_its_part():
    parts = {"train": world.data(0).parts["train"]}
    stage = world.unet(data=world.data(0, parts=parts))
    for score in ("test_mean_iou", "validation_mean_iou"):
        with pytest.raises(SpecError, match=f"no part '{score.split('_')[0]}'"):
            Study([Cell({"seed": 0}, stage)], score=score)


@pytest.mark.parametrize("axes", [{"status": "a"}, {"clip": None}, {"size": (1, 2)}])
def test_axes_that_no_table_can_show_are_refused_at_once(axes):
    with pytest.raises(DataError):
        Study([Cell(axes, world.unet())])


def test_numpys_numbers_are_numbers():
    study = Study.grid(build, start=["random"], seed=np.arange(2))
    assert [type(cell.axes["seed"]) for cell in study.cells] == [int, int]
    assert [cell.stage.seed for cell in study.cells] == [0, 1]


def test_a_study_without_seeds_repeats_nothing():
    study = Study([Cell({"start": "random"}, world.unet())])
    assert study.repeats == ()
