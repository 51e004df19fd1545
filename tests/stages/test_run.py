from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from tests.stages import world
from transferseg.data import RotatingKFold
from transferseg.errors import (
    CheckpointError,
    DataError,
    SpecError,
    TrainingError,
    TransferError,
)
from transferseg.metrics import SegmentationCounts
from transferseg.models import create_autoencoder
from transferseg.stages import ModelRecipe, StageCheckpoint, read_lineage, run_stage
from transferseg.stages.run import finished
from transferseg.stages.tasks import Classify, Reconstruct, Segment
from transferseg.training import evaluate

ONE = world.RECIPE.replace(epochs=1)


def weights(checkpoint: StageCheckpoint) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.folder / "model.safetensors")


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def test_a_chain_is_kept_with_everything_that_tells_of_it(chain_folder):
    done = finished(world.chain(), chain_folder)
    names = {"config.json", "history.csv", "lineage.json", "model.safetensors", "seen.json"}
    assert {path.name for path in done.folder.iterdir()} == names | {"transfer.json"}
    assert [record.name for record in done.lineage.stages] == ["autoencoder", "middle", "unet"]
    record = done.record
    assert record.key == world.chain().key
    assert record.parent == "middle"
    assert record.parts == ("encoder", "decoder")
    assert record.coverage == {"encoder": 1.0, "decoder": 1.0}
    assert record.epochs == 2
    assert record.samples_seen == 2 * len(world.data(0).parts["train"])
    assert {"python", "torch", "transferseg"} <= set(record.versions)
    assert not [p for p in (chain_folder / ".training").iterdir() if p.is_dir()]


def test_scores_are_those_of_the_kept_weights(chain_folder):
    """The oracle: the checkpoint, loaded and evaluated anew."""
    done = finished(world.chain(), chain_folder)
    model, data = done.load(), world.data(0)
    for part in ("validation", "test"):
        prepared = data.prepared(data.reader, part, model.spec.input, train=False, seed=0)
        loader = torch.utils.data.DataLoader(prepared, batch_size=4)
        counts = SegmentationCounts(model.spec.classes, mode=model.spec.mode)
        found = evaluate(model, loader, metrics=counts).to_dict()
        assert done.scores[part]["mean_iou"] == found["mean_iou"]
        assert done.scores[part]["iou_Heart"] == found["iou"]["Heart"]


def test_a_finished_stage_is_found_and_not_run_again(chain_folder, monkeypatch):
    import transferseg.stages.run as room

    monkeypatch.setattr(room, "train_stage", lambda *_, **__: pytest.fail("trained again"))
    again = run_stage(world.chain(), chain_folder, progress=False)
    assert again == finished(world.chain(), chain_folder)
    renamed = world.chain().replace(name="another name")
    assert run_stage(renamed, chain_folder, progress=False) == again


def test_a_finished_stage_needs_its_parents_no_more(chain_folder, tmp_path):
    stage = world.chain()
    shutil.copytree(chain_folder / stage.folder_name, tmp_path / stage.folder_name)
    assert run_stage(stage, tmp_path, progress=False).record.key == stage.key
    assert [path.name for path in tmp_path.iterdir()] == [stage.folder_name]


def test_the_shared_beginning_of_two_chains_is_trained_once(chain_folder, tmp_path):
    shutil.copytree(chain_folder, tmp_path / "kept")
    before = {path.name for path in (tmp_path / "kept").iterdir()}
    other = world.unet(parent=world.autoencoder(), seed=5)
    run_stage(other, tmp_path / "kept", progress=False)
    new = {path.name for path in (tmp_path / "kept").iterdir()} - before
    assert new == {other.folder_name}


def test_every_setting_is_in_the_key():
    stages = [
        world.unet(), world.unet(seed=1), world.unet(data=world.data(3)),
        world.unet(model=world.MODEL.replace(encoder="resnet10t")),
        world.unet(training=world.RECIPE.replace(epochs=3)),
        world.unet(parent=world.autoencoder()),
        world.unet(parent=world.autoencoder(seed=1)),
        world.unet(parent=world.autoencoder(), parts=("encoder", "decoder")),
        world.unet(parent=world.autoencoder(), parts=("encoder", "decoder"),
                   transfer={"leave": "decoder.blocks.0.*"}),
        world.autoencoder(),
    ]  # fmt: skip
    assert len({stage.key for stage in stages}) == len(stages)
    assert world.unet(training=world.RECIPE.replace(workers=2)).key == world.unet().key


