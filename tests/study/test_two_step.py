from __future__ import annotations

import pytest

from tests.stages import world
from transferseg.errors import SpecError
from transferseg.stages import TrainingRecipe, run_stage
from transferseg.stages.tasks import Classify, SegmentBoxes
from transferseg.study import PRETRAININGS, Initial, Study, TwoStep

ONE = TrainingRecipe(epochs=1, batch_size=4)
STEPS = ("classifier", "autoencoder", "boxes", "target")


def chains(**changes) -> TwoStep:
    options = {
        "target": world.data(0),
        "boxes": world.data(2, task="boxes"),
        "labels": world.data(1, task="classify"),
        "training": dict.fromkeys(STEPS, ONE),
        **changes,
    }
    return TwoStep(**options)


def built(pretraining, parts="encoder", architecture="unet", *, seed=0, two=None, **axes):
    return (two or chains()).stage(
        pretraining=pretraining, parts=parts, architecture=architecture, backbone="test_resnet",
        seed=seed, **axes,
    )  # fmt: skip


#: pretraining, parts -> (kind of stage, what it takes) along the chain: Merand 2021, Figure 3
EXPECTED = {
    ("none", "encoder"): [("unet", None)],
    ("1-step boxes", "encoder"): [("boxes", None), ("unet", "both")],
    ("1-step classifier", "encoder"): [("classifier", None), ("unet", "encoder")],
    ("1-step autoencoder", "encoder"): [("autoencoder", None), ("unet", "encoder")],
    ("1-step autoencoder", "both"): [("autoencoder", None), ("unet", "both")],
    ("2-step classifier", "encoder"): [
        ("classifier", None), ("boxes", "encoder"), ("unet", "both")],
    ("2-step autoencoder", "encoder"): [
        ("autoencoder", None), ("boxes", "encoder"), ("unet", "both")],
    ("2-step autoencoder", "both"): [("autoencoder", None), ("boxes", "both"), ("unet", "both")],
}  # fmt: skip
TAKEN = {"encoder": ("encoder",), "both": ("encoder", "decoder")}


@pytest.mark.parametrize(("pretraining", "parts"), EXPECTED)
def test_the_chains_are_the_papers(pretraining, parts):
    stages = built(pretraining, parts).chain
    expected = EXPECTED[pretraining, parts]
    assert [stage.name.split("-")[0] for stage in stages] == [kind for kind, _ in expected]
    for stage, (_, taken) in zip(stages, expected, strict=True):
        assert (stage.parent is None) == (taken is None)
        assert taken is None or stage.parts == TAKEN[taken]


def test_no_cell_where_the_paper_has_none():
    for pretraining in PRETRAININGS:
        for parts in ("encoder", "both"):
            exists = (pretraining, parts) in EXPECTED
            assert (built(pretraining, parts) is not None) == exists
            if parts == "both":
                assert built(pretraining, parts, "deeplabv3") is None


def test_architectures_share_what_knows_none_of_them():
    axes = {"architecture": ["unet", "deeplabv3"], "parts": ["encoder", "both"], "seed": [0, 1]}
    two = chains(pretraining_seed=0, output_stride={"deeplabv3": 16},
                 options={"unet": {"channels": (32, 16, 8, 8, 8)}})  # fmt: skip
    study = Study.grid(two.stage, pretraining=PRETRAININGS, backbone=["test_resnet"], **axes)
    assert len(study.cells) == 2 * (8 + 6)
    names = [stage.name.removesuffix("-test_resnet") for stage in study.stages]
    counts = {name: names.count(name) for name in sorted(set(names))}
    assert counts == {
        "autoencoder": 1, "classifier": 1, "boxes-unet": 4, "boxes-deeplabv3": 3,
        "unet": 16, "deeplabv3": 12,
    }  # fmt: skip
    own = Study.grid(chains().stage, pretraining=PRETRAININGS, backbone=["test_resnet"], **axes)
    assert sum(stage.name.startswith("classifier") for stage in own.stages) == 2


def test_an_initialisation_without_weights_for_a_backbone_is_no_cell(tmp_path):
    first = run_stage(world.autoencoder(training=ONE), tmp_path, progress=False)
    start = Initial({"test_resnet": first.folder}, {("unet", "test_resnet"): first.folder})
    two = chains(initial={"radiographs": start})
    assert two.stage(pretraining="none", architecture="unet", backbone="vgg11", seed=0,
                     initialisation="radiographs") is None  # fmt: skip
    stage = built("none", two=two, initialisation="radiographs")
    assert stage.key != built("none").key
    done = run_stage(stage, tmp_path, progress=False)
    origins = done.lineage.tensors
    assert origins["encoder.model.conv1.0.weight"].began == f"weights {first.folder}"
    decoder = origins["decoder.blocks.0.conv1.0.weight"]
    assert decoder.through == ("autoencoder/decoder.blocks.0.conv1.0.weight",)
    assert origins["head.weight"].began == "random, seed 0"


def test_a_whole_chain_runs(tmp_path):
    done = run_stage(built("2-step autoencoder", "both"), tmp_path, progress=False)
    tasks = [record.task["type"].rsplit(".")[-1] for record in done.lineage.stages]
    assert tasks == ["Reconstruct", "SegmentBoxes", "Segment"]
    assert done.record.coverage == {"encoder": 1.0, "decoder": 1.0}
    assert done.scores["test"]["mean_iou"] is not None


def test_tasks_can_be_others():
    two = chains(tasks={"classifier": Classify(score="exact_match")})
    assert built("1-step classifier", two=two).parent.task.score == "exact_match"
    assert isinstance(built("1-step boxes").parent.task, SegmentBoxes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pretraining": "2-step boxes"}, "unknown pretraining '2-step boxes'.*Did you mean"),
        ({"pretraining": "none", "parts": "decoder"}, "unknown parts 'decoder'"),
        ({"pretraining": "none", "initialisation": "ImageNet"}, "unknown initialisation"),
        ({"pretraining": "1-step boxes", "two": chains(boxes=None)}, r"give TwoStep\(boxes="),
    ],
)
def test_axes_that_make_no_sense(changes, match):
    with pytest.raises(SpecError, match=match):
        built(**changes)


def test_steps_are_checked():
    with pytest.raises(SpecError, match="unknown step 'box'"):
        chains(training={"box": ONE})
