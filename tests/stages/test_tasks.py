from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.stages import world
from transferseg.data import InMemory, SelectedClasses
from transferseg.errors import DataError, TrainingError
from transferseg.models import create_model
from transferseg.stages import ModelRecipe, TrainingRecipe, run_stage
from transferseg.stages.tasks import TASKS, Classify, Segment, SegmentBoxes, Task

READERS = {"classify": "classify", "reconstruct": "images", "segment": "segment",
           "segment_boxes": "boxes"}  # fmt: skip


def test_every_task_has_a_reader_here():
    assert set(READERS) == set(TASKS)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_runs_and_scores(name, tmp_path):
    """The contract: a stage of any task trains, is judged by its own score, and is kept."""
    task = TASKS[name]()
    assert isinstance(task, Task)
    stage = world.unet(
        task=task, data=world.data(0, task=READERS[name]), training=world.RECIPE.replace(epochs=1)
    )
    done = run_stage(stage, tmp_path, progress=False)
    score, mode = task.best(done.load().spec)
    assert mode in ("max", "min")
    assert score in done.scores["validation"]
    assert score in done.scores["test"]
    assert done.record.task["type"].endswith(type(task).__name__)


@dataclass(frozen=True)
class Brightness:
    """A user's own task: tell each class's share of the picture, by a segmentation network."""

    target: str = "mask"

    def reader(self, reader):
        return reader

    def build(self, model, reader, input):
        return create_model(
            "unet", model.encoder, classes=reader.classes, mode="multilabel",
            in_channels=model.in_channels, input_spec=input,
        )  # fmt: skip

    def make_loss(self, spec):
        return share_loss

    def make_metrics(self, spec):
        return None

    def best(self, spec):
        return "loss", "min"


def share_loss(logits, target):
    return nn.functional.mse_loss(logits.sigmoid().mean((2, 3)), target.float().mean((2, 3)))


def test_a_users_own_task_is_one_small_object(tmp_path):
    assert isinstance(Brightness(), Task)
    stage = world.unet(task=Brightness(), training=world.RECIPE.replace(epochs=1))
    done = run_stage(stage, tmp_path, progress=False)
    assert set(done.scores) == {"validation", "test"}
    assert done.scores["test"]["loss"] >= 0


def test_segment_takes_some_of_the_classes(tmp_path):
    task = Segment(classes=("Heart", "Left Lung"))
    stage = world.unet(task=task, training=world.RECIPE.replace(epochs=1))
    done = run_stage(stage, tmp_path, progress=False)
    assert done.load().spec.classes == ("Heart", "Left Lung")
    assert {"iou_Heart", "iou_Left Lung"} <= set(done.scores["test"])
    with pytest.raises(DataError, match="unknown class 'heart'"):
        Segment(classes=("heart",)).reader(world.reader())
    scenes = world.reader()
    assert Segment(classes=scenes.classes).reader(scenes) is scenes


def test_boxes_must_be_boxes():
    class Drawn:
        classes, mode, ids, groups = ("lesion",), "binary", ("a",), ("a",)

        def __len__(self):
            return 1

    with pytest.raises(DataError, match=r"Drawn has no boxes\(index\)"):
        SegmentBoxes().reader(Drawn())
    boxes = world.reader(task="boxes")
    view = InMemory(boxes, size=32)
    assert SegmentBoxes().reader(view) is view
    with pytest.raises(DataError, match="binary"):
        SelectedClasses(boxes, boxes.classes)


def test_scores_have_a_way():
    spec = create_model("unet", "test_resnet", classes=2).spec
    assert Classify().best(spec) == ("accuracy", "max")
    assert Classify().best(spec.replace(mode="multilabel")) == ("mean_auroc", "max")
    assert Classify(score="exact_match").best(spec) == ("exact_match", "max")
    assert Segment(score="loss").best(spec) == ("loss", "min")
    assert Segment(score="loss_dice").best(spec) == ("loss_dice", "min")


def test_nothing_to_segment():
    images = world.reader(task="images")
    with pytest.raises(DataError, match="no classes"):
        Segment().build(ModelRecipe("test_resnet", in_channels=1), images, None)


def test_a_child_keeps_what_its_parents_weights_expect(chain_folder, tmp_path):
    from transferseg.spec import InputSpec

    odd = InputSpec(1, mean=(0.25,), std=(0.75,))
    parent = world.autoencoder(model=world.MODEL.replace(input_spec=odd))
    child = world.unet(parent=parent, training=world.RECIPE.replace(epochs=1))
    done = run_stage(child, tmp_path, progress=False)
    assert done.load().spec.input == odd


@pytest.mark.parametrize("name", ["epochs", "batch_size", "accumulation"])
def test_numbers_of_a_recipe(name):
    with pytest.raises(TrainingError, match=f"{name} must be a whole number from 1"):
        TrainingRecipe(**{name: 0})
    with pytest.raises(TrainingError, match=r"unknown precision 'bf61'.*Did you mean 'bf16'"):
        TrainingRecipe(precision="bf61")


@dataclass(frozen=True)
class Plain(Brightness):
    """Judged by a term of its loss, without metrics."""

    def make_loss(self, spec):
        return Terms()

    def best(self, spec):
        return "loss_share", "min"


class Terms:
    def terms(self, logits, target):
        share = share_loss(logits, target)
        return {"loss": 2 * share, "share": share.detach()}

    def __call__(self, logits, target):
        return self.terms(logits, target)["loss"]


def test_a_task_without_metrics_is_judged_by_a_term_of_its_loss(tmp_path):
    done = run_stage(world.unet(task=Plain()), tmp_path, progress=False)
    shares = [float(line.split(",")[index]) for line, index in _column(done, "loss_share")]
    assert done.record.best_epoch == 1 + shares.index(min(shares))
    assert done.scores["test"]["loss"] == pytest.approx(2 * done.scores["test"]["loss_share"])


def _column(done, name):
    lines = (done.folder / "history.csv").read_text().splitlines()
    index = lines[0].split(",").index(f"validation_{name}")
    return [(line, index) for line in lines[1:]]


def test_stages_of_one_process_may_differ_in_precision(tmp_path):
    """accelerate remembers the first precision of a process; a later stage must get its own."""
    plain = world.autoencoder(training=world.RECIPE.replace(epochs=1))
    half = plain.replace(training=world.RECIPE.replace(epochs=1, precision="bf16"))
    again = plain.replace(seed=1)
    mine = Accelerator()
    for stage, precision in ((plain, "no"), (half, "bf16"), (again, "no")):
        with stage.training.accelerator() as accelerator:
            assert accelerator.mixed_precision == precision
    assert mine.mixed_precision == Accelerator().mixed_precision == "no"
    one, other = (run_stage(s, tmp_path, progress=False) for s in (plain, half))
    key = "encoder.model.conv1.0.weight"
    assert not torch.equal(one.load().get_parameter(key), other.load().get_parameter(key))
