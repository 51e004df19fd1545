import pickle

import numpy as np
import pytest

from transferseg.data.readers.chexpert import CHEXPERT_FINDINGS, CheXpert
from transferseg.data.samples import Reader
from transferseg.errors import DataError

COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS)
SMALL = "CheXpert-v1.0-small"


def line(path, view="Frontal", **labels):
    """A line of the table; findings by name with underscores, others are not mentioned."""
    values = {name.replace("_", " "): text for name, text in labels.items()}
    where = {"Path": f"{SMALL}/train/{path}", "Frontal/Lateral": view}
    return {**where, "Sex": "Female", "Age": "68", "AP/PA": "", **values}


LINES = (
    line("patient00002/study2/view1_frontal.jpg", Lung_Opacity="1.0", Edema="-1.0"),
    line("patient00001/study1/view1_frontal.jpg", No_Finding="1.0", Support_Devices="0.0"),
    line("patient00002/study1/view2_lateral.jpg", "Lateral", Pneumonia="-1.0", Fracture="1.0"),
    line("patient00002/study1/view1_frontal.jpg", Atelectasis="-1.0", Pleural_Effusion="-1.0"),
)


@pytest.fixture
def tree(tmp_path, save, write_csv):
    for row in LINES:
        save(row["Path"], np.full((33, 39), len(row["Path"]), np.uint8))

    def write(*lines, name="train.csv"):
        write_csv(tmp_path / SMALL / name, COLUMNS, lines)
        return tmp_path

    write(*LINES)
    return write


def named(label):
    return {name: v for name, v in zip(CHEXPERT_FINDINGS, label.tolist(), strict=True) if v != 0}


def test_labels_patients_and_the_papers_policy(tree, tmp_path):
    reader = pickle.loads(pickle.dumps(CheXpert(tmp_path)))
    assert isinstance(reader, Reader)
    assert reader.ids == (
        "train/patient00001/study1/view1_frontal.jpg",
        "train/patient00002/study1/view1_frontal.jpg",
        "train/patient00002/study1/view2_lateral.jpg",
        "train/patient00002/study2/view1_frontal.jpg",
    )
    assert reader.groups == ("patient00001", "patient00002", "patient00002", "patient00002")
    assert [named(sample.label) for sample in reader] == [
        {"No Finding": 1},
        {"Atelectasis": 1, "Pleural Effusion": 1},
        {"Fracture": 1},  # the uncertain pneumonia is negative
        {"Lung Opacity": 1, "Edema": 1},
    ]
    assert reader[0].image.shape == (33, 39)
    assert (reader[0].mask, reader[0].label.dtype) == (None, np.float32)
    np.testing.assert_array_equal(reader.labels, np.stack([s.label for s in reader]))
    assert (len(reader.classes), reader.skipped, reader.lines_without_image) == (14, (), 0)


def test_every_policy_by_finding(tree, tmp_path):
    """All 14 findings uncertain, in one line."""
    tree({**LINES[0], **dict.fromkeys(CHEXPERT_FINDINGS, "-1.0")})
    edema = CHEXPERT_FINDINGS.index("Edema")

    def label(uncertain):
        return CheXpert(tmp_path, uncertain=uncertain)[0].label

    positive = {"Atelectasis", "Edema", "Pleural Effusion"}
    expected = [float(name in positive) for name in CHEXPERT_FINDINGS]
    np.testing.assert_array_equal(label("merand2021"), expected)
    assert np.isnan(label("ignore")).all()
    assert (label("zeros") == 0).all()
    assert (label("ones") == 1).all()
    mixed = label(dict.fromkeys(CHEXPERT_FINDINGS, "ones") | {"Edema": "ignore"})
    assert np.isnan(mixed[edema])
    assert np.nansum(mixed) == 13


def test_what_is_not_mentioned(tree, tmp_path):
    label = CheXpert(tmp_path, unmentioned="missing")[0].label
    known = {CHEXPERT_FINDINGS[k]: label[k] for k in np.flatnonzero(~np.isnan(label))}
    assert known == {"No Finding": 1, "Support Devices": 0}


def test_views(tree, tmp_path):
    assert len(CheXpert(tmp_path, views="frontal")) == 3
    lateral = CheXpert(tmp_path, views="lateral")
    assert lateral.ids == ("train/patient00002/study1/view2_lateral.jpg",)
    tree(*LINES[:2])
    with pytest.raises(DataError, match=r"train\.csv: no line of views='lateral' is left, 0 with"):
        CheXpert(tmp_path, views="lateral")