def test_an_interrupted_stage_goes_on_to_the_same_weights(tmp_path):
    def stage(log, stop_at=None):
        return world.unet(task=world.WatchedSegment(log=log, stop_at=stop_at))

    whole, parts = tmp_path / "whole.txt", tmp_path / "parts.txt"
    uninterrupted = run_stage(stage(whole), tmp_path / "whole", progress=False)
    epoch = len(whole.read_text().splitlines()) // 2
    with pytest.raises(world.Stopped):
        run_stage(stage(parts, stop_at=epoch + 1), tmp_path / "parts", progress=False)
    assert finished(stage(parts), tmp_path / "parts") is None
    resumed = run_stage(stage(parts), tmp_path / "parts", progress=False)
    assert len(parts.read_text().splitlines()) == 2 * epoch + 1, "only the cut batch came twice"
    assert_equal_weights(weights(resumed), weights(uninterrupted))
    assert resumed.scores == uninterrupted.scores


def test_the_lineage_tells_the_way_of_every_tensor(chain_folder):
    """Proven by the files: transfer.json of each stage, followed by hand."""
    done = finished(world.chain(), chain_folder)
    assert set(done.lineage.tensors) == set(weights(done))
    moves = []
    for stage in world.chain().chain[1:]:
        text = (chain_folder / stage.folder_name / "transfer.json").read_text()
        moves.append({move["target"]: move for move in json.loads(text)["moves"]})
    for key, origin in done.lineage.tensors.items():
        if key not in moves[1]:
            assert origin.began == "random, seed 0"
            assert origin.through == ()
            continue
        middle = moves[1][key]["source"]
        first = moves[0].get(middle)
        if first is None:
            assert origin.began == "random, seed 3"
            assert origin.through == (f"middle/{middle}",)
        else:
            assert origin.began == "random, seed 0"
            assert origin.through == (f"autoencoder/{first['source']}", f"middle/{middle}")
            adapted = first["adapter"] is not None
            assert bool(origin.adapters) == adapted
            assert not adapted or "skip slice" in origin.adapters[0]
    assert done.lineage.from_random() == ("head.weight", "head.bias")


def test_the_first_values_are_the_parents(chain_folder, monkeypatch):
    """What training begins with is what the parent ended with."""
    import transferseg.stages.work as room

    begun = {}

    def look(stage, model, *_):
        begun.update({key: value.clone() for key, value in model.state_dict().items()})
        raise world.Stopped

    monkeypatch.setattr(room, "_train", look)
    parent = finished(world.autoencoder(), chain_folder)
    child = world.unet(parent=parent.folder, parts=("encoder", "decoder"), seed=9)
    with pytest.raises(world.Stopped):
        run_stage(child, chain_folder, progress=False)
    source = weights(parent)
    same = [key for key in begun if key in source and begun[key].shape == source[key].shape]
    assert len(same) > 20
    for key in same:
        if not key.startswith("head."):
            assert torch.equal(begun[key], source[key]), key


def test_rotation_within_the_training_part(tmp_path):
    data = world.data(0)
    rotating = world.data(0, parts={"train": data.seen, "test": data.parts["test"]},
                          folds=RotatingKFold(3))  # fmt: skip
    stage = world.unet(data=rotating, training=world.RECIPE.replace(epochs=1))
    done = run_stage(stage, tmp_path, progress=False)
    assert done.record.notes, "the scores must say how they were validated"
    assert "train in the others" in done.record.notes[0]
    assert done.record.samples_seen == 2 * len(data.seen)
    assert done.scores["validation"]["images"] == len(data.seen)


def test_without_validation_the_last_weights_are_kept(tmp_path):
    data = world.data(0, parts={"train": world.data(0).parts["train"]})
    stage = world.autoencoder(data=data, training=world.RECIPE.replace(epochs=1))
    done = run_stage(stage, tmp_path, progress=False)
    assert done.scores == {}
    assert done.record.best_epoch is None


def test_a_foreign_checkpoint_is_a_parent(tmp_path):
    torch.manual_seed(4)
    autoencoder = create_autoencoder("test_resnet", in_channels=1)
    torch.save(autoencoder.state_dict(), tmp_path / "foreign.pth")
    stage = world.unet(parent=tmp_path / "foreign.pth", training=world.RECIPE.replace(epochs=1))
    done = run_stage(stage, tmp_path / "stages", progress=False)
    origin = done.lineage.tensors["encoder.model.conv1.0.weight"]
    assert origin.began == f"checkpoint {tmp_path / 'foreign.pth'}"
    assert len(done.lineage.stages) == 1
    copy = tmp_path / "copy.pth"
    shutil.copy(tmp_path / "foreign.pth", copy)
    assert world.unet(parent=copy).key == world.unet(parent=tmp_path / "foreign.pth").key


def test_weights_of_a_file_begin_the_encoder(tmp_path, chain_folder):
    folder = finished(world.autoencoder(), chain_folder).folder
    model = ModelRecipe("test_resnet", in_channels=1, weights=folder, decoder_weights=None)
    stage = world.unet(model=model, training=world.RECIPE.replace(epochs=1))
    done = run_stage(stage, tmp_path, progress=False)
    assert done.lineage.tensors["encoder.model.conv1.0.weight"].began == f"weights {folder}"
    assert done.lineage.tensors["head.weight"].began == "random, seed 0"


