"""Sliding windows beside MONAI's and MMSegmentation's."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import nn

from transferseg.training.windows import blend_weights, slide, window_starts


def network(channels: int = 2, classes: int = 3) -> nn.Module:
    """A model whose answer depends on what surrounds a pixel, so on the window."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, classes, 3, padding=1)
    ).eval()


def image(height: int, width: int, channels: int = 2) -> torch.Tensor:
    return torch.randn(channels, height, width, generator=torch.Generator().manual_seed(1))


def mmseg_slide(model, picture, crop, stride):
    """What MMSegmentation's `EncoderDecoder.slide_inference` does."""
    (h_stride, w_stride), (h_crop, w_crop) = stride, crop
    height, width = picture.shape[-2:]
    h_grids = max(height - h_crop + h_stride - 1, 0) // h_stride + 1
    w_grids = max(width - w_crop + w_stride - 1, 0) // w_stride + 1
    total, count = torch.zeros(3, height, width), torch.zeros(1, height, width)
    for h in range(h_grids):
        for w in range(w_grids):
            y2, x2 = min(h * h_stride + h_crop, height), min(w * w_stride + w_crop, width)
            y1, x1 = max(y2 - h_crop, 0), max(x2 - w_crop, 0)
            total[:, y1:y2, x1:x2] += model(picture[None, :, y1:y2, x1:x2])[0]
            count[:, y1:y2, x1:x2] += 1
    return total / count


SIDES = st.integers(12, 40)
CASES = {
    "height": SIDES, "width": SIDES,
    "window": st.tuples(st.integers(4, 12), st.integers(4, 12)),
    "overlap": st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    "batch": st.integers(1, 5),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("blend", ["constant", "gaussian"])
@settings(max_examples=12, deadline=None)
@given(**CASES)
def test_monai_puts_windows_together_alike(blend, height, width, window, overlap, batch):
    model, picture = network(), image(height, width)
    found = slide(model, picture, window=window, overlap=overlap, blend=blend, batch_size=batch)
    theirs = sliding_window_inference(
        picture[None], window, batch, model, overlap=overlap, mode=blend
    )
    torch.testing.assert_close(found, theirs[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@settings(max_examples=12, deadline=None)
@given(**{**CASES, "window": st.tuples(st.integers(4, 60), st.integers(4, 60))})
def test_mmsegmentation_does_so_too_with_windows_larger_than_the_image(
    height, width, window, overlap, batch
):
    model, picture = network(), image(height, width)
    found = slide(
        model, picture, window=window, overlap=overlap, blend="constant", batch_size=batch
    )
    # its stride is that of the window as it is given, ours that of the window inside the image
    inside = min(window[0], height), min(window[1], width)
    stride = tuple(max(int(side * (1 - overlap)), 1) for side in inside)
    torch.testing.assert_close(
        found, mmseg_slide(model, picture, window, stride), atol=1e-5, rtol=1e-5
    )


@given(
    st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.floats(0, 0.99),
)
def test_windows_cover_the_side_in_order_and_stay_inside(sides, overlap):
    length, window = sides
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == length - window
    assert starts == sorted(set(starts))
    steps = [after - before for before, after in itertools.pairwise(starts)]
    assert max(steps, default=0) <= window
    assert set(steps[:-1]) <= {max(int(window * (1 - overlap)), 1)}


def test_a_pass_holds_no_more_windows_than_told():
    seen = []

    def forward(batch):
        seen.append(tuple(batch.shape))
        return batch

    picture = image(20, 31)
    options = {"window": (8, 8), "overlap": 0.5, "blend": "gaussian"}
    found = slide(forward, picture, **options, batch_size=5)
    torch.testing.assert_close(found, picture)
    assert {shape[1:] for shape in seen} == {(2, 8, 8)}
    # 4 rows of 7 columns: 0, 4, 8, 12; 0, 4, ... 20, 23
    assert [shape[0] for shape in seen] == [5, 5, 5, 5, 5, 3]
    assert torch.equal(slide(forward, picture, **options, batch_size=5, stitch="cpu"), found)


def test_logits_of_another_size_are_resized_to_the_window():
    picture = torch.ones(1, 20, 20)
    coarse = nn.AvgPool2d(4)
    found = slide(coarse, picture, window=(8, 8), overlap=0.25, blend="constant", batch_size=2)
    torch.testing.assert_close(found, picture)


def test_the_gaussian_falls_off_to_its_floor():
    weight = blend_weights((64, 32), "gaussian")
    assert weight.max() > 0.98
    assert weight[0, 0] == pytest.approx(1e-3)
    assert weight[8, 16] / weight[31, 16] == pytest.approx(
        torch.exp(torch.tensor((0.5**2 - 23.5**2) / (2 * 8**2))).item(), rel=1e-4
    )
    torch.testing.assert_close(weight, weight.flip((0, 1)))
