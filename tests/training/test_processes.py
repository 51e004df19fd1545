"""Two processes on one CPU compute what one does."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate.utils import is_torch_version
from accelerate.utils.constants import FSDP2_PYTORCH_VERSION
from safetensors import safe_open
from safetensors.torch import load_model

from tests.forked import together
from tests.references.compare import relative
from transferseg.training import MeanLoss, evaluate
from transferseg.training.folding import held_out_part

from .auxiliary import segmenter
from .folds_processes import HELD_OUT, IMAGES
from .gradual_processes import small
from .processes import main
from .tiny import Accuracy, Cohort, TermsLoss, loader, net, prepared

sharding = pytest.mark.skipif(
    not is_torch_version(">=", FSDP2_PYTORCH_VERSION), reason="FSDP2 needs a later torch"
)


def launch(folder, processes, batch, *, work=main):
    together(work, folder, batch, folder=folder, processes=processes)
    return [
        json.loads((folder / f"{processes}-{rank}.json").read_text()) for rank in range(processes)
    ]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What one process did with batches of four, what two did with batches of two, and where."""
    folder = tmp_path_factory.mktemp("processes")
    return launch(folder, 1, 4)[0], launch(folder, 2, 2), folder


def test_two_processes_are_one_with_twice_the_batch(launched):
    one, two, _ = launched
    assert two[0]["weights"] == two[1]["weights"] == pytest.approx(one["weights"], abs=1e-6)
    assert two[0]["step"] == one["step"] == 6  # the schedule too: once an update, not a process
    for mine, other in zip(two[0]["losses"], one["losses"], strict=True):
        assert mine == pytest.approx(other, abs=1e-6)
    # nine samples in batches of two: no sample counted twice
    assert [found["share"] for found in two] == [5 * 36, 4 * 36]
    assert two[0]["scores"] == two[1]["scores"] == pytest.approx(one["scores"])
    for name, (scores, images) in one["metrics"].items():  # to the last digit
        assert [found["metrics"][name] for found in two] == [[scores, 5], [scores, 4]], name
        assert images == 9
    # shuffled alike, after a resume too
    assert two[0]["shuffled"] == pytest.approx(one["shuffled"], abs=1e-6)
    for found in two:
        assert found["resumed"]
        for mine, other in zip(found["losses again"], found["straight"], strict=True):
            assert mine == pytest.approx(other, rel=1e-6)
    # rotating folds: each fold spread over both, its counts and losses added up
    assert two[0]["rotated"] == two[1]["rotated"] == pytest.approx(one["rotated"], abs=1e-6)
    assert two[0]["rotating"] == two[1]["rotating"]
    for mine, other in zip(two[0]["rotating"], one["rotating"], strict=True):
        assert mine == pytest.approx(other, abs=1e-6)


def test_an_auxiliary_head_has_the_same_gradients_on_both(launched):
    one, two, folder = launched
    for mine, other in zip(two[0]["auxiliary"], one["auxiliary"], strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-6)
        assert mine[1] == pytest.approx(other[1], abs=1e-6)
    whole, first, second = (
        torch.load(folder / f"auxiliary-{rank}.pt", weights_only=True)
        for rank in ("1-0", "2-0", "2-1")
    )
    names = {n for n, p in segmenter(norms=False).named_parameters() if p.requires_grad}
    assert set(first["gradients"]) == names
    assert {"auxiliary_head.head.bias", "auxiliary_head.decoder.convs.0.conv.weight"} <= names
    for name, gradient in first["gradients"].items():
        assert torch.equal(gradient, second["gradients"][name]), name
        assert relative(gradient, whole["gradients"][name]) < 1e-3, name
        assert relative(whole["own"][name], whole["gradients"][name]) < 1e-3, name
        # uneven: each process alone would have had another
        assert relative(first["own"][name], gradient) > 1e-2, name
        assert relative(second["own"][name], gradient) > 1e-2, name
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
        torch.testing.assert_close(weight, whole["weights"][name], rtol=0, atol=1e-6)
    for processes in (1, 2):
        with safe_open(folder / f"auxiliary-{processes}" / "model.safetensors", "pt") as file:
            assert set(file.keys()) == set(first["weights"])


