"""What every model must do, over any architecture and encoder."""

import torch

import transferseg as ts
from tests.models.families import small
from tests.models.randomise import randomise


def relative(given, wanted):
    """The largest difference as a share of the largest value."""
    given, wanted = given.detach().double(), wanted.detach().double()
    return float((given - wanted).abs().max() / wanted.abs().max())


def picture(channels, size, batch=2, seed=1):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def example(architecture, encoder, channels=3):
    """A small model in eval mode in which no branch is silent."""
    torch.manual_seed(0)
    return randomise(small(architecture, encoder, in_channels=channels))


def check_contract(architecture, encoder, channels, size, folder):
    """All of it."""
    torch.manual_seed(0)
    model = small(architecture, encoder, in_channels=channels).eval()
    image = picture(channels, size)
    check_autocast(model, image)
    check_forward(randomise(model), image, folder)
    check_gradients(model, image)


@torch.no_grad()
def check_autocast(model, image):
    """In bfloat16 nearly the same; of weights as they are initialised (random ones may amplify)."""
    # oneDNN, as it is in torch 2.15, computes patches of four channels and more wrong in bfloat16.
    wrong = hasattr(model.encoder.model, "patch_embed") and image.shape[1] > 3
    torch.backends.mkldnn.set_flags(_enabled=not wrong)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            given = model(image).float()
    finally:
        torch.backends.mkldnn.set_flags(_enabled=True)
    wanted = model(image)
    assert given.isfinite().all()
    assert float((given - wanted).square().mean() / wanted.square().mean()) < 0.2**2


def check_gradients(model, image):
    """Every parameter that trains gets a gradient, finite and not nothing."""
    torch.manual_seed(0)
    logits = model.train()(image)
    (logits * torch.randn_like(logits)).mean().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert [name for name, p in trained.items() if not p.grad.isfinite().all()] == []
    assert [name for name, p in trained.items() if not p.grad.any()] == []
    # only what a decoder leaves unread is kept from training
    assert model.decoder.reads or len(trained) == len(list(model.parameters()))


@torch.no_grad()
def check_forward(model, image, folder):
    """Shape; the same again, after train(), of a saved model, and channels last."""
    kept = image.clone()
    logits = model.eval()(image)
    assert logits.shape == (len(image), len(model.spec.classes), *image.shape[-2:])
    assert logits.isfinite().all()
    assert torch.equal(image, kept)
    assert torch.equal(model(image), logits)
    assert torch.equal(model.train().eval()(image), logits)
    model.save_pretrained(folder)
    assert torch.equal(ts.Segmenter.from_pretrained(folder)(image), logits)
    last = torch.channels_last
    turned = model.to(memory_format=last)(image.contiguous(memory_format=last))
    assert relative(turned, logits) < 1e-4
