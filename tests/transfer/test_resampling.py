"""Sizes of images, patches and windows: timm's own functions as the oracle."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple

import transferseg as ts
from tests.models.randomise import randomise
from transferseg.models.encoders import Encoder
from transferseg.transfer import PatchSize, PositionGrid, RelativePositionTable, size_adapters


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(
    ("given", "wanted"), [((4, 4), (7, 3)), ((2, 6), (4, 4)), ((6, 6), (3, 3))]
)
def test_position_grid_is_timms(prefix, given, wanted):
    source = torch.randn(1, prefix + given[0] * given[1], 8)
    target = torch.randn(1, prefix + wanted[0] * wanted[1], 8)
    adapter = PositionGrid(prefix, wanted, source_grid=given)
    assert adapter.fits(tuple(source.shape), tuple(target.shape))
    square = PositionGrid(prefix, wanted)
    assert square.fits(tuple(source.shape), tuple(target.shape)) == (given[0] == given[1])
    expected = resample_abs_pos_embed(source, list(wanted), list(given), num_prefix_tokens=prefix)
    torch.testing.assert_close(adapter.apply(source, target), expected)
    assert torch.equal(adapter.apply(source, target)[:, :prefix], source[:, :prefix])
    assert not adapter.fits((1, prefix + given[0] * given[1] + 1, 8), tuple(target.shape))
    assert not adapter.fits(tuple(source.shape), (1, target.shape[1] + 1, 8))
    assert f"{wanted[0]}x{wanted[1]}" in adapter.note


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize(
    ("given", "wanted"), [((7, 7), (12, 12)), ((12, 12), (7, 7)), ((4, 4), (3, 6))]
)
def test_relative_position_table_is_timms(extra, given, wanted):
    def table(window):
        return torch.randn((2 * window[0] - 1) * (2 * window[1] - 1) + extra, 3)

    source, target = table(given), table(wanted)
    adapter = RelativePositionTable(wanted, extra=extra)
    assert adapter.fits(tuple(source.shape), tuple(target.shape))
    expected = resize_rel_pos_bias_table_simple(source, wanted, target.shape)
    torch.testing.assert_close(adapter.apply(source, target), expected)
    back = RelativePositionTable(given, source_window=wanted, extra=extra)
    assert back.fits(tuple(target.shape), tuple(source.shape))
    assert back.apply(target, source).shape == source.shape
    assert not adapter.fits((source.shape[0] + 1, 3), tuple(target.shape))
    assert not adapter.fits((source.shape[0], 4), tuple(target.shape))


@pytest.mark.parametrize(
    ("given", "wanted"), [((16, 16), (8, 8)), ((4, 4), (7, 5)), ((6, 6), (14, 14))]
)
def test_patch_size_is_timms(given, wanted):
    source, target = torch.randn(5, 3, *given), torch.randn(5, 3, *wanted)
    adapted = PatchSize().apply(source, target)
    expected = resample_patch_embed(source, list(wanted))
    torch.testing.assert_close(adapted, expected, rtol=1e-3, atol=1e-3)
    if wanted[0] > given[0]:  # a larger patch, resized from a smaller one, gives the same numbers
        patch = torch.randn(2, 3, *given)
        larger = F.interpolate(patch, size=wanted, mode="bicubic", antialias=True)
        before, after = F.conv2d(patch, source), F.conv2d(larger, adapted)
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_the_source_stays_in_half_precision():
    source = torch.randn(169, 2).half()
    adapted = RelativePositionTable((5, 5)).apply(source, torch.zeros(81, 2))
    assert adapted.dtype == torch.float16
    assert torch.isfinite(adapted).all()


def tiny_swin(window, size, **options):
    options = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), **options}
    return timm.models.swin_transformer.SwinTransformer(
        img_size=size, patch_size=4, window_size=window, num_classes=0, **options
    )


def test_a_swin_of_window_7_into_one_of_window_12():
    source = randomise(tiny_swin(7, 56))
    target = tiny_swin(12, 96)
    adapters = size_adapters(target)
    tables = [key for key in adapters if key.endswith("relative_position_bias_table")]
    assert len(tables) == 4
    report = ts.transfer_weights(
        {f"swin.{k}": v for k, v in source.state_dict().items()},
        torch.nn.ModuleDict({"swin": target}),
        parts="swin",
        adapt={f"swin.{key}": adapters[key] for key in tables},
    )
    assert report.coverage["swin"].fraction == 1.0
    assert "adapted 4 by relative_position_table" in report.to_text()
    for key in tables:
        expected = resize_rel_pos_bias_table_simple(
            source.state_dict()[key], (12, 12), target.state_dict()[key].shape
        )
        torch.testing.assert_close(target.state_dict()[key], expected)


def test_encoders_offer_their_sizes():
    swin = Encoder("swin_tiny_patch4_window7_224").transfer_adapters()
    tables = [adapter for adapter in swin.values() if isinstance(adapter, RelativePositionTable)]
    assert {table.window for table in tables} == {(7, 7)}
    assert len(tables) == 12
    vit = Encoder("test_vit").transfer_adapters()
    assert isinstance(vit["model.patch_embed.proj.weight"], PatchSize)
    assert isinstance(vit["model.pos_embed"], PositionGrid)
    assert Encoder("resnet10t").transfer_adapters() == {}


def test_a_vit_of_another_patch_size():
    source = timm.create_model("test_vit", patch_size=8, img_size=80, num_classes=0)
    target = ts.create_model("upernet", "test_vit", classes=2, channels=8)
    report = ts.transfer_weights(source, target, parts="encoder.model")
    assert "adapted 1 by patch_size" in report.to_text()
    expected = resample_patch_embed(source.patch_embed.proj.weight, [16, 16])
    got = target.encoder.model.patch_embed.proj.weight
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