def test_habits_are_the_same_in_both(launched):
    """An update is left out in both where one has a bad image; one file is written."""
    one, two, folder = launched
    one, two = one["habits"], [found["habits"] for found in two]
    assert two[0]["weights"] == two[1]["weights"] == pytest.approx(one["weights"], abs=1e-6)
    for row, mine, other in zip(one["rows"], two[0]["rows"], two[1]["rows"], strict=True):
        assert mine == other == pytest.approx(row, abs=1e-6)
        assert (row["skipped"], row["images"]) == (1, 8)
    assert "batch 2, samples s4, s5, s6, s7: nan" in one["texts"][0]
    assert "in another process (here epoch 1, batch 2, samples s4, s5)" in two[0]["texts"][0]
    assert "batch 2, samples s6, s7: nan" in two[1]["texts"][0]
    assert one["kept"] == two[0]["kept"] == two[1]["kept"] == ["step-00000004"]
    assert two[0]["logged"] == two[1]["logged"]
    assert [row["step"] for row in two[0]["logged"]] == [2, 4]
    assert (folder / "habits-2" / "best" / "step-00000004" / "model.safetensors").exists()


def test_a_loss_that_is_not_finite_in_one_process_is_an_error_in_both(launched):
    """In the last update, after which no gradient tells the other one."""
    one, two, _ = launched
    for found, places in (
        (one, ("3 (epoch 1, batch 3, samples s8, s9, s10, s11)",
               "2 (epoch 1, batch 2, samples s4, s5, s6, s7)")),
        (two[0], ("3 (epoch 1, batch 3, samples s10, s11)",
                  "2 (epoch 1, batch 2, samples s6, s7)")),
    ):  # fmt: skip
        assert len(found["spoiled"]) == 2
        for text, place in zip(found["spoiled"], places, strict=True):
            assert f"the loss is nan in update {place}" in text
    assert two[0]["spoiled"] == two[1]["spoiled"]


def test_validation_images_that_cannot_be_shared_are_refused_before_the_first_step(launched):
    one, two, _ = launched
    assert one["unshared"] == "it has begun to train"
    for found in two:
        assert "over several processes, evaluate needs a map-style data set" in found["unshared"]


def test_a_frozen_norm_and_a_loss_per_image(launched):
    """Two processes do the same sums in another order: single precision, a few digits."""
    one, two, _ = launched
    first, second, whole = (found["frozen"] for found in (*two, one))
    assert first == second
    assert first["weights"] == pytest.approx(whole["weights"], rel=1e-4, abs=1e-6)
    for mine, other in zip(first["losses"], whole["losses"], strict=True):
        assert mine == pytest.approx(other, rel=1e-5)
    assert first["scores"]["counts"] == whole["scores"]["counts"]
    assert first["scores"]["loss"] == pytest.approx(whole["scores"]["loss"], rel=1e-5)
    assert first["kept"] == whole["kept"] == pytest.approx([0.1, -0.2, 0.3, 0.5, 1.5, 2.5])


def test_scores_of_a_norm_that_learns_are_those_of_the_model_that_is_saved(launched):
    _, two, folder = launched
    model = net()
    load_model(model, folder / "learned-2" / "model.safetensors")
    found = evaluate(model, loader(9, batch=2, shuffle=False), metrics=Accuracy())
    assert [found["accuracy"]] * 2 == [one["learned"]["accuracy"] for one in two]


def test_a_save_that_fails_on_one_process_fails_on_both(launched):
    one, two, _ = launched
    for found in (one, *two):
        assert "the state could not be written to" in found["learned"]["said"]
        assert "Not a directory" in found["learned"]["said"]


@sharding
def test_sharded_over_two_processes_is_one_with_twice_the_batch(launched):
    one, two, _ = launched
    first, second = (found["sharded"]["as one"] for found in two)
    assert set(first["spread"]) == {"DTensor"}
    assert first["weights"] == pytest.approx(one["weights"], abs=1e-6)
    assert second["weights"] == []
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx([row[0] for row in one["losses"]], abs=1e-6)
    for count in (1, 3, 9):
        name = f"scores of {count}"
        assert first[name][0] == second[name][0]
        assert first[name][1] + second[name][1] == count  # each image once
    assert first["scores of 9"][0] == pytest.approx(one["scores"]["accuracy"])


@sharding
def test_a_sharded_training_is_resumed_to_the_bit(launched):
    _, two, _ = launched
    for found in (one["sharded"]["resumed"] for one in two):
        assert found["layout"] == {
            "first.weight": [3, 1, 3, 3], "first.bias": [3], "last.weight": [1, 3, 1, 1],
            "last.bias": [1],
        }  # fmt: skip
        assert found["rows"] == found["rows again"]
        assert found["straight"] == found["resumed"]
    assert two[0]["sharded"]["resumed"]["straight"]


