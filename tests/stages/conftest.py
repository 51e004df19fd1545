from __future__ import annotations

import pytest

from tests.stages import world
from transferseg.stages import run_stage


@pytest.fixture(scope="package")
def chain_folder(tmp_path_factory):
    """A folder in which autoencoder -> U-Net -> U-Net has been run."""
    folder = tmp_path_factory.mktemp("chain")
    run_stage(world.chain(), folder, progress=False)
    return folder