def test_other_tables_and_folders(tree, tmp_path, save):
    valid = {**LINES[0], "Path": f"{SMALL}/valid/patient64541/study1/view1_frontal.jpg"}
    save(valid["Path"], np.zeros((32, 32), np.uint8))
    tree(valid, name="valid.csv")
    assert CheXpert(tmp_path, table="valid.csv").groups == ("patient64541",)
    inside = CheXpert(tmp_path / SMALL)
    assert (inside.ids, len(inside[0].image)) == (CheXpert(tmp_path).ids, 33)
    (tmp_path / SMALL).rename(tmp_path / "mine")  # the table goes on naming the published folder
    assert len(CheXpert(tmp_path / "mine")[0].image) == 33
    with pytest.raises(DataError, match=r"train\.csv: the file does not exist"):
        CheXpert(tmp_path)
    for name in ("CheXpert-v1.0", SMALL):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text("")
    with pytest.raises(DataError, match=r"both have train\.csv; give one as the root"):
        CheXpert(tmp_path)


GOOD = "patient00003/study1/view1_frontal.jpg"
HOSTILE = [
    (line(GOOD, Edema="nan"), r"train\.csv, line 6: Edema is 'nan'; expected 1\.0, 0\.0, -1\.0 or"),
    (line(GOOD, Fracture="2.0"), r"line 6: Fracture is '2\.0'"),
    (line(GOOD.replace("frontal", "oblique")), r"line 6: Path is .*view1_oblique"),
    (line(GOOD), r"line 6: image 'train/patient00003/\S+' is not in \S+small; 1 line\(s\) have no"),
    (LINES[0], r"line 6: image 'train/patient00002/study2/\S+' is listed a second time"),
    ({**LINES[0], "Path": f"{SMALL}/train/../../secret.jpg"}, r"line 6: Path is .*such as"),
    ({**LINES[0], "Path": GOOD}, "line 6: Path is"),
    ({**LINES[0], "Path": f"../../train/{GOOD}"}, "line 6: Path is"),
    ({**LINES[0], "Path": ""}, "line 6: Path is ''"),
]


@pytest.mark.parametrize(("row", "match"), HOSTILE)
def test_hostile_lines_are_named_or_left_out(tree, tmp_path, row, match):
    tree(*LINES, row)
    with pytest.raises(DataError, match=match):
        CheXpert(tmp_path)
    reader = CheXpert(tmp_path, invalid="skip")
    assert len(reader) == 4
    assert len(reader.skipped) == 1
    with pytest.raises(DataError, match=match):
        raise DataError(reader.skipped[0])


def test_partial_archives_are_counted(tree, tmp_path):
    tree(*LINES, line(GOOD), line(GOOD.replace("view1", "view2")))
    reader = CheXpert(tmp_path, partial=True)
    assert (len(reader), reader.lines_without_image, reader.skipped) == (4, 2, ())
    both = CheXpert(tmp_path, partial=True, invalid="skip")
    assert (both.lines_without_image, both.skipped) == (2, ())
    assert len(CheXpert(tmp_path, invalid="skip").skipped) == 2
    tree(line(GOOD))
    with pytest.raises(DataError, match="no line of views='all' is left, 1 without an image"):
        CheXpert(tmp_path, partial=True)


def test_an_image_missing_among_others_is_named_when_it_is_read(tree, tmp_path):
    (tmp_path / LINES[3]["Path"]).unlink()
    reader = CheXpert(tmp_path)
    assert len(reader) == 4
    with pytest.raises(
        DataError, match=r"train\.csv, line 5: \S+study1/view1_frontal\.jpg: the fil"
    ):
        reader[1]
    assert len(CheXpert(tmp_path, invalid="skip").skipped) == 1
    assert CheXpert(tmp_path, partial=True).lines_without_image == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"views": "frontals"}, "unknown views 'frontals'.*Did you mean 'frontal'"),
        ({"unmentioned": "nan"}, "unknown unmentioned 'nan'"),
        ({"uncertain": "merand"}, "unknown policy in uncertain 'merand'.*'merand2021'"),
        ({"uncertain": {"Edemas": "ones"}}, "unknown finding in uncertain 'Edemas'"),
        ({"uncertain": {"Edema": "ones"}}, "no policy for No Finding, .*13 in all"),
        (
            {"uncertain": dict.fromkeys(CHEXPERT_FINDINGS, "merand2021")},
            "unknown policy in uncertain 'merand2021': expected one of 'ignore', 'ones', 'zeros'",
        ),
        ({"invalid": "drop"}, "unknown invalid 'drop'"),
    ],
)
def test_unknown_options(tree, tmp_path, options, match):
    with pytest.raises(DataError, match=match):
        CheXpert(tmp_path, **options)


