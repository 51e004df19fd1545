"""The numbers of the paper's Table 3, as two runs each that have its means and spreads."""

from __future__ import annotations

import csv
import io
import json

import pytest

from transferseg.errors import DataError, SpecError
from transferseg.study.table import CellResult, StudyTable

AUTOENCODER = "2-step autoencoder"
# pretraining, architecture, parts, scores of the seeds
PAPER = [
    (AUTOENCODER, "unet", "encoder", (0.246, 0.276)),
    (AUTOENCODER, "unet", "both", (0.311, 0.273)),
    (AUTOENCODER, "deeplabv3", "encoder", (0.3505, 0.3755)),
    ("none", "unet", "encoder", (0.198, 0.208)),
    ("none", "deeplabv3", "encoder", (0.199, None)),
]


def paper_cells():
    cells = []
    for pretraining, architecture, parts, scores in PAPER:
        axes = {
            "pretraining": pretraining,
            "parts": parts,
            "architecture": architecture,
            "backbone": "resnet50",
        }
        step = pretraining != "none"
        covered = ("encoder", "decoder") if parts == "both" else ("encoder",)
        for seed, score in enumerate(scores):
            done = score is not None
            cells.append(
                CellResult(
                    {**axes, "seed": seed},
                    "done" if done else "failed",
                    {"test_mean_iou": score, "test_mean_dice": None} if done else {},
                    dict.fromkeys(covered, 1.0 - 0.0001 * seed) if step else {},
                    chain=("chexpert", "siim", "ccxs") if step else ("ccxs",),
                    seconds=60.5 + seed,
                    chain_seconds=3600.0 if step else 60.5 + seed,
                    samples_seen=1200,
                    chain_samples=223_414 if step else 1200,
                    error="" if done else "TrainingError: the loss of `none` is\nnot finite.",
                )
            )
    return cells


def paper_table(**options):
    return StudyTable(paper_cells(), score="test_mean_iou", percent=True, **options)


ABOUT = (
    "test_mean_iou in %, higher is better: mean ± best minus worst over seed (not a standard "
    "deviation), n: cells with a score. The same everywhere: backbone = resnet50."
)
NOTE = (
    "- failed (pretraining = none, parts = encoder, architecture = deeplabv3, seed = 1): "
    "`TrainingError: the loss of 'none' is not finite.`"
)
PIVOT = f"""\
{ABOUT} Columns: architecture, parts.

| pretraining | unet, encoder | unet, both | deeplabv3, encoder |
| :-- | --: | --: | --: |
| 2-step autoencoder | 26.1 ± 3.0 (n=2) | 29.2 ± 3.8 (n=2) | 36.3 ± 2.5 (n=2) |
| none | 20.3 ± 1.0 (n=2) | - | 19.9 (n=1, 1 failed) |
"""
LEGEND = (
    "Coverage: of the last transfer, the least of the repeats. Seconds and samples: of the last "
    "stage and of its whole chain, means over the cells that are done."
)
LONG = f"""\
{ABOUT} {LEGEND}

| pretraining | parts | architecture | mean | best - worst | n | without a score | coverage | \
seconds | chain seconds | samples seen | chain samples |
| :-- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |
| 2-step autoencoder | encoder | unet | 26.1 | 3.0 | 2 | - | encoder >99.9% | 61.0 | 3600.0 | \
1,200 | 223,414 |
| 2-step autoencoder | both | unet | 29.2 | 3.8 | 2 | - | encoder >99.9%, decoder >99.9% | 61.0 | \
3600.0 | 1,200 | 223,414 |
| 2-step autoencoder | encoder | deeplabv3 | 36.3 | 2.5 | 2 | - | encoder >99.9% | 61.0 | 3600.0 | \
1,200 | 223,414 |
| none | encoder | unet | 20.3 | 1.0 | 2 | - | - | 61.0 | 61.0 | 1,200 | 1,200 |
| none | encoder | deeplabv3 | 19.9 | - | 1 | 1 failed | - | 60.5 | 60.5 | 1,200 | 1,200 |
"""


def test_the_pivot_is_the_papers_table():
    assert paper_table().to_markdown() == f"{PIVOT}\n{NOTE}\n"


def test_axes_that_do_not_vary_can_be_asked_for():
    text = paper_table().to_markdown(["backbone", "architecture"], ["pretraining", "parts"])
    assert "The same everywhere" not in text
    assert text.splitlines()[2:5] == [
        "| backbone | architecture | 2-step autoencoder, encoder | 2-step autoencoder, both | "
        "none, encoder |",
        "| :-- | --: | --: | --: | --: |",
        "| resnet50 | unet | 26.1 ± 3.0 (n=2) | 29.2 ± 3.8 (n=2) | 20.3 ± 1.0 (n=2) |",
    ]


def test_without_rows_and_columns_it_is_the_long_form():
    assert paper_table().to_markdown(rows=(), columns=()) == f"{LONG}\n{NOTE}\n"


