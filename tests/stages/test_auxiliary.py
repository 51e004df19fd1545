"""Stages whose model has an auxiliary head, and keys that do not change where none has."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.stages import world
from transferseg.errors import SpecError, TrainingError
from transferseg.stages import run_stage

ALL = ("encoder", "decoder", "head", "auxiliary_head")
WITH = world.MODEL.replace(architecture="fcn", auxiliary=True, options={"channels": 4})
RECIPE = world.RECIPE.replace(epochs=1)


def unet(model=WITH, **changes):
    return world.unet(model=model, training=RECIPE, **changes)


def test_a_chain_hands_the_head_on(tmp_path):
    first = unet(name="first", data=world.data(1))
    done = run_stage(unet(parent=first, parts=ALL), tmp_path, progress=False)
    record = done.record
    assert record.coverage["auxiliary_head"] == 1.0
    assert record.model["auxiliary"] is True
    header, row = (done.folder / "history.csv").read_text().splitlines()[:2]
    values = dict(zip(header.split(","), row.split(","), strict=True))
    total = float(values["main_loss"]) + 0.4 * float(values["auxiliary_loss"])
    assert float(values["loss"]) == pytest.approx(total, rel=1e-5)
    saved = load_file(done.folder / "model.safetensors")
    model = done.load()
    assert torch.equal(saved["auxiliary_head.head.bias"], model.auxiliary_head.head.bias)


def test_it_is_in_the_key_and_its_absence_is_not():
    assert "auxiliary" not in world.MODEL.describe()
    assert "auxiliary_weight" not in world.RECIPE.describe()
    stages = [
        unet(WITH.replace(auxiliary=False)), unet(), unet(WITH.replace(auxiliary={"channels": 4})),
        unet().replace(training=RECIPE.replace(auxiliary_weight=0.4)),
        unet().replace(training=RECIPE.replace(auxiliary_weight=0)),
    ]  # fmt: skip
    assert len({stage.key for stage in stages}) == len(stages)


def test_what_cannot_be_is_said_before_anything_trains(tmp_path):
    weighted = RECIPE.replace(auxiliary_weight=0.4)
    cases = [
        (world.unet(training=weighted), TrainingError, "without an auxiliary head"),
        (world.classifier(model=WITH.replace(options={})), SpecError, "only a segmentation model"),
        (world.autoencoder(model=WITH.replace(options={})), SpecError, "only a segmentation model"),
        (unet(WITH.replace(auxiliary={"idx": 1})), SpecError, "Did you mean 'index'"),
    ]
    for stage, kind, message in cases:
        with pytest.raises(kind, match=message):
            run_stage(stage, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