def test_an_undeclared_transfer_trains_nothing(tmp_path):
    stage = world.unet(parent=world.classifier(), parts=("encoder", "decoder"))
    with pytest.raises(TransferError):
        run_stage(stage, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"model": world.MODEL.replace(encoder="resnet-10")}, SpecError, "unknown encoder"),
        ({"model": world.MODEL.replace(options={"chanels": 3})}, SpecError, "Did you mean"),
        ({"task": Segment(score="mean_io")}, TrainingError, "unknown score 'mean_io'"),
        ({"task": Reconstruct(loss=world.shapeless)}, TrainingError, "must be a scalar"),
        ({"task": Classify()}, DataError, "label"),
        ({"parent": "nowhere.pth"}, TrainingError, "does not exist"),
        ({"training": ONE.replace(freeze=("encodr",))}, SpecError, "encodr"),
    ],
)
def test_mistakes_are_found_before_the_parents_are_trained(changes, error, match, tmp_path):
    stage = world.unet(**{"parent": world.autoencoder(), **changes})
    with pytest.raises(error, match=match):
        run_stage(stage, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_threads_take_their_turns(tmp_path):
    """Random generators are the process's: two stages at once would not follow from their seeds."""
    stages = [world.autoencoder(training=ONE, seed=seed) for seed in (0, 1)]
    alone = [run_stage(stage, tmp_path / "alone", progress=False) for stage in stages]
    with ThreadPoolExecutor(2) as executor:
        futures = [executor.submit(run_stage, s, tmp_path / "both", progress=False) for s in stages]
        for future, expected in zip(futures, alone, strict=True):
            assert_equal_weights(weights(future.result()), weights(expected))


def test_a_decoder_from_an_autoencoder_says_so(tmp_path, chain_folder):
    folder = finished(world.autoencoder(), chain_folder).folder
    model = world.MODEL.replace(decoder_weights=folder)
    done = run_stage(world.unet(model=model, training=ONE), tmp_path, progress=False)
    assert [record.name for record in done.lineage.stages] == ["autoencoder", "unet"]
    origin = done.lineage.tensors["decoder.blocks.0.conv1.0.weight"]
    assert origin.through == ("autoencoder/decoder.blocks.0.conv1.0.weight",)
    assert "skip slice" in origin.adapters[0]
    assert done.lineage.tensors["encoder.model.conv1.0.weight"].began == "random, seed 0"


def test_scores_that_are_no_numbers_are_told(tmp_path):
    task = Classify(score="mean_auroc")
    split = world.data(1).parts
    parts = {"train": split["train"], "validation": split["test"][:1]}  # nothing to rank
    data = world.data(1, task="classify", parts=parts)
    stage = world.classifier(task=task, data=data, training=ONE)
    with pytest.warns(UserWarning, match="no score was a number"):
        done = run_stage(stage, tmp_path, progress=False)
    assert done.record.best_epoch is None
    assert "no epoch was chosen" in done.record.notes[-1]


def test_a_damaged_lineage_is_an_error_that_names_the_file(chain_folder, tmp_path):
    stage = world.chain()
    folder = tmp_path / stage.folder_name
    shutil.copytree(chain_folder / stage.folder_name, folder)
    text = (folder / "lineage.json").read_text()
    (folder / "lineage.json").write_text(text.replace(stage.key, "0" * 64))
    with pytest.raises(CheckpointError, match="holds a stage with another key"):
        finished(stage, tmp_path)
    (folder / "lineage.json").write_text(text[: len(text) // 2])
    with pytest.raises(CheckpointError, match=r"lineage\.json is damaged"):
        finished(stage, tmp_path)
    with pytest.raises(CheckpointError, match="not the folder of a stage"):
        read_lineage(tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"name": ""}, "needs a name"),
        ({"parent": "x", "parts": ()}, "takes nothing from its parent"),
        ({"transfer": {"leave": "a"}}, "has no parent"),
        ({"parent": "x", "transfer": {"parts": "a"}}, "unknown argument of a transfer 'parts'"),
        ({"seed": -1}, "seed must lie in"),
        (
            {
                "data": world.data(parts={"train": (0,)}),
                "training": world.RECIPE.replace(patience=3),
            },
            "have no part 'validation'",
        ),
    ],
)
def test_stages_that_make_no_sense(changes, match):
    with pytest.raises(SpecError, match=match):
        world.unet().replace(**changes)


def test_folders_have_plain_names():
    assert (
        world.unet()
        .replace(name="2-step: U-Net / both?")
        .folder_name.startswith("2-step-U-Net-both-")
    )