def test_the_long_form_in_a_terminal():
    cells = [cell for cell in paper_cells() if cell.axes["architecture"] == "deeplabv3"]
    # fmt: off
    assert str(StudyTable(cells, score="test_mean_iou")) == (
        "test_mean_iou, higher is better: mean ± best minus worst over seed (not a standard "
        "deviation), n: cells with a score.\n"
        "The same everywhere: parts = encoder, architecture = deeplabv3, backbone = resnet50.\n"
        f"{LEGEND}\n"
        "pretraining          mean  best - worst  n  without a score        coverage  seconds  chain seconds  samples seen  chain samples\n"  # noqa: E501
        "2-step autoencoder  0.363         0.025  2                -  encoder >99.9%     61.0         3600.0         1,200        223,414\n"  # noqa: E501
        "none                0.199             -  1         1 failed               -     60.5           60.5         1,200          1,200\n"  # noqa: E501
        "failed (pretraining = none, seed = 1): TrainingError: the loss of `none` is not finite."
    )
    # fmt: on


def test_a_line_of_the_csv_is_a_cell():
    cells = [
        CellResult({"parts": "both", "rate": 1e-5}, "done", {"iou": 0.1}, {"encoder": 0.5},
                   ("a", "b"), 1.5, 3.25, 10, 20),
        CellResult({"parts": 'all, "so"', "rate": 2}, "failed", {"iou": None, "dice": 0.3},
                   {"decoder": 1.0}, error="one\ntwo"),
    ]  # fmt: skip
    text = StudyTable(cells, score="iou").to_csv()
    assert text == (
        "parts,rate,status,iou,dice,coverage_encoder,coverage_decoder,chain,"
        "seconds,chain_seconds,samples_seen,chain_samples,error\n"
        "both,1e-05,done,0.1,,0.5,,a > b,1.5,3.25,10,20,\n"
        '"all, ""so""",2,failed,,0.3,,1.0,,0.0,0.0,0,0,"one\ntwo"\n'
    )
    second = list(csv.DictReader(io.StringIO(text, newline="")))[1]
    assert (second["parts"], second["error"]) == ('all, "so"', "one\ntwo")


def test_the_files_hold_the_pivot_the_long_form_and_every_cell(tmp_path):
    table = paper_table()
    folder = table.write(tmp_path / "new" / "study")
    assert folder == tmp_path / "new" / "study"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cells.csv", "cells.json", "table.md"
    ]  # fmt: skip
    assert (folder / "table.md").read_text("utf-8") == f"{PIVOT}\n{LONG}\n{NOTE}\n"
    assert (folder / "cells.csv").read_text("utf-8") == table.to_csv()
    values = json.loads((folder / "cells.json").read_text("utf-8"))
    assert [CellResult.from_dict(cell) for cell in values] == list(table.cells)
    table.write(folder)  # replaces


def test_files_of_a_study_with_axes_of_its_own(tmp_path):
    cells = [
        CellResult({"loss": loss, "parts": parts}, "done", {"iou": 0.5})
        for loss in ("dice", "bce")
        for parts in ("encoder", "both")
    ]
    table = StudyTable(cells, score="iou")
    assert "| loss | encoder | both |" in (table.write(tmp_path) / "table.md").read_text("utf-8")
    with pytest.raises(SpecError, match=r"axis 'loss' varies \(dice, bce\) and is not named"):
        table.to_markdown()
    # nothing varies: there is no pivot
    alone = StudyTable(cells[:1], score="iou")
    assert (alone.write(tmp_path) / "table.md").read_text("utf-8") == alone.to_markdown()
    assert "The same everywhere: loss = dice, parts = encoder." in alone.to_markdown()


def test_columns_with_the_same_first_value_stand_together():
    """Whatever the order of the cells: here the first axis changes fastest."""
    cells = [
        CellResult({"architecture": a, "parts": p, "backbone": b}, "missing")
        for b in ("vgg16", "resnet50")
        for p in ("encoder", "both")
        for a in ("unet", "deeplabv3")
    ]
    text = StudyTable(cells, score="iou").to_markdown()
    assert text.splitlines()[2] == (
        "| backbone | unet, encoder | unet, both | deeplabv3, encoder | deeplabv3, both |"
    )
    assert [row.axes["architecture"] for row in StudyTable(cells, score="iou").rows] == [
        "unet", "deeplabv3"
    ] * 4  # fmt: skip


