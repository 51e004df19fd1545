"""COCO files that are damaged or made to harm: named by file and entry, or left out and counted."""

import pytest
from tests.data.test_coco import Tree, box

from transferseg.data.readers.coco import COCOBoxes
from transferseg.errors import DataError


@pytest.fixture
def tree(tmp_path, save):
    return Tree(tmp_path, save)


def annotation(**values):
    return box(1, 1, 2, 2, **values)


def image(**values):
    """Another entry of the first image under a new name."""

    def apply(tree):
        tree.images.append({"id": 55, "file_name": "p9.png", "width": 40, "height": 33} | values)

    return apply


HOSTILE = [
    (box(-3, 0, 5, 5), r"annotation id 103: .* sticks out of its image of 40x33 pixels by 3"),
    (box(50, 0, 5, 5), "annotation id 103: .* lies outside its image"),
    (box(1, 1, 0, 5), "annotation id 103: .* has no area"),
    (box(1.6, 1, 0.8, 5), "annotation id 103: .* covers no pixel"),
    (box(1, 1, -4, 5), "annotation id 103: a box of width -4"),
    (box(1, 1, float("nan"), 5), "annotation id 103: .*nan.* is no box"),
    (box(1, "1", 2, 2), "annotation id 103: .* is no box"),
    (box(1, 1, 2), r"annotation id 103: bbox is \[1, 1, 2\]; expected \[x, y, width, height\]"),
    (annotation(bbox=None), "annotation id 103: bbox is None"),
    (annotation(iscrowd=1), "annotation id 103: iscrowd"),
    (annotation(image_id=99), "annotation id 103: image_id 99 is no image of the file"),
    (annotation(category_id=99), "annotation id 103: category_id 99; expected one of 3, 7"),
    (annotation(category_id=None), "annotation id 103: category_id is None; expected a whole"),
    (annotation(image_id=[0]), r"annotation id 103: image_id is \[0\]"),
    (annotation(id=100), "annotation id 100: the id is listed a second time, with another box"),
    (annotation(id=None), "annotation id None: id is None"),
    (
        lambda tree: tree.annotations.append({}),
        r"annotation number 3 \(without id\): image_id is N",
    ),
    (image(), r"image id 55: .*p9\.png: the file does not exist"),
    (image(id=10), "image id 10: the id is listed a second time"),
    (image(file_name="p2_a.png"), "image id 55: 'p2_a.png' is listed already, by .* id 0"),
    (image(file_name="../x.png"), "image id 55: file_name is '../x.png'; expected a path below"),
    (image(file_name="/x.png"), "image id 55: file_name is '/x.png'"),
    (image(file_name="C:x.png"), "image id 55: file_name is 'C:x.png'"),
    (image(file_name=3), "image id 55: file_name is 3; expected a text"),
]


@pytest.mark.parametrize(("apply", "match"), HOSTILE)
def test_hostile_rows_are_named_or_left_out_and_counted(tree, apply, match):
    apply(tree)
    tree.write()
    with pytest.raises(DataError, match=rf"annotations\.json, {match}"):
        COCOBoxes(tree.root)
    reader = COCOBoxes(tree.root, invalid="skip")
    assert len(reader.skipped) == 1
    if any(each.get("image_id") == 0 for each in tree.annotations[3:]):
        # the image has something that its mask could not show
        assert reader.ids == ("more/p1_a.png", "p1_b.jpg")
        assert reader.left_out == ("p2_a.png",)
    else:
        assert reader.ids == ("more/p1_a.png", "p1_b.jpg", "p2_a.png")
        assert [len(reader.boxes(n)) for n in range(3)] == [0, 1, 2]
        assert reader.left_out == ()


def test_an_annotation_that_is_listed_twice_is_left_out_alone(tree):
    tree.annotations.append(dict(tree.annotations[0]))
    tree.write()
    with pytest.raises(
        DataError, match="annotation id 100: the annotation is listed a second time"
    ):
        COCOBoxes(tree.root)
    reader = COCOBoxes(tree.root, invalid="skip")
    assert (len(reader.skipped), reader.left_out, len(reader.boxes(2))) == (1, (), 2)


def categories(*entries):
    def apply(tree):
        tree.categories[:] = entries

    return apply


@pytest.mark.parametrize("invalid", ["raise", "skip"])
@pytest.mark.parametrize(
    ("apply", "match"),
    [
        (categories(), "categories: none; expected one or more"),
        (categories({"id": 3, "name": "a"}, {"id": 3, "name": "b"}), "3: a, 3: b; expected"),
        (categories({"id": 3, "name": "a"}, {"id": 7, "name": "a"}), "distinct ids and names"),
        (categories({"id": 3}), "categories: name is None"),
        (categories("Right Lung"), "'categories' is no list of objects"),
        (lambda tree: setattr(tree, "images", None), "'images' is no list of objects"),
        (lambda tree: tree.images.clear(), "no image to read; left out: "),
    ],
)
def test_a_file_of_another_form_always_raises(tree, apply, match, invalid):
    apply(tree)
    if not tree.images:
        tree.annotations.clear()
    tree.write()
    with pytest.raises(DataError, match=rf"annotations\.json.*{match}"):
        COCOBoxes(tree.root, invalid=invalid)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff{}", b"[" * 100_000, None])
def test_a_file_that_is_no_json_is_named(tree, content):
    path = tree.root / "annotations.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=r"annotations\.json: "):
        COCOBoxes(tree.root)


def test_damage_behind_the_header_shows_when_reading(tree, truncate):
    truncate(tree.root / "images" / "p2_a.png")
    with pytest.raises(DataError, match=r"p2_a\.png: the file is truncated"):
        COCOBoxes(tree.root)[2]
    with pytest.raises(DataError, match=r"unknown invalid 'skp'.*Did you mean 'skip'"):
        COCOBoxes(tree.root, invalid="skp")
