"""Two processes on one CPU compute what one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.references.compare import relative

from .auxiliary import segmenter

ROOT = Path(__file__).parents[2]


def launch(folder, processes, batch, *, module="tests.training.processes"):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(processes):
        several = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes,
            "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment.update({k: str(v) for k, v in several.items()} if processes > 1 else {})
        command = [sys.executable, "-m", module, str(folder), str(batch)]
        running.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        )
    errors = [process.communicate(timeout=240)[1] for process in running]
    assert [p.returncode for p in running] == [0] * processes, "\n".join(errors)
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
