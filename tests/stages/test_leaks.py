from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from tests.stages import world
from tests.stages.test_data import Changed
from transferseg.data import InMemory, NIHChestXray14, NIHChestXray14Boxes
from transferseg.errors import CheckpointError, DataError
from transferseg.stages import StageData
from transferseg.stages.leaks import (
    check_chain,
    check_whole_chain,
    read_seen,
    seen_by,
    seen_text,
)
from transferseg.stages.run import finished, run_stage


def test_another_split_of_the_same_patients_leaks_along_the_chain(tmp_path):
    first = world.data(0)
    swapped = {"train": first.parts["test"], "test": first.parts["train"]}
    second = world.data(0, parts=swapped, read_contents=False)
    with pytest.raises(
        DataError, match=r"'unet' is validated or tested on \d+ group.*'autoencoder'"
    ):
        run_stage(
            world.unet(data=second, parent=world.autoencoder(data=first)), tmp_path, progress=False
        )
    assert not list(tmp_path.iterdir()), "something was trained or written before the check"


def test_patients_are_compared_where_data_sets_share_them():
    scenes = world.data(0)
    swapped = {"train": scenes.parts["test"], "test": scenes.parts["train"]}
    earlier = seen_by("first", world.data(0, name="release 1", read_contents=False))
    other = world.data(0, parts=swapped, name="release 2", read_contents=False)
    check_chain("second", other, [earlier])  # two data sets: patients 1 of both are two people
    same = {"patients": "hospital", "read_contents": False}
    earlier = seen_by("first", world.data(0, name="release 1", **same))
    with pytest.raises(DataError, match="group"):
        check_chain("second", world.data(0, parts=swapped, name="release 2", **same), [earlier])


def test_one_picture_in_two_data_sets_is_found():
    first, second = world.data(1), world.data(2)
    picture = first.reader[first.parts["validation"][0]].image
    stolen = Changed(second.reader, second.parts["test"][0], image=picture)
    leaky = world.data(2, reader=stolen)
    with pytest.raises(
        DataError, match=r"1 picture\(s\) that stage 'first' before it has seen: scene"
    ):
        check_chain("second", leaky, [seen_by("first", first)])
    # in training it may come again
    harmless = Changed(second.reader, second.parts["train"][0], image=picture)
    check_chain("second", world.data(2, reader=harmless), [seen_by("first", first)])


def test_the_test_part_of_an_earlier_stage_was_not_seen():
    first = world.data(0)
    parts = {"train": first.parts["train"], "test": first.parts["test"]}
    check_chain("second", world.data(0, parts=parts), [seen_by("first", first)])


def test_a_grandparent_counts():
    first = world.data(0)
    swapped = {"train": first.parts["test"], "test": first.parts["train"]}
    stage = world.unet(
        data=world.data(0, parts=swapped),
        parent=world.unet(data=world.data(1), parent=world.autoencoder(data=first)),
    )
    with pytest.raises(DataError, match="'autoencoder' before it"):
        check_whole_chain(stage)


def test_a_checkpoint_folder_remembers_whom_it_has_seen(tmp_path):
    first = world.data(0)
    done = run_stage(world.autoencoder(data=first), tmp_path, progress=False)
    swapped = {"train": first.parts["test"], "test": first.parts["train"]}
    stage = world.unet(data=world.data(0, parts=swapped), parent=done.folder)
    with pytest.raises(DataError, match="'autoencoder' before it"):
        run_stage(stage, tmp_path, progress=False)


@pytest.mark.parametrize("way", ["weights", "decoder_weights", "file"])
def test_weights_of_a_stage_remember_too(way, chain_folder):
    """Not only as a parent's folder: as first weights of an encoder or decoder, and as a file."""
    first = world.autoencoder()
    done = finished(first, chain_folder).folder
    swapped = {"train": first.data.parts["test"], "test": first.data.parts["train"]}
    leaky = world.data(1, parts=swapped)
    if way == "file":
        stage = world.unet(data=leaky, parent=done / "model.safetensors")
    else:
        stage = world.unet(data=leaky, model=world.MODEL.replace(**{way: done}))
    with pytest.raises(DataError, match="'autoencoder' before it has seen"):
        check_whole_chain(stage)


def test_a_checkpoint_that_forgot_whom_it_saw_is_refused(chain_folder, tmp_path):
    done = finished(world.autoencoder(), chain_folder).folder
    shutil.copytree(done, tmp_path / "shared")
    (tmp_path / "shared" / "seen.json").unlink()
    with pytest.raises(CheckpointError, match="nobody knows whom"):
        run_stage(world.unet(parent=tmp_path / "shared"), tmp_path / "stages", progress=False)
    assert not (tmp_path / "stages").exists()


def test_names_of_patients_are_not_written(chain_folder):
    text = (finished(world.autoencoder(), chain_folder).folder / "seen.json").read_text()
    assert "patient" not in text


def test_views_are_the_same_patients_and_pictures():
    first = world.data(0)
    swapped = {"train": first.parts["test"], "test": first.parts["train"]}
    plain, small = (
        StageData(reader, swapped, 32, read_contents=read)
        for reader, read in ((world.reader(0), False), (InMemory(world.reader(0), size=40), True))
    )
    seen = seen_by("first", StageData(InMemory(world.reader(0), size=32), first.parts, 32))
    with pytest.raises(DataError, match="group"):
        check_chain("second", plain, [seen])
    strangers = replace(small, patients="another hospital")
    with pytest.raises(DataError, match="picture"):  # resized to another size on the way
        check_chain("second", strangers, [seen])


def test_seen_goes_to_text_and_back(tmp_path):
    seen = (seen_by("a", world.data(0)), seen_by("b", world.data(1, read_contents=False)))
    (tmp_path / "seen.json").write_text(seen_text(seen))
    assert read_seen(tmp_path) == seen
    assert not seen[1].contents
    (tmp_path / "seen.json").write_text("[{}]")
    with pytest.raises(CheckpointError, match=r"seen\.json cannot be read"):
        read_seen(tmp_path)


def test_readers_of_one_collection_share_its_patients():
    first = world.data(0)
    labels, boxes = world.reader(0), world.reader(0)
    for reader in (labels, boxes):
        reader.collection = "a hospital"
    swapped = {"train": first.parts["test"], "test": first.parts["train"]}
    unread = {"read_contents": False}
    seen = seen_by("first", StageData(labels, first.parts, 32, name="labels", **unread))
    with pytest.raises(DataError, match="group"):
        check_chain("second", StageData(boxes, swapped, 32, name="boxes", **unread), [seen])
    assert NIHChestXray14.collection == NIHChestXray14Boxes.collection
