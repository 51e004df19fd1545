"""Some models compiled, exported and run by onnxruntime; `nox -s grid` goes through them all."""

import json

import pytest
import torch

from tests.models import exports, grid, record
from tests.models.contract import example
from tests.models.families import FAMILIES

RELEASE = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
RECENT = RELEASE >= (2, 9)

CASES = [
    ("unet", "plain", True),
    ("deeplabv3", "vgg", True),
    ("attention_unet", "plain", False),
    ("psp", "vgg", True),  # pools to a grid, whose cells follow the size
]


@pytest.mark.parametrize(("architecture", "family", "free_size"), CASES)
def test_an_exported_model_gives_the_same_logits_also_by_onnxruntime(
    architecture, family, free_size
):
    model = example(architecture, FAMILIES[family].tiny)
    program, cases = exports.export(model, free_size=free_size)
    assert exports.exported(program, model, cases) < exports.EXPORTED
    if not RECENT:
        pytest.skip("the ONNX exporter of torch before 2.9 is not relied on")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert exports.through_onnx(program, model, cases) < exports.ONNX


@pytest.mark.skipif(not RECENT, reason="torch before 2.9 says it in other words")
@pytest.mark.parametrize("family", exports.FIXED_SIZE)
def test_a_size_that_cannot_be_free_is_refused_for_the_reason_that_is_recorded(family):
    model = example("fcn", FAMILIES[family].tiny)

    def check():
        program, cases = exports.export(model, free_size=True)
        return exports.exported(program, model, cases)

    reason, words = exports.FIXED_SIZE[family]
    assert grid.judged(check, refused=(reason, words)) == f"refused: {reason}"


@pytest.mark.parametrize(
    ("encoder", "side"),
    [("resnet10t", 32), ("tiny_hrnet", 32), ("tiny_dinov2", 224), ("tiny_swin", 96)],
)
def test_a_free_size_is_a_multiple_of_what_the_encoder_needs(encoder, side):
    from transferseg.models import Encoder

    with torch.device("meta"):
        assert exports.unit(Encoder(encoder)) == side


@pytest.mark.parametrize(("architecture", "family"), [("unet", "plain"), ("fcn", "vit")])
def test_a_model_is_one_graph_with_equal_logits_and_gradients(architecture, family):
    assert exports.compiled(example(architecture, FAMILIES[family].tiny)) < exports.EXPORTED


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("check", "outcome"),
    [
        (lambda: 0.0, "ok"),
        (lambda: 0.1, "failed: the logits differ by 1.0e-01"),
        (lambda: float("nan"), "failed: the logits differ by nan"),
        (lambda: _raise(ValueError("no\n way")), "failed: ValueError: no way"),
        (lambda: _raise(ValueError("a fixed number")), "refused: why"),
    ],
)
def test_an_outcome_is_ok_refused_or_failed(check, outcome):
    assert grid.judged(check, 1e-3, ("why", "fixed number")) == outcome


def test_a_check_that_takes_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr(grid, "LIMIT", 0.05)

    def forever():
        while True:
            sum(range(1000))

    assert "longer than 0.05 s" in grid.judged(forever)


def test_a_grid_goes_on_where_it_was_cut_and_tries_again_what_failed(tmp_path, monkeypatch):
    path, tried = tmp_path / "found.json", []

    def try_one(architecture, family, found):
        tried.append((architecture, family))
        found["compile"] = "ok" if family == "vgg" else "failed: so"

    monkeypatch.setattr(record, "versions", lambda: {"torch": "1"})
    monkeypatch.setitem(grid.KINDS, "inductor", (try_one, ["vgg", "resnet"], ("compile",)))
    chosen = ["--kind", "inductor", "--architecture", "fcn", "--record", str(path)]
    assert grid.main([*chosen, "--family", "vgg"]) == 0
    assert grid.main(chosen) == 1
    assert tried == [("fcn", "vgg"), ("fcn", "resnet")]
    assert grid.main(chosen) == 1
    assert tried == [("fcn", "vgg"), ("fcn", "resnet"), ("fcn", "resnet")]
    found = json.loads(path.read_text("utf-8"))["inductor"]["fcn"]
    assert found == {"vgg": {"compile": "ok"}, "resnet": {"compile": "failed: so"}}
    monkeypatch.setattr(record, "versions", lambda: {"torch": "2"})
    with pytest.raises(SystemExit):
        grid.main(chosen)


@pytest.mark.parametrize("free_size", [True, False])
def test_one_trace_serves_all_where_its_size_can_be_free(monkeypatch, free_size):
    traced = []
    monkeypatch.setattr(grid, "example", lambda *given: None)
    monkeypatch.setattr(grid, "compiled", lambda model: 0.0)
    monkeypatch.setattr(grid, "export", lambda model, free_size: traced.append(free_size) or "p ")
    monkeypatch.setattr(grid, "exported", lambda *given: float(traced[-1] and not free_size))
    monkeypatch.setattr(grid, "through_onnx", lambda *given: 0.0)
    found = {}
    grid.try_exports("fcn", "vgg", found)
    assert traced == ([True] if free_size else [True, False])
    assert set(found) == set(record.EXPORTS)
    size = "ok" if free_size else "failed: the logits differ by 1.0e+00"
    assert found == dict.fromkeys(record.EXPORTS, "ok") | {"export_size": size, "onnx_size": size}
