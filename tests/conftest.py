"""Two workers on two cores (`-n 2` in pyproject.toml): one thread each, and so their processes."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch

        torch.set_num_threads(1)
