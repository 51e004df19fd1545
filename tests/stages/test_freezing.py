"""Stages that freeze, and keys that do not change where nothing is frozen."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.stages import world
from transferseg.data import RotatingKFold
from transferseg.errors import SpecError
from transferseg.models import Unfreezing
from transferseg.stages import run_stage
from transferseg.stages.run import finished


def unet(**training):
    recipe = world.RECIPE.replace(epochs=1, **training)
    return world.unet(parent=world.autoencoder(), parts=("encoder", "decoder"), training=recipe)


def test_what_a_stage_freezes_stays_as_the_parent_left_it(chain_folder, tmp_path):
    parent = load_file(finished(world.autoencoder(), chain_folder).folder / "model.safetensors")
    stage = unet(freeze="encoder").replace(
        parent=finished(world.autoencoder(), chain_folder).folder
    )
    done = run_stage(stage, tmp_path, progress=False)
    child = load_file(done.folder / "model.safetensors")
    encoder = [key for key in parent if key.startswith("encoder.")]
    assert any(key.endswith("running_mean") for key in encoder)
    assert all(torch.equal(child[key], parent[key]) for key in encoder)
    assert not torch.equal(child["decoder.blocks.0.conv2.0.weight"],
                           parent["decoder.blocks.0.conv2.0.weight"])  # fmt: skip
    assert done.record.training["freeze"] == ["encoder"]


@pytest.mark.parametrize("rotating", [False, True])
def test_a_stage_unfreezes_gradually(chain_folder, tmp_path, rotating):
    folder = finished(world.autoencoder(), chain_folder).folder
    parent = load_file(folder / "model.safetensors")
    data = world.data(0)
    if rotating:
        parts = {"train": data.seen, "test": data.parts["test"]}
        data = world.data(0, parts=parts, folds=RotatingKFold(2))

    def encoder_moved(epoch):
        stage = unet(unfreeze=Unfreezing({epoch: "encoder"})).replace(parent=folder, data=data)
        done = run_stage(stage, tmp_path, progress=False)
        child = load_file(done.folder / "model.safetensors")
        return any(not torch.equal(child[k], parent[k]) for k in parent if k.startswith("encoder."))

    assert [encoder_moved(0), encoder_moved(1)] == [True, False]


def test_freezing_is_in_the_key_and_its_absence_is_not():
    assert not {"freeze", "unfreeze"} & set(world.RECIPE.describe())
    stages = [
        unet(), unet(freeze="encoder"), unet(freeze=("encoder", "decoder")),
        unet(unfreeze=Unfreezing({1: "encoder"})), unet(unfreeze=Unfreezing({2: "encoder"})),
    ]  # fmt: skip
    assert len({stage.key for stage in stages}) == len(stages)
    assert unet(freeze=["encoder"]).key == unet(freeze="encoder").key
    assert unet(freeze=[]).key == unet().key


def test_unknown_names_train_nothing(chain_folder, tmp_path):
    folder = finished(world.autoencoder(), chain_folder).folder
    with pytest.raises(SpecError, match="Did you mean 'encoder'"):
        run_stage(unet(freeze="encodr").replace(parent=folder), tmp_path, progress=False)
    assert not [p for p in tmp_path.iterdir() if p.name != ".training"]