def test_a_study_without_a_done_cell_has_a_table():
    cells = [
        CellResult({"pretraining": "lungs", "seed": 0}, "failed", error="no GPU"),
        CellResult({"pretraining": "lungs", "seed": 1}, "missing"),
        CellResult({"pretraining": "2-step", "seed": 0}, "blocked", error="stage 'lungs' failed"),
        CellResult({"pretraining": "none", "seed": 0}, "missing"),
    ]
    table = StudyTable(cells, score="test_mean_iou")
    assert table.to_markdown().split("\n\n")[1:] == [
        "| pretraining | test_mean_iou |\n| :-- | --: |\n"
        "| lungs | failed, missing |\n| 2-step | blocked |\n| none | missing |",
        "- failed (pretraining = lungs, seed = 0): `no GPU`\n"
        "- missing (pretraining = lungs, seed = 1)\n"
        "- blocked (pretraining = 2-step, seed = 0): `stage 'lungs' failed`\n"
        "- missing (pretraining = none, seed = 0)\n",
    ]
    assert "lungs           -             -  0  1 failed, 1 missing" in str(table)
    with pytest.raises(DataError, match=r"none of the 3 row\(s\) to draw has a score"):
        table.bars("pretraining", ())


def test_an_undefined_score_is_no_number():
    cells = [
        CellResult({"seed": seed}, "done", {"dice": value})
        for seed, value in enumerate([float("nan"), 0.25, 0.75])
    ]
    table = StudyTable(cells, score="dice")
    assert table.rows[0].mean == 0.5
    for text in (str(table), table.to_markdown(), table.to_csv(), table._repr_html_()):
        assert "nan" not in text.lower()
    assert "- undefined (seed = 0)\n" in table.to_markdown()
    assert "| 0.500 | 0.500 | 2 | 1 undefined |" in table.to_markdown()


def test_without_repeats_every_cell_is_a_row():
    cells = [CellResult({"seed": seed}, "done", {"loss": 0.5 + seed}) for seed in range(2)]
    table = StudyTable(cells, score="loss", repeats=(), mode="min")
    assert len(table.rows) == 2
    assert table.to_markdown(["seed"], []).splitlines()[0] == "loss, lower is better."
    assert "| 1 | 1.500 (n=1) |" in table.to_markdown(["seed"], [])
    # the default seed is no axis of every study
    assert StudyTable([CellResult({}, "missing")], score="loss").repeats == ()


def test_a_bar_in_a_label_does_not_end_the_cell():
    cells = [CellResult({"parts": p, "a|b": p}, "missing") for p in ("x|y", "z")]
    lines = StudyTable(cells, score="iou").to_markdown(["a|b"], ["parts"]).splitlines()
    assert lines[2] == r"| a\|b | x\|y | z |"
    assert lines[4] == r"| x\|y | missing | - |"


def test_a_long_error_is_cut_in_the_table_and_whole_in_the_files():
    cell = CellResult({}, "failed", error="key " * 1000)
    table = StudyTable([cell], score="iou")
    assert len(table.to_markdown()) < 1000
    assert "key ..." in table.to_markdown()
    assert "key " * 1000 in table.to_csv()


def test_a_notebook_shows_the_long_form_escaped():
    cells = [CellResult({"parts": "<b>"}, "failed", error="a < b"), CellResult({}, "missing")]
    text = StudyTable(cells, score="iou")._repr_html_()
    assert "<b>" not in text
    assert text.count("<tr>") == 3
    assert "<li>failed (parts = &lt;b&gt;): a &lt; b</li>" in text
    done = StudyTable([CellResult({}, "done", {"iou": 1.0})], score="iou")
    assert "<li>" not in done._repr_html_()


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (["pretrainin"], (), "unknown axis 'pretrainin'.* mean 'pretraining'"),
        (["pretraining"], ["parts"], "axis 'architecture' varies .unet, deeplabv3. and is not"),
        (["pretraining", "parts"], ["parts", "architecture"], "named once in rows or columns"),
        (["pretraining", "seed"], ["parts", "architecture"], "'seed' is averaged over"),
    ],
)
def test_axes_that_make_no_table_are_named(rows, columns, message):
    with pytest.raises(SpecError, match=message):
        paper_table().to_markdown(rows, columns)


@pytest.mark.parametrize(
    ("cells", "options", "error", "message"),
    [
        ([], {}, DataError, "at least one cell"),
        ([({"seed": 0}, {"iou": 1.0})] * 2, {}, DataError, "2 cells stand at seed = 0"),
        ([({}, {"iuo": 1.0})], {}, DataError, "unknown score 'iou'.* mean 'iuo'"),
        ([({"seed": 0}, {"iou": 1.0})], {"repeats": "sed"}, SpecError, "axis 'sed'.* 'seed'"),
        ([({"seed": 0}, {"iou": 1.0})], {"mode": "best"}, SpecError, "unknown mode 'best'"),
        ([({"status": 0}, {"iou": 1.0})], {}, DataError, "2 columns .* named 'status'"),
        ([({"iou": 0}, {"iou": 1.0})], {}, DataError, "2 columns .* named 'iou'"),
    ],
)
def test_what_makes_no_table_is_told(cells, options, error, message):
    results = [CellResult(axes, "done", scores) for axes, scores in cells]
    with pytest.raises(error, match=message):
        StudyTable(results, score="iou", **options)