def test_a_missing_column_and_a_damaged_image_are_named(tree, tmp_path, truncate):
    truncate(tmp_path / LINES[1]["Path"])
    with pytest.raises(DataError, match=r"patient00001/study1/view1_frontal\.jpg"):
        CheXpert(tmp_path)[0]
    path = tmp_path / SMALL / "train.csv"
    path.write_text(path.read_text().replace("Edema", "Oedema", 1))
    with pytest.raises(DataError, match=r"column.*'Edema' missing.*Did you mean 'Oedema'"):
        CheXpert(tmp_path)


@pytest.mark.parametrize("name", ["test_labels.csv", "val_labels.csv"])
def test_tables_of_chexlocalize(tmp_path, save, write_csv, name):
    """Without views and, for the test set, without a folder above."""
    part, above = ("test", "") if name == "test_labels.csv" else ("valid", "CheXpert-v1.0/")
    images = [f"{part}/patient64741/study1/view{view}.jpg" for view in ("1_frontal", "2_lateral")]
    for path in images:
        save(path, np.zeros((32, 32), np.uint8))
    values = dict.fromkeys(CHEXPERT_FINDINGS, "0.0") | {"Edema": "1.0"}
    lines = [{"Path": above + path, **values} for path in images]
    write_csv(tmp_path / name, ("Path", *CHEXPERT_FINDINGS), lines)
    reader = CheXpert(tmp_path, table=name)
    assert reader.ids == tuple(images)
    assert reader.groups == ("patient64741",) * 2
    assert [named(label) for label in reader.labels] == [{"Edema": 1}] * 2
    assert CheXpert(tmp_path, table=name, views="lateral").ids == (images[1],)


def test_a_table_by_study_is_refused(tmp_path, write_csv):
    write_csv(tmp_path / "groundtruth.csv", ("Study", *CHEXPERT_FINDINGS), [])
    with pytest.raises(
        DataError, match=r"groundtruth\.csv: has one line a study .*test_labels\.cs"
    ):
        CheXpert(tmp_path, table="groundtruth.csv")


@pytest.mark.parametrize("options", [{}, {"invalid": "skip"}, {"partial": True}])
def test_the_full_size_distribution_says_what_to_move_where(tmp_path, write_csv, options):
    first = tmp_path / "CheXpert-v1.0 batch 1 (validate & csv)"
    first.mkdir()
    for number in (2, 3):
        (tmp_path / f"CheXpert-v1.0 batch {number} (train {number - 1})").mkdir()
    write_csv(first / "train.csv", COLUMNS, LINES)
    match = r"csv\)/train: the folder does not exist.* out of 'CheXpert.*train 1\)', '.*train 2\)'"
    with pytest.raises(DataError, match=match):
        CheXpert(tmp_path, **options)
    write_csv(first / "valid.csv", COLUMNS, [{"Path": f"x/valid/{GOOD}"}])
    with pytest.raises(DataError, match=r"csv\)/valid: the folder does not exist.*as the root\."):
        CheXpert(tmp_path, table="valid.csv", **options)
    (first / "val").mkdir()
    with pytest.raises(DataError, match=r"/valid: .*rename the folder 'val' there to 'valid'"):
        CheXpert(tmp_path, table="valid.csv", **options)


def test_a_line_cut_short_is_named_or_left_out(tree, tmp_path):
    path = tmp_path / SMALL / "train.csv"
    with path.open("a") as file:
        file.write(f"{SMALL}/train/{GOOD},Female,68,Frontal,,1.0\n")
    with pytest.raises(DataError, match=r"train\.csv, line 6: the line is cut short.*skip"):
        CheXpert(tmp_path)
    reader = CheXpert(tmp_path, invalid="skip")
    assert (len(reader), len(reader.skipped)) == (4, 1)
