"""`accelerate launch` over two processes on a CPU, with a script that knows nothing of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transferseg.errors import TrainingError
from transferseg.training import TrainState, sgd

from .script import main
from .tiny import accelerator, net

ROOT = Path(__file__).parents[2]


def test_a_script_is_spread_without_a_change(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    environment = {
        **os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home"),  # nobody's settings
    }  # fmt: skip
    options = [
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--main_process_port",
        "0",
    ]
    options += [
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--module",
        "tests.training.script",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, str(tmp_path / "two"), "2"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    main(tmp_path / "one", 4)
    one = json.loads((tmp_path / "one" / "alone.json").read_text())
    for rank in (0, 1):
        two = json.loads((tmp_path / "two" / f"{rank}.json").read_text())
        assert (one["processes"], two["processes"]) == (1, 2)
        assert two["steps"] == one["steps"] == 4
        assert two["weights"] == pytest.approx(one["weights"], abs=1e-6)
        for mine, other in zip(two["rows"], one["rows"], strict=True):
            assert mine["validation_accuracy"] == other["validation_accuracy"]
            assert mine["loss"] == pytest.approx(other["loss"], abs=1e-6)
            assert mine["samples_seen"] == other["samples_seen"]
    for name in ("run/best", "model"):
        first, second = (
            load_file(tmp_path / n / name / "model.safetensors") for n in ("one", "two")
        )
        for key, value in first.items():
            torch.testing.assert_close(value, second[key], rtol=0, atol=1e-6)
    lines = [(tmp_path / n / "run" / "history.csv").read_text().count("\n") for n in ("one", "two")]
    assert lines == [3, 3]


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    """torchrun on CPUs without a word to accelerate: each would train the whole, in one folder."""
    alone = accelerator()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(TrainingError, match=r"2 processes.*ACCELERATE_USE_CPU=true"):
        TrainState.prepare(net(), optimizer=sgd, accelerator=alone)
