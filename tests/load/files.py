"""Checkpoint files of small models, and how near two outputs are."""

import torch

from tests.models.randomise import randomise
from transferseg.load import load_checkpoint


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


def image(channels=3, height=64, width=96):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, channels, height, width, generator=generator)


def saved(module, path, wrap=lambda state: state):
    """A module with random weights, saved as its library would."""
    torch.save(wrap(randomise(module).state_dict()), path)
    return module


def assert_equal_logits(theirs, path, picture, read=lambda output: output, **asked):
    """The file gives a model that computes the same; gives it and the report."""
    state = torch.get_rng_state()
    model, report = load_checkpoint(path, **asked)
    assert torch.equal(torch.get_rng_state(), state)  # no initial weights were drawn
    with torch.no_grad():
        assert relative(model(picture), read(theirs(picture))) < 1e-5
    lacking = [key for key in report.plan.left if not key.endswith("num_batches_tracked")]
    assert not lacking
    assert not model.training
    return model, report


def fed(module):
    """The state of a module, values copied, to see whether it changes."""
    return {key: value.clone() for key, value in module.state_dict().items()}
