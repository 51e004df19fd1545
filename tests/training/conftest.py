"""accelerate keeps its state in classes: every test begins without any."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture(autouse=True)
def fresh_accelerate():
    _forget()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors of a few numbers: more threads only wait for each other
    yield
    torch.set_num_threads(threads)
    _forget()
