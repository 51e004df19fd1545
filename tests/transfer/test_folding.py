"""Scale and channel order in the first convolution: the same output; the mean stays outside."""

import pytest
import torch
import torch.nn.functional as F

import transferseg as ts
from tests.models.randomise import randomise
from transferseg.errors import TransferError
from transferseg.spec import InputSpec
from transferseg.transfer import FoldedInput, fold_input

CAFFE = InputSpec(channel_order="BGR", value_range=(0, 255), mean=(104.0, 117.0, 123.0))
OURS = InputSpec(
    channel_order="RGB",
    mean=(123 / 255, 117 / 255, 104 / 255),
    std=(0.229, 0.224, 0.225),
)


def seen(raw, spec):
    """What the network is given of an RGB image in 0..1 under a spec."""
    low, high = spec.value_range
    channels = raw.flip(1) if spec.channel_order == "BGR" else raw
    mean, std = (torch.tensor(v, dtype=raw.dtype).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    return (low + channels * (high - low) - mean) / std


@pytest.mark.parametrize(("source", "target"), [(CAFFE, OURS), (OURS, CAFFE), (CAFFE, CAFFE)])
def test_the_output_is_the_same_up_to_the_border(source, target):
    raw = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    kernel = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    folded = fold_input(source, target).apply(kernel, kernel)
    before = F.conv2d(seen(raw, source), kernel, padding=1)
    after = F.conv2d(seen(raw, target), folded, padding=1)
    assert (after - before).abs().max() <= 1e-6 * before.abs().max()


def test_a_folded_mean_is_wrong_at_the_border():
    """Why the mean stays in the InputSpec: right within, wrong where zeros pad the image."""
    raw, kernel = torch.rand(1, 3, 9, 9), torch.randn(4, 3, 3, 3)
    mean = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
    before = F.conv2d(raw - mean, kernel, padding=1)
    bias = -(kernel * mean).sum((1, 2, 3))
    after = F.conv2d(raw, kernel, bias, padding=1)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(after[inner], before[inner], rtol=1e-4, atol=1e-4)
    assert (after - before)[:, :, 0].abs().max() > 0.1
    with pytest.raises(TransferError, match=r"mean=\(0\.482353, 0\.458824, 0\.407843\) instead"):
        fold_input(CAFFE, InputSpec(channel_order="RGB"))


def test_what_cannot_be_folded():
    with pytest.raises(TransferError, match=r"3 channels \(RGB\).* 1 \(L\)"):
        fold_input(InputSpec(), InputSpec(channels=1))
    adapter = FoldedInput((255.0,) * 3)
    assert adapter.fits((4, 3, 3, 3), (4, 3, 3, 3))
    assert not adapter.fits((4, 1, 3, 3), (4, 1, 3, 3))
    assert not adapter.fits((4, 3, 3, 3), (4, 3, 5, 5))


def test_a_transfer_folds_and_says_so():
    source = randomise(ts.create_classifier("resnet10t", classes=2))
    target = ts.create_model("unet", "resnet10t", classes=2).eval()
    adapter = fold_input(CAFFE, OURS)
    stem = target.transfer_stem()[0]
    report = ts.transfer_weights(source, target, adapt={stem: adapter})
    assert "adapted 1 by folded_input: input scaled by 57.12 and 57.375 and 58.395, its" in str(
        report
    )
    raw = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = source.double().encoder(seen(raw.double(), CAFFE))[-1]
        after = target.double().encoder(seen(raw.double(), OURS))[-1]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