@sharding
def test_a_sharded_model_is_kept_whole(launched):
    _, two, folder = launched
    kept, memory = ([found["sharded"][name] for found in two] for name in ("kept", "in memory"))
    assert kept[0] == kept[1] == memory[0] == memory[1]
    scores = kept[0]["scores"]
    assert kept[0]["restored"] == min(scores) != scores[-1]
    model = net()
    load_model(model, folder / "sharded-train" / "best" / "model.safetensors")
    found = evaluate(model, loader(9, batch=2, shuffle=False), metrics=Accuracy())
    assert found["accuracy"] == min(scores)


@sharding
def test_what_cannot_be_sharded_is_refused(launched):
    _, two, folder = launched
    for found in two:
        first, second = found["sharded"]["refusals"]
        assert "first version of FSDP is not supported" in first
        assert "call TrainState.save_pretrained(folder) on every process" in second
    assert not (folder / "never").exists()


@sharding
def test_sharded_layers_may_begin_to_train_later(launched):
    _, two, _ = launched
    before = torch.cat([p.flatten() for p in small(norm=False, dropout=0.0).parameters()]).tolist()
    first, second = two[0]["sharded"]["gradual"]
    assert first[:30] == pytest.approx(before[:30])  # a kernel of 3 x 3 to 3 channels, its bias
    assert first[30:] != pytest.approx(before[30:])
    assert second[:30] != pytest.approx(before[:30], rel=1e-4)


def test_every_process_has_the_models_and_the_counts_of_a_cross_validation(launched):
    """The counts are those of the kept models over their held-out images, in one process."""
    one, two, folder = launched
    for found, processes in ((one, 1), (two[0], 2)):
        pooled, mean = Accuracy(), MeanLoss(TermsLoss())
        place = folder / f"crossed-{processes}"
        for number, held_out in enumerate(HELD_OUT, start=1):
            model, counts, loss = net(7), Accuracy(), MeanLoss(TermsLoss())
            load_model(model, place / f"fold{number}" / "model" / "model.safetensors")
            own = torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
            assert found["crossed"]["weights"][number - 1] == own
            images = held_out_part(prepared(Cohort(IMAGES)), held_out, batch_size=2, workers=0)
            evaluate(model, images, metrics={"a": counts, "b": loss})
            scores = found["crossed"]["fold scores"][number - 1]
            assert scores["accuracy"] == counts.scores()["accuracy"]
            pooled, mean = pooled + counts, mean + loss
        assert found["crossed"]["counts"] == [int(pooled.right), int(pooled.all)]
        assert found["crossed"]["counts"][1] == IMAGES * 36
        assert found["crossed"]["scores"]["loss"] == pytest.approx(mean.scores()["loss"], rel=1e-6)


def test_a_cross_validation_is_shared_between_processes(launched):
    one, two, _ = launched
    first, second = (found["crossed"] for found in two)
    for name in ("weights", "counts", "scores", "fold scores", "losses"):
        assert first[name] == second[name], name
    assert len({tuple(fold) for fold in first["weights"]}) == len(HELD_OUT)
    for found in (one, *two):
        assert found["crossed"]["handed back"]
        again = found["crossed again"]  # finished folds are only scored
        assert again["trained"] == []
        for name in ("weights", "counts", "scores", "fold scores", "losses"):
            assert again[name] == found["crossed"][name], name
    for name in ("crossed", "crossed again"):  # each image once
        shares = [found[name]["scored"] for found in two]
        assert sorted(shares[0] + shares[1]) == sorted(one[name]["scored"]) == [*range(IMAGES)]
        assert [*map(len, shares)] == [8, 3]  # the first one has the single image, and odd ends


def test_rotating_folds_of_odd_sizes_are_scored_once_over_both(launched):
    _, two, _ = launched
    first, second = (found["turned"] for found in two)
    assert first["weights"] == second["weights"]
    assert first["scores"] == second["scores"]
    right, pixels = map(sum, zip(first["own"], second["own"], strict=True))
    assert pixels == IMAGES * 36
    assert first["scores"][-1][0] == pytest.approx(right / pixels)
    assert sorted(first["scored"] + second["scored"]) == sorted([*range(IMAGES)] * 2)
    assert first["own"][1] != second["own"][1]


def test_stages_are_refused_before_they_wait_for_each_other(launched):
    one, two, _ = launched
    assert one["stages"] is None
    for found in two:
        assert "stages train in one process" in found["stages"]
